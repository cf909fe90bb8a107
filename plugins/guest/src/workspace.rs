//! Opening a workspace.

use pyro_plugin_sdk::ToolError;
use pyro_plugin_sdk::vm::types::Machine;
use pyro_plugin_sdk::vm::workspaces::{self, Workspace};
use pyro_tree::workspace_path;

/// The tools besides `workspace_create` that return a workspace, for groups that have something to add to it.
pub const WORKSPACE_RETURNING: [&str; 5] =
    ["workspace_update", "workspace_status", "workspace_start", "workspace_stop", "workspace_reset"];

/// A workspace whose machine runs.
pub struct Guest {
    workspace: Workspace,
    machine: Machine,
}

impl Guest {
    /// Opens a started workspace for a tool.
    ///
    /// # Errors
    /// `not_found`, and `invalid_state` when it is stopped.
    pub fn open(id: &str, tool: &str) -> Result<Guest, ToolError> {
        let workspace = open(id)?;
        let machine = workspace.machine().map_err(|error| match error.code.as_str() {
            "invalid_state" => {
                ToolError::new("invalid_state", format!("workspace {id} must be in 'started' state before {tool}"))
                    .with_hint(format!("start it with workspace_start, or on the host: pyro workspace start {id}"))
            }
            _ => error.into(),
        })?;
        Ok(Guest { workspace, machine })
    }

    /// Its machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The workspace itself.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// How commands run in it.
    pub fn execution_mode(&self) -> String {
        self.machine.info().execution_mode
    }
}

/// Opens a workspace in any state.
///
/// # Errors
/// `not_found`, `expired`.
pub fn open(id: &str) -> Result<Workspace, ToolError> {
    workspaces::open(id).map_err(|error| match error.code.as_str() {
        "not_found" => ToolError::new("not_found", format!("workspace '{id}' does not exist"))
            .with_hint("list the workspaces with workspace_list"),
        _ => error.into(),
    })
}

/// Returns the absolute path that a caller's path means.
///
/// # Errors
/// `invalid_argument` for a path outside the workspace.
pub fn path(path: &str) -> Result<String, ToolError> {
    workspace_path(path).map_err(|error| invalid(error.to_string()))
}

/// Returns the error of something that a workspace does not have, as `service 'x' does not exist in workspace 'y'`.
pub fn absent(what: &str, name: &str, workspace_id: &str) -> ToolError {
    ToolError::new("not_found", format!("{what} '{name}' does not exist in workspace '{workspace_id}'"))
}

/// Returns the error of an argument that cannot be.
pub fn invalid(message: impl Into<String>) -> ToolError {
    ToolError::new("invalid_argument", message)
}
