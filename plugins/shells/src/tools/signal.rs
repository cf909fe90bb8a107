//! `shell_signal`.

use pyro_plugin_guest::{Guest, invalid};
use pyro_plugin_sdk::vm::terminals;
use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::shape::{Shell, failed};

const SIGNALS: [&str; 7] = ["INT", "HUP", "TERM", "KILL", "QUIT", "TSTP", "CONT"];

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Shell
    pub shell_id: String,
    /// INT, HUP, TERM, KILL, QUIT, TSTP or CONT
    #[serde(default = "interrupt")]
    pub signal_name: String,
}

fn interrupt() -> String {
    "INT".to_owned()
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    #[serde(flatten)]
    pub shell: Shell,
    pub signal: String,
}

/// Signals the job in the foreground of a shell.
pub struct ShellSignal;

impl Tool for ShellSignal {
    const NAME: &'static str = "shell_signal";
    const DESCRIPTION: &'static str = "Signals the shell's foreground job.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "shell", "signal"],
            positionals: vec!["workspace_id", "shell_id"],
            flags: vec![Flag::plain("signal", "signal_name").value_name("NAME")],
            human: Some(Human::summary("{signal} sent, the shell is {state}")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let signal = signal(&arguments.signal_name)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let info = terminals::signal(guest.machine(), &arguments.shell_id, signal)
            .map_err(|error| failed(&arguments.workspace_id, &arguments.shell_id, error))?;
        Ok(Output { shell: Shell::new(&arguments.workspace_id, &guest, info), signal: signal.to_owned() })
    }
}

/// The signal of a name in any case, with or without `SIG`.
fn signal(name: &str) -> Result<&'static str, ToolError> {
    let upper = name.trim().to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .into_iter()
        .find(|known| *known == short)
        .ok_or_else(|| invalid(format!("unknown signal `{name}`; expected one of: {}", SIGNALS.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::signal;

    #[test]
    fn names_are_read_in_any_form() {
        for (name, known) in [("INT", "INT"), ("term", "TERM"), (" SIGkill ", "KILL")] {
            assert_eq!(signal(name).ok(), Some(known));
        }
        assert!(signal("STOPPED").unwrap_err().message.contains("expected one of"));
    }
}
