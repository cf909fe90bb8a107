//! `workspace_status`.

use pyro_plugin_guest::{OneWorkspace, open};
use pyro_plugin_sdk::{Call, Cli, Hints, Tool, ToolError};

use crate::shape::Workspace;

/// Looks at one workspace.
pub struct WorkspaceStatus;

impl Tool for WorkspaceStatus {
    const NAME: &'static str = "workspace_status";
    const DESCRIPTION: &'static str = "Shows a workspace's state, lifetime and counts.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneWorkspace;
    type Output = Workspace;

    fn cli() -> Option<Cli> {
        Some(Cli { path: vec!["workspace", "status"], positionals: vec!["workspace_id"], ..Cli::default() })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Workspace, ToolError> {
        let workspace = open(&arguments.workspace_id)?;
        Ok(workspace.info()?.into())
    }
}
