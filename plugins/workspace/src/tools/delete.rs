//! `workspace_delete`.

use pyro_plugin_guest::{OneWorkspace, open};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Serialize;

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub deleted: bool,
    /// explicit_delete
    pub reason: String,
}

/// Removes a workspace.
pub struct WorkspaceDelete;

impl Tool for WorkspaceDelete {
    const NAME: &'static str = "workspace_delete";
    const DESCRIPTION: &'static str = "Deletes a workspace with all its files.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = OneWorkspace;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "delete"],
            positionals: vec!["workspace_id"],
            human: Some(Human::summary("workspace {workspace_id} is deleted")),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Output, ToolError> {
        match open(&arguments.workspace_id) {
            Ok(workspace) => workspace.delete()?,
            // Its time was over, so that looking at it deleted it: that is what was asked for.
            Err(error) if error.code == "expired" => {}
            Err(error) => return Err(error),
        }
        Ok(Output { workspace_id: arguments.workspace_id, deleted: true, reason: "explicit_delete".to_owned() })
    }
}
