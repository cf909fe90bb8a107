//! `vm_network_info`.

use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Serialize;

use crate::shape::{OneVm, open};

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub vm_id: String,
    pub network_enabled: bool,
    pub outbound_connectivity_expected: bool,
    /// Why there is none
    pub reason: String,
}

/// Says what network a microVM has.
pub struct VmNetworkInfo;

impl Tool for VmNetworkInfo {
    const NAME: &'static str = "vm_network_info";
    const DESCRIPTION: &'static str = "Shows what network a microVM has.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneVm;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["vm", "network-info"],
            positionals: vec!["vm_id"],
            human: Some(Human::fields(&["vm_id", "network_enabled", "reason"])),
            ..Cli::default()
        })
    }

    fn call(arguments: OneVm, _call: &Call) -> Result<Output, ToolError> {
        open(&arguments.vm_id)?;
        Ok(Output {
            vm_id: arguments.vm_id,
            network_enabled: false,
            outbound_connectivity_expected: false,
            reason: "microVMs have no network interface".to_owned(),
        })
    }
}
