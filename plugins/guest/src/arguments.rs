//! Arguments that several tools take.

use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::Deserialize;

use crate::workspace::invalid;

/// Characters of a name that is kept.
const MAX_NAME: usize = 64;

/// Bytes of the command lines that are kept with a process that outlives its call. The guest keeps 32 KiB with each, and
/// there is more to keep than they: its directory, the names of its secrets, how it ended.
const MAX_KEPT_COMMAND: usize = 26 * 1024;

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

/// Refuses command lines that are too long to be kept with the process that they are of, before it is started;
/// `arguments` names them in the error.
///
/// # Errors
/// `invalid_argument`.
pub fn check_kept_command(arguments: &str, lines: &[&str]) -> Result<(), ToolError> {
    let bytes: usize = lines.iter().map(|line| line.len()).sum();
    if bytes > MAX_KEPT_COMMAND {
        let message = format!("{arguments}: {bytes} bytes are more than the {MAX_KEPT_COMMAND} kept with a process");
        return Err(invalid(message).with_hint("write it to a file in /workspace and run that"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MAX_KEPT_COMMAND, check_kept_command, name};

    #[test]
    fn a_command_that_cannot_be_kept_is_refused() {
        let longest = "x".repeat(MAX_KEPT_COMMAND);
        assert_eq!(check_kept_command("command", &[&longest]), Ok(()));
        let error = check_kept_command("command", &[&longest, "y"]).unwrap_err();
        assert_eq!(error.code, "invalid_argument");
        assert!(error.message.starts_with("command: 26625 bytes"), "{}", error.message);
        assert!(error.hint.is_some_and(|hint| hint.contains("file in /workspace")));
    }

    #[test]
    fn names_are_checked_before_anything_is_done() {
        assert_eq!(name("snapshot_name", " v1.0_a-b ").ok().as_deref(), Some("v1.0_a-b"));
        for bad in ["", ".x", "a/b", "ä", "a b", &"x".repeat(65)] {
            let error = name("service_name", bad).unwrap_err();
            assert!(error.message.starts_with("service_name '"), "{bad}");
        }
    }
}
