//! `vm_create`.

use pyro_plugin_guest::defaults;
use pyro_plugin_sdk::vm::machine_lifecycle;
use pyro_plugin_sdk::vm::machines::MachineConfig;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::shape::Vm;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// As debian:12
    pub environment: String,
    #[serde(default = "defaults::vcpu_count")]
    #[schemars(range(min = 1, max = 8), description = "vCPUs")]
    pub vcpu_count: u32,
    /// Memory
    #[serde(default = "defaults::mem_mib")]
    #[schemars(range(min = 256, max = 32_768))]
    pub mem_mib: u32,
    /// Lifetime
    #[serde(default = "defaults::ttl_seconds")]
    #[schemars(range(min = 60, max = 3600))]
    pub ttl_seconds: u32,
}

/// Reserves a microVM.
pub struct VmCreate;

impl Tool for VmCreate {
    const NAME: &'static str = "vm_create";
    const DESCRIPTION: &'static str = "Creates a microVM for vm_start; vm_run does all in one call.";
    const HINTS: Hints = Hints::CONTAINED;
    type Arguments = Arguments;
    type Output = Vm;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["vm", "create"],
            positionals: vec!["environment"],
            id: Some("vm_id"),
            human: Some(Human::fields(&["vm_id", "environment", "state", "expires_at"])),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Vm, ToolError> {
        let machine = machine_lifecycle::create(&MachineConfig {
            environment: arguments.environment,
            vcpu_count: arguments.vcpu_count,
            mem_mib: arguments.mem_mib,
            ttl_seconds: arguments.ttl_seconds,
            meta: Vec::new(),
        })?;
        Ok(machine.info().into())
    }
}
