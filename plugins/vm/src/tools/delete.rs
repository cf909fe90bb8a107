//! `vm_delete`.

use pyro_plugin_sdk::vm::machine_lifecycle;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, Tool, ToolError};

use crate::shape::{Deleted, OneVm, open};

/// Ends a microVM.
pub struct VmDelete;

impl Tool for VmDelete {
    const NAME: &'static str = "vm_delete";
    const DESCRIPTION: &'static str = "Ends a microVM and removes all of it.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = OneVm;
    type Output = Deleted;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["vm", "delete"],
            positionals: vec!["vm_id"],
            human: Some(Human::summary("vm {vm_id} is deleted")),
            ..Cli::default()
        })
    }

    fn call(arguments: OneVm, _call: &Call) -> Result<Deleted, ToolError> {
        match open(&arguments.vm_id) {
            Ok(machine) => machine_lifecycle::delete(&machine)?,
            // Its time was over, so that looking at it deleted it: that is what was asked for.
            Err(error) if error.code == "expired" => {}
            Err(error) => return Err(error),
        }
        Ok(Deleted::new(&arguments.vm_id, "explicit_delete"))
    }
}
