//! `service_start`.

use pyro_plugin_guest::{Guest, check_kept_command, invalid, name, path, workspace_root};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::notes::Notes;
use crate::readiness::Probe;
use crate::shape::{FIELDS, Service};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Letters, digits, `.`, `_`, `-`
    pub service_name: String,
    /// Shell line
    pub command: String,
    /// Directory in /workspace
    #[serde(default = "workspace_root")]
    pub cwd: String,
    /// Ready when this file exists
    pub ready_file: Option<String>,
    /// Ready when HOST:PORT accepts, from inside the guest
    pub ready_tcp: Option<String>,
    /// Ready when a GET answers 200 to 399
    pub ready_http: Option<String>,
    /// Ready when this shell line ends with 0
    pub ready_command: Option<String>,
    /// Failed when not ready by then
    #[serde(default = "ready_timeout_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub ready_timeout_seconds: u32,
    /// Between two looks
    #[serde(default = "ready_interval_ms")]
    #[schemars(range(min = 10, max = 60_000))]
    pub ready_interval_ms: u32,
}

fn ready_timeout_seconds() -> u32 {
    30
}

fn ready_interval_ms() -> u32 {
    500
}

/// Starts a service.
pub struct ServiceStart;

impl Tool for ServiceStart {
    const NAME: &'static str = "service_start";
    const DESCRIPTION: &'static str = "Starts a long-running process and waits until it is ready or failed.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Service;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "service", "start"],
            positionals: vec!["workspace_id", "service_name"],
            trailing: Some("command"),
            human: Some(Human::fields(&FIELDS)),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, call: &Call) -> Result<Service, ToolError> {
        let name = name("service_name", &arguments.service_name)?;
        let notes = notes(&arguments)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let info = crate::start::start(&guest, &arguments.workspace_id, &name, &notes, call)?;
        Ok(Service::new(&arguments.workspace_id, guest.execution_mode(), info))
    }
}

fn notes(arguments: &Arguments) -> Result<Notes, ToolError> {
    if arguments.command.trim().is_empty() {
        return Err(invalid("command must not be empty"));
    }
    match &arguments.ready_command {
        None => check_kept_command("command", &[&arguments.command])?,
        Some(ready) => check_kept_command("command and ready_command", &[&arguments.command, ready])?,
    }
    Ok(Notes {
        command: arguments.command.clone(),
        cwd: path(&arguments.cwd)?,
        probe: Probe::new(
            arguments.ready_file.as_deref(),
            arguments.ready_tcp.as_deref(),
            arguments.ready_http.as_deref(),
            arguments.ready_command.as_deref(),
        )?,
        ready_timeout_seconds: arguments.ready_timeout_seconds,
        ready_interval_ms: arguments.ready_interval_ms,
        ..Notes::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_is_refused_before_anything_is_started() {
        let with = |command: &str, ready: Option<&str>| {
            let all = serde_json::json!({
                "workspace_id": "w", "service_name": "web", "command": command, "ready_command": ready,
            });
            notes(&serde_json::from_value(all).unwrap())
        };
        assert!(with("serve", Some("test -e up")).is_ok());
        let long = "x".repeat(20_000);
        assert!(with(&long, None).is_ok());
        assert_eq!(with(&long.repeat(2), None).unwrap_err().code, "invalid_argument");
        let error = with(&long, Some(&long)).unwrap_err();
        assert!(error.message.starts_with("command and ready_command: 40000 bytes"), "{}", error.message);
    }
}
