//! `workspace_stop`.

use pyro_plugin_guest::{OneWorkspace, open};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, Tool, ToolError};

use crate::shape::Workspace;

/// Stops a workspace; one that is stopped stays as it is.
pub struct WorkspaceStop;

impl Tool for WorkspaceStop {
    const NAME: &'static str = "workspace_stop";
    const DESCRIPTION: &'static str = "Stops a workspace and what runs in it; files are kept.";
    const HINTS: Hints = Hints { destructive: Some(true), idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = OneWorkspace;
    type Output = Workspace;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "stop"],
            positionals: vec!["workspace_id"],
            human: Some(Human::summary("workspace {workspace_id} is {state}")),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Workspace, ToolError> {
        let workspace = open(&arguments.workspace_id)?;
        workspace.stop()?;
        Ok(workspace.info()?.into())
    }
}
