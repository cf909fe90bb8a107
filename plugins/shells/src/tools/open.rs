//! `shell_open`.

use pyro_plugin_guest::{Guest, workspace_root};
use pyro_plugin_sdk::vm::terminals;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::shape::Shell;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Existing directory in /workspace
    #[serde(default = "workspace_root")]
    pub cwd: String,
    /// Columns
    #[serde(default = "cols")]
    #[schemars(range(min = 20, max = 500))]
    pub cols: u32,
    /// Rows
    #[serde(default = "rows")]
    #[schemars(range(min = 5, max = 200))]
    pub rows: u32,
}

fn cols() -> u32 {
    120
}

fn rows() -> u32 {
    30
}

/// Opens a shell on a terminal of its own.
pub struct ShellOpen;

impl Tool for ShellOpen {
    const NAME: &'static str = "shell_open";
    const DESCRIPTION: &'static str = "Opens an interactive shell that keeps its state between calls.";
    const HINTS: Hints = Hints::CONTAINED;
    type Arguments = Arguments;
    type Output = Shell;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "shell", "open"],
            positionals: vec!["workspace_id"],
            id: Some("shell_id"),
            human: Some(Human::fields(&["shell_id", "cwd", "cols", "rows", "state"])),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Shell, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let cwd = pyro_plugin_guest::path(&arguments.cwd)?;
        let info = terminals::open(guest.machine(), &cwd, arguments.cols, arguments.rows, &[])?;
        Ok(Shell::new(&arguments.workspace_id, &guest, info))
    }
}
