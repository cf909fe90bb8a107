//! Arguments that several tools take.

use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::Deserialize;

use crate::workspace::invalid;

/// Characters of a name that is kept.
const MAX_NAME: usize = 64;

/// The arguments of a tool that only needs to know which workspace.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OneWorkspace {
    /// Workspace
    pub workspace_id: String,
}

/// Returns the default of an argument that is a path of the workspace.
pub fn workspace_root() -> String {
    pyro_tree::WORKSPACE.to_owned()
}

/// Values that arguments of several tools have when they are not given. One place, because a model that learns them from
/// one tool expects them of the others.
pub mod defaults {
    /// vCPUs.
    pub fn vcpu_count() -> u32 {
        1
    }

    /// Memory in MiB.
    pub fn mem_mib() -> u32 {
        1024
    }

    /// Lifetime in seconds.
    pub fn ttl_seconds() -> u32 {
        600
    }

    /// Seconds for a command.
    pub fn timeout_seconds() -> u32 {
        30
    }
}

/// Returns the name of a service, a snapshot or a label as it is kept; `argument` names it in the error.
///
/// # Errors
/// `invalid_argument` for what does not match `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`.
pub fn name(argument: &str, name: &str) -> Result<String, ToolError> {
    let name = name.trim();
    let mut bytes = name.bytes();
    let valid = name.len() <= MAX_NAME
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if !valid {
        return Err(invalid(format!("{argument} '{name}' must match ^[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}$")));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn names_are_checked_before_anything_is_done() {
        assert_eq!(name("snapshot_name", " v1.0_a-b ").ok().as_deref(), Some("v1.0_a-b"));
        for bad in ["", ".x", "a/b", "ä", "a b", &"x".repeat(65)] {
            let error = name("service_name", bad).unwrap_err();
            assert!(error.message.starts_with("service_name '"), "{bad}");
        }
    }
}
