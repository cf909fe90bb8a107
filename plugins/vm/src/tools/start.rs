//! `vm_start`.

use pyro_plugin_sdk::vm::machine_lifecycle;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, Tool, ToolError};

use crate::shape::{OneVm, Vm, open};

/// Boots a microVM.
pub struct VmStart;

impl Tool for VmStart {
    const NAME: &'static str = "vm_start";
    const DESCRIPTION: &'static str = "Boots a created or stopped microVM.";
    const HINTS: Hints = Hints::CONTAINED;
    type Arguments = OneVm;
    type Output = Vm;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["vm", "start"],
            positionals: vec!["vm_id"],
            human: Some(Human::summary("vm {vm_id} is {state}")),
            ..Cli::default()
        })
    }

    fn call(arguments: OneVm, _call: &Call) -> Result<Vm, ToolError> {
        let id = &arguments.vm_id;
        let machine = open(id)?;
        machine_lifecycle::start(&machine).map_err(|error| match error.code.as_str() {
            "invalid_state" => ToolError::new(
                "invalid_state",
                format!("vm {id} cannot be started from state '{}'", machine.info().state),
            ),
            _ => error.into(),
        })?;
        Ok(open(id)?.info().into())
    }
}
