//! `shell_close`.

use pyro_plugin_guest::Guest;
use pyro_plugin_sdk::vm::terminals;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::shape::{Shell, failed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Shell
    pub shell_id: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    #[serde(flatten)]
    pub shell: Shell,
    pub closed: bool,
}

/// Ends a shell and forgets it.
pub struct ShellClose;

impl Tool for ShellClose {
    const NAME: &'static str = "shell_close";
    const DESCRIPTION: &'static str = "Ends a shell and what runs in it.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "shell", "close"],
            positionals: vec!["workspace_id", "shell_id"],
            human: Some(Human::summary("shell {shell_id} is closed")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let info = terminals::close(guest.machine(), &arguments.shell_id)
            .map_err(|error| failed(&arguments.workspace_id, &arguments.shell_id, error))?;
        Ok(Output { shell: Shell::new(&arguments.workspace_id, &guest, info), closed: true })
    }
}
