//! How a shell looks in results.

use pyro_plugin_guest::{Guest, absent};
use pyro_plugin_sdk::vm::terminals::TerminalInfo;
use pyro_plugin_sdk::vm::types::Error;
use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::Serialize;

/// A shell.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Shell {
    pub workspace_id: String,
    pub shell_id: String,
    pub cwd: String,
    pub cols: u32,
    pub rows: u32,
    /// running or stopped
    pub state: String,
    /// Unix seconds
    pub started_at: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub execution_mode: String,
}

impl Shell {
    /// Says what the guest says of a terminal.
    pub fn new(workspace_id: &str, guest: &Guest, info: TerminalInfo) -> Shell {
        Shell {
            workspace_id: workspace_id.to_owned(),
            shell_id: info.id,
            cwd: info.cwd,
            cols: info.cols,
            rows: info.rows,
            state: info.state,
            started_at: info.started_at,
            ended_at: info.ended_at,
            exit_code: info.exit_code,
            execution_mode: guest.execution_mode(),
        }
    }
}

/// Gives a failure the words of the shell tools.
pub fn failed(workspace_id: &str, shell_id: &str, error: Error) -> ToolError {
    match error.code.as_str() {
        "not_found" => absent("shell", shell_id, workspace_id).with_hint("open one with shell_open"),
        "invalid_state" => ToolError::new("invalid_state", format!("shell {shell_id} is not running")),
        _ => error.into(),
    }
}
