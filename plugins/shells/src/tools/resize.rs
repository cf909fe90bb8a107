//! `shell_resize`.

use pyro_plugin_guest::Guest;
use pyro_plugin_sdk::vm::terminals;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::shape::{Shell, failed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Shell
    pub shell_id: String,
    /// Columns
    #[schemars(range(min = 20, max = 500))]
    pub cols: u32,
    /// Rows
    #[schemars(range(min = 5, max = 200))]
    pub rows: u32,
}

/// Changes the size of a shell's terminal.
pub struct ShellResize;

impl Tool for ShellResize {
    const NAME: &'static str = "shell_resize";
    const DESCRIPTION: &'static str = "Changes the size of a shell's terminal.";
    const HINTS: Hints = Hints { idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Shell;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "shell", "resize"],
            positionals: vec!["workspace_id", "shell_id"],
            human: Some(Human::summary("{cols} by {rows}")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Shell, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let info = terminals::resize(guest.machine(), &arguments.shell_id, arguments.cols, arguments.rows)
            .map_err(|error| failed(&arguments.workspace_id, &arguments.shell_id, error))?;
        Ok(Shell::new(&arguments.workspace_id, &guest, info))
    }
}
