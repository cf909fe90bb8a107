//! `snapshot_list`.

use pyro_plugin_guest::{OneWorkspace, open};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Serialize;

use crate::shape::Snapshot;

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub count: usize,
    /// Baseline first, then newest first
    pub snapshots: Vec<Snapshot>,
}

/// Lists saved trees.
pub struct SnapshotList;

impl Tool for SnapshotList {
    const NAME: &'static str = "snapshot_list";
    const DESCRIPTION: &'static str = "Lists a workspace's snapshots.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneWorkspace;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "snapshot", "list"],
            positionals: vec!["workspace_id"],
            human: Some(Human::table(
                "snapshots",
                &["snapshot_name", "kind", "created_at", "entry_count", "bytes_written"],
            )),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Output, ToolError> {
        let id = arguments.workspace_id;
        let snapshots: Vec<Snapshot> =
            open(&id)?.snapshots()?.into_iter().map(|info| Snapshot::new(&id, info)).collect();
        Ok(Output { workspace_id: id, count: snapshots.len(), snapshots })
    }
}
