//! `workspace_status`.

use pyro_plugin_guest::{OneWorkspace, open};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, Tool, ToolError};

use crate::shape::Workspace;

/// What a person sees first.
const STATUS: [&str; 13] = [
    "workspace_id",
    "name",
    "environment",
    "state",
    "execution_mode",
    "created_at",
    "last_activity_at",
    "expires_at",
    "labels",
    "workspace_seed.mode",
    "workspace_seed.entry_count",
    "command_count",
    "reset_count",
];

/// Looks at one workspace.
pub struct WorkspaceStatus;

impl Tool for WorkspaceStatus {
    const NAME: &'static str = "workspace_status";
    const DESCRIPTION: &'static str = "Shows a workspace's state, lifetime and counts.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneWorkspace;
    type Output = Workspace;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "status"],
            positionals: vec!["workspace_id"],
            human: Some(Human::fields(&STATUS)),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Workspace, ToolError> {
        let workspace = open(&arguments.workspace_id)?;
        Ok(workspace.info()?.into())
    }
}
