//! `snapshot_delete`.

use pyro_plugin_guest::{invalid, name, open};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::shape::{BASELINE, failed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Snapshot, not the baseline
    pub snapshot_name: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub snapshot_name: String,
    pub deleted: bool,
}

/// Deletes a saved tree.
pub struct SnapshotDelete;

impl Tool for SnapshotDelete {
    const NAME: &'static str = "snapshot_delete";
    const DESCRIPTION: &'static str = "Deletes a snapshot.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "snapshot", "delete"],
            positionals: vec!["workspace_id", "snapshot_name"],
            human: Some(Human::summary("snapshot {snapshot_name} is deleted")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let name = name("snapshot_name", &arguments.snapshot_name)?;
        if name == BASELINE {
            return Err(invalid("cannot delete the baseline snapshot"));
        }
        let workspace = open(&arguments.workspace_id)?;
        workspace.delete_snapshot(&name).map_err(|error| failed(&arguments.workspace_id, &name, error))?;
        Ok(Output { workspace_id: arguments.workspace_id, snapshot_name: name, deleted: true })
    }
}
