//! `workspace_reset`.

use pyro_plugin_guest::{absent, open};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use pyro_tree::WORKSPACE;
use serde::{Deserialize, Serialize};

use crate::shape::Workspace;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Saved tree
    #[serde(default = "baseline")]
    pub snapshot: String,
}

fn baseline() -> String {
    "baseline".to_owned()
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    #[serde(flatten)]
    pub workspace: Workspace,
    pub workspace_reset: Reset,
}

/// The tree that was restored.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Reset {
    pub snapshot_name: String,
    /// baseline or named
    pub kind: String,
    pub destination: String,
    pub entry_count: u64,
    pub bytes_written: u64,
}

/// Makes a workspace as it was.
pub struct WorkspaceReset;

impl Tool for WorkspaceReset {
    const NAME: &'static str = "workspace_reset";
    const DESCRIPTION: &'static str =
        "Recreates a workspace from its environment with a saved /workspace; everything else in it is lost.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "reset"],
            positionals: vec!["workspace_id"],
            human: Some(Human::summary(
                "workspace {workspace_id} is {state} with snapshot {workspace_reset.snapshot_name}",
            )),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let id = &arguments.workspace_id;
        let name = arguments.snapshot.trim();
        let workspace = open(id)?;
        let snapshot = workspace.reset(Some(name)).map_err(|error| match error.code.as_str() {
            "not_found" => absent("snapshot", name, id),
            _ => error.into(),
        })?;
        Ok(Output {
            workspace: workspace.info()?.into(),
            workspace_reset: Reset {
                snapshot_name: snapshot.name,
                kind: snapshot.kind,
                destination: WORKSPACE.to_owned(),
                entry_count: snapshot.entry_count,
                bytes_written: snapshot.bytes,
            },
        })
    }
}
