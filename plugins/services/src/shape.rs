//! How a service looks in results.

use pyro_plugin_guest::absent;
use pyro_plugin_sdk::vm::services::ServiceInfo;
use pyro_plugin_sdk::vm::types::Error;
use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::Serialize;

use crate::notes::Notes;

/// What a person sees of one.
pub const FIELDS: [&str; 9] =
    ["service_name", "state", "command", "cwd", "started_at", "ready_at", "ended_at", "exit_code", "stop_reason"];

/// A service.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Service {
    pub workspace_id: String,
    pub service_name: String,
    /// running, exited, stopped or failed
    pub state: String,
    pub command: String,
    pub cwd: String,
    /// Unix seconds
    pub started_at: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it, as SIGKILL
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    pub execution_mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
}

/// How readiness was asked for.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Readiness {
    /// file, tcp, http or command
    pub r#type: String,
    pub target: String,
}

impl Service {
    /// Says what the guest and the notes say of a service.
    pub fn new(workspace_id: &str, execution_mode: String, info: ServiceInfo) -> Service {
        let notes = Notes::read(&info.meta);
        Service {
            workspace_id: workspace_id.to_owned(),
            state: state(info.running, notes.stop_reason.as_deref()).to_owned(),
            service_name: info.name,
            readiness: notes
                .probe
                .as_ref()
                .map(|probe| Readiness { r#type: probe.kind().to_owned(), target: probe.target().to_owned() }),
            command: notes.command,
            cwd: notes.cwd,
            started_at: info.started_at,
            ended_at: info.ended_at,
            exit_code: info.exit_code,
            signal: info.signal,
            pid: info.pid.filter(|_| info.running),
            execution_mode,
            ready_at: notes.ready_at,
            stop_reason: notes.stop_reason.filter(|_| !info.running),
        }
    }
}

fn state(running: bool, stop_reason: Option<&str>) -> &'static str {
    match stop_reason {
        _ if running => "running",
        None => "exited",
        Some("sigterm" | "sigkill" | "workspace_stopped") => "stopped",
        Some(_) => "failed",
    }
}

/// Gives a failure the words of the service tools.
pub fn failed(workspace_id: &str, name: &str, error: Error) -> ToolError {
    match error.code.as_str() {
        "not_found" => absent("service", name, workspace_id).with_hint("list them with service_list"),
        "already_exists" => ToolError::new(
            "already_exists",
            format!("service '{name}' is already running in workspace '{workspace_id}'"),
        )
        .with_hint("stop it with service_stop first"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_follow_how_it_ended() {
        assert_eq!(state(true, None), "running");
        assert_eq!(state(false, None), "exited");
        assert_eq!(state(false, Some("sigkill")), "stopped");
        assert_eq!(state(false, Some("readiness_timeout")), "failed");
        assert_eq!(state(false, Some("process_exited_before_ready")), "failed");
        // A stop that is under way.
        assert_eq!(state(true, Some("sigterm")), "running");
    }
}
