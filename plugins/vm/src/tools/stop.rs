//! `vm_stop`.

use pyro_plugin_sdk::vm::machine_lifecycle;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, Tool, ToolError};

use crate::shape::{OneVm, Vm, open};

/// Shuts a microVM down.
pub struct VmStop;

impl Tool for VmStop {
    const NAME: &'static str = "vm_stop";
    const DESCRIPTION: &'static str = "Shuts a microVM down; its disk is kept.";
    const HINTS: Hints = Hints { destructive: Some(true), idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = OneVm;
    type Output = Vm;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["vm", "stop"],
            positionals: vec!["vm_id"],
            human: Some(Human::summary("vm {vm_id} is {state}")),
            ..Cli::default()
        })
    }

    fn call(arguments: OneVm, _call: &Call) -> Result<Vm, ToolError> {
        let machine = open(&arguments.vm_id)?;
        machine_lifecycle::stop(&machine)?;
        Ok(open(&arguments.vm_id)?.info().into())
    }
}
