//! `vm_status`.

use pyro_plugin_sdk::{Call, Cli, Hints, Human, Tool, ToolError};

use crate::shape::{OneVm, Vm, open};

/// Looks at one microVM.
pub struct VmStatus;

impl Tool for VmStatus {
    const NAME: &'static str = "vm_status";
    const DESCRIPTION: &'static str = "Shows a microVM's state and lifetime.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneVm;
    type Output = Vm;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["vm", "status"],
            positionals: vec!["vm_id"],
            human: Some(Human::fields(&[
                "vm_id",
                "environment",
                "state",
                "vcpu_count",
                "mem_mib",
                "created_at",
                "expires_at",
            ])),
            ..Cli::default()
        })
    }

    fn call(arguments: OneVm, _call: &Call) -> Result<Vm, ToolError> {
        Ok(open(&arguments.vm_id)?.info().into())
    }
}
