//! `snapshot_create`.

use pyro_plugin_guest::{Guest, invalid, name};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::shape::{BASELINE, Snapshot, failed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// New name: letters, digits, `.`, `_`, `-`
    pub snapshot_name: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub snapshot: Snapshot,
    pub execution_mode: String,
}

/// Saves the tree of a workspace.
pub struct SnapshotCreate;

impl Tool for SnapshotCreate {
    const NAME: &'static str = "snapshot_create";
    const DESCRIPTION: &'static str = "Saves /workspace under a name, for workspace_reset.";
    const HINTS: Hints = Hints::CONTAINED;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "snapshot", "create"],
            positionals: vec!["workspace_id", "snapshot_name"],
            human: Some(Human::summary(
                "snapshot {snapshot.snapshot_name}: {snapshot.entry_count} entries, {snapshot.bytes_written} bytes",
            )),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let name = name("snapshot_name", &arguments.snapshot_name)?;
        if name == BASELINE {
            return Err(invalid("snapshot_name 'baseline' is reserved"));
        }
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let info =
            guest.workspace().create_snapshot(&name).map_err(|error| failed(&arguments.workspace_id, &name, error))?;
        Ok(Output {
            snapshot: Snapshot::new(&arguments.workspace_id, info),
            execution_mode: guest.execution_mode(),
            workspace_id: arguments.workspace_id,
        })
    }
}
