//! How a snapshot looks in results, and what it may be called.

use pyro_plugin_guest::invalid;
use pyro_plugin_sdk::vm::types::Error;
use pyro_plugin_sdk::vm::workspaces::SnapshotInfo;
use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::Serialize;

/// The tree that a workspace began with.
pub const BASELINE: &str = "baseline";

/// A saved tree.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Snapshot {
    pub workspace_id: String,
    pub snapshot_name: String,
    /// baseline or named
    pub kind: String,
    /// Unix seconds
    pub created_at: f64,
    pub entry_count: u64,
    pub bytes_written: u64,
    pub deletable: bool,
}

impl Snapshot {
    /// Says what the host says of a snapshot.
    pub fn new(workspace_id: &str, info: SnapshotInfo) -> Snapshot {
        Snapshot {
            workspace_id: workspace_id.to_owned(),
            deletable: info.kind != BASELINE,
            snapshot_name: info.name,
            kind: info.kind,
            created_at: info.created_at,
            entry_count: info.entry_count,
            bytes_written: info.bytes,
        }
    }
}

/// Returns the name as it is kept.
pub fn name(name: &str) -> Result<String, ToolError> {
    let name = name.trim();
    let mut bytes = name.bytes();
    let valid = name.len() <= 64
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if !valid {
        return Err(invalid(format!("snapshot_name '{name}' must match ^[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}$")));
    }
    Ok(name.to_owned())
}

/// Gives a failure the words of the snapshot tools.
pub fn failed(workspace_id: &str, name: &str, error: Error) -> ToolError {
    match error.code.as_str() {
        "not_found" => {
            ToolError::new("not_found", format!("snapshot '{name}' does not exist in workspace '{workspace_id}'"))
                .with_hint("list them with snapshot_list")
        }
        "already_exists" => {
            ToolError::new("already_exists", format!("snapshot '{name}' already exists in workspace '{workspace_id}'"))
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn names_are_checked_before_anything_is_done() {
        assert_eq!(name(" v1.0_a-b ").ok().as_deref(), Some("v1.0_a-b"));
        for bad in ["", ".x", "a/b", "ä", "a b", &"x".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
