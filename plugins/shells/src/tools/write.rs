//! `shell_write`.

use pyro_plugin_guest::Guest;
use pyro_plugin_sdk::vm::terminals;
use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::shape::{Shell, failed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Shell
    pub shell_id: String,
    /// Text to type
    pub input: String,
    /// Press Enter after it
    #[serde(default = "yes")]
    pub append_newline: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    #[serde(flatten)]
    pub shell: Shell,
    /// Characters, without the newline
    pub input_length: u64,
    pub append_newline: bool,
}

/// Types into a shell.
pub struct ShellWrite;

impl Tool for ShellWrite {
    const NAME: &'static str = "shell_write";
    const DESCRIPTION: &'static str = "Types text into a shell.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "shell", "write"],
            positionals: vec!["workspace_id", "shell_id"],
            flags: vec![
                Flag::plain("input", "input"),
                Flag::set("no-newline", "append_newline", false).help("Do not press Enter after it"),
            ],
            human: Some(Human::summary("{input_length} characters typed")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let mut data = arguments.input.clone().into_bytes();
        if arguments.append_newline {
            data.push(b'\n');
        }
        let info = terminals::write(guest.machine(), &arguments.shell_id, &data)
            .map_err(|error| failed(&arguments.workspace_id, &arguments.shell_id, error))?;
        Ok(Output {
            shell: Shell::new(&arguments.workspace_id, &guest, info),
            input_length: arguments.input.chars().count() as u64,
            append_newline: arguments.append_newline,
        })
    }
}
