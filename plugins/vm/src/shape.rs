//! How a microVM looks in results, and how one is found.

use std::collections::BTreeMap;

use pyro_plugin_sdk::vm::machine_lifecycle;
use pyro_plugin_sdk::vm::types::{Error, Machine, MachineInfo};
use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::{Deserialize, Serialize};

/// The arguments of a tool that only needs to know which microVM.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OneVm {
    /// microVM
    pub vm_id: String,
}

/// A microVM.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Vm {
    pub vm_id: String,
    pub environment: String,
    pub environment_version: String,
    pub vcpu_count: u32,
    pub mem_mib: u32,
    pub ttl_seconds: u32,
    /// Unix seconds
    pub created_at: f64,
    /// Unix seconds
    pub expires_at: f64,
    /// created, started or stopped
    pub state: String,
    pub network_enabled: bool,
    pub execution_mode: String,
    pub metadata: BTreeMap<String, String>,
}

impl From<MachineInfo> for Vm {
    fn from(info: MachineInfo) -> Vm {
        Vm {
            vm_id: info.id,
            environment: info.environment,
            environment_version: info.environment_version,
            vcpu_count: info.vcpu_count,
            mem_mib: info.mem_mib,
            ttl_seconds: info.ttl_seconds,
            created_at: info.created_at,
            expires_at: info.expires_at,
            state: info.state,
            network_enabled: false,
            execution_mode: info.execution_mode,
            metadata: info.meta.into_iter().collect(),
        }
    }
}

/// What became of a microVM.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Deleted {
    pub vm_id: String,
    pub deleted: bool,
    /// explicit_delete or post_exec_cleanup
    pub reason: String,
}

impl Deleted {
    /// Says that it is gone, and why.
    pub fn new(vm_id: &str, reason: &str) -> Deleted {
        Deleted { vm_id: vm_id.to_owned(), deleted: true, reason: reason.to_owned() }
    }
}

/// Opens a microVM in any state.
///
/// # Errors
/// `not_found`, `expired`.
pub fn open(id: &str) -> Result<Machine, ToolError> {
    machine_lifecycle::open(id).map_err(|error| absent(id, error))
}

fn absent(id: &str, error: Error) -> ToolError {
    match error.code.as_str() {
        "not_found" => ToolError::new("not_found", format!("vm '{id}' does not exist"))
            .with_hint("it may have expired; make one with vm_create"),
        "expired" => ToolError::new("expired", format!("vm '{id}' expired and was automatically deleted"))
            .with_hint("make one with vm_create and a longer ttl_seconds"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_words_of_the_contract() {
        let told = |code: &str| {
            let error = Error {
                code: code.to_owned(),
                message: "machine x".to_owned(),
                hint: None,
                retryable: false,
                meta: Vec::new(),
            };
            absent("abc", error).message
        };
        assert_eq!(told("not_found"), "vm 'abc' does not exist");
        assert_eq!(told("expired"), "vm 'abc' expired and was automatically deleted");
        assert_eq!(told("io"), "machine x");
    }
}
