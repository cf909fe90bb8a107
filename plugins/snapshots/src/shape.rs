//! How a snapshot looks in results, and what it may be called.

use pyro_plugin_guest::absent;
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

/// Gives a failure the words of the snapshot tools.
pub fn failed(workspace_id: &str, name: &str, error: Error) -> ToolError {
    match error.code.as_str() {
        "not_found" => absent("snapshot", name, workspace_id).with_hint("list them with snapshot_list"),
        "already_exists" => {
            ToolError::new("already_exists", format!("snapshot '{name}' already exists in workspace '{workspace_id}'"))
        }
        _ => error.into(),
    }
}
