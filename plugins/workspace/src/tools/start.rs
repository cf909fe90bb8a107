//! `workspace_start`.

use pyro_plugin_guest::{OneWorkspace, open};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, Tool, ToolError};

use crate::shape::Workspace;

/// Starts a workspace; one that runs stays as it is.
pub struct WorkspaceStart;

impl Tool for WorkspaceStart {
    const NAME: &'static str = "workspace_start";
    const DESCRIPTION: &'static str = "Starts a stopped workspace with its disk as it was.";
    const HINTS: Hints = Hints { idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = OneWorkspace;
    type Output = Workspace;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "start"],
            positionals: vec!["workspace_id"],
            human: Some(Human::summary("workspace {workspace_id} is {state}")),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Workspace, ToolError> {
        let workspace = open(&arguments.workspace_id)?;
        workspace.start()?;
        Ok(workspace.info()?.into())
    }
}
