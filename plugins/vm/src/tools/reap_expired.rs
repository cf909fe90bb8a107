//! `vm_reap_expired`.

use pyro_plugin_sdk::vm::machine_lifecycle;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub deleted_vm_ids: Vec<String>,
    pub count: usize,
}

/// Removes what is past its lifetime.
pub struct VmReapExpired;

impl Tool for VmReapExpired {
    const NAME: &'static str = "vm_reap_expired";
    const DESCRIPTION: &'static str = "Removes microVMs past their lifetime.";
    const HINTS: Hints = Hints { destructive: Some(true), idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["vm", "reap-expired"],
            human: Some(Human::summary("{count} microVMs removed: {deleted_vm_ids}")),
            ..Cli::default()
        })
    }

    fn call(_arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let deleted_vm_ids = machine_lifecycle::reap()?;
        Ok(Output { count: deleted_vm_ids.len(), deleted_vm_ids })
    }
}
