//! `workspace_exec_stop`.

use pyro_plugin_guest::Guest;
use pyro_plugin_sdk::vm::services;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::command::{State, failed, handle, name};

/// Between TERM and KILL.
const GRACE_MS: u32 = 5_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// From workspace_exec
    pub handle: String,
}

/// Stops a background command.
pub struct ExecStop;

impl Tool for ExecStop {
    const NAME: &'static str = "workspace_exec_stop";
    const DESCRIPTION: &'static str =
        "Stops a background command: TERM, and KILL after 5 s. Its output stays readable.";
    const HINTS: Hints = Hints { destructive: Some(true), idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = State;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "background", "stop"],
            positionals: vec!["workspace_id", "handle"],
            human: Some(Human::summary("{handle} is {state}, exit code {exit_code}, signal {signal}")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<State, ToolError> {
        let handle = handle(&arguments.handle)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let told = |error| failed(&guest, &arguments.workspace_id, &handle, error);
        let name = name(&handle);
        let mut info = services::status(guest.machine(), &name).map_err(told)?;
        if info.running {
            services::stop(guest.machine(), &name, GRACE_MS).map_err(told)?;
            info = services::annotate(guest.machine(), &name, &[("stopped".to_owned(), "true".to_owned())])
                .map_err(told)?;
        }
        Ok(State::new(&arguments.workspace_id, &handle, info))
    }
}
