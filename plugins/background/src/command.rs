//! A background command: a process that the guest agent keeps, under a name that no service can have.

use std::hash::{BuildHasher, Hasher, RandomState};

use pyro_plugin_guest::{Guest, absent, invalid};
use pyro_plugin_sdk::vm::exec::Program;
use pyro_plugin_sdk::vm::services::{self, ServiceConfig, ServiceInfo};
use pyro_plugin_sdk::vm::types::Error;
use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::Serialize;

/// What its name begins with. Services have names without it, and the host does not count what has it.
const MARK: char = '@';
/// Bytes kept of its output.
const OUTPUT_LIMIT: u64 = 4 << 20;
/// Hexadecimal digits of a handle.
const DIGITS: usize = 12;
/// Handles that an error lists.
const LISTED: usize = 8;

/// What is known about a background command.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct State {
    pub workspace_id: String,
    pub handle: String,
    pub command: String,
    /// running, exited or stopped
    pub state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it, as SIGKILL
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Unix seconds
    pub started_at: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<f64>,
}

impl State {
    /// Says what the guest says of it.
    pub fn new(workspace_id: &str, handle: &str, info: ServiceInfo) -> State {
        let note = |key: &str| info.meta.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        let state = match (info.running, note("stopped")) {
            (true, _) => "running",
            (false, None) => "exited",
            (false, Some(_)) => "stopped",
        };
        State {
            workspace_id: workspace_id.to_owned(),
            handle: handle.to_owned(),
            command: note("command").unwrap_or_default(),
            state: state.to_owned(),
            exit_code: info.exit_code,
            signal: info.signal,
            started_at: info.started_at,
            ended_at: info.ended_at,
        }
    }
}

/// Starts a command line; returns its handle.
///
/// # Errors
/// Those of the guest: nothing was started.
pub fn start(guest: &Guest, line: &str, cwd: &str, env: Vec<(String, String)>) -> Result<String, ToolError> {
    let handle = new_handle();
    let config = ServiceConfig {
        name: name(&handle),
        program: program(line),
        cwd: cwd.to_owned(),
        env,
        log_limit_bytes: OUTPUT_LIMIT,
        meta: vec![("command".to_owned(), line.to_owned())],
    };
    services::start(guest.machine(), &config)?;
    Ok(handle)
}

/// One output in the order it was written, with line numbers and syntax errors of the line as it was given.
fn program(line: &str) -> Program {
    let words = ["/bin/sh", "-c", r#"exec 2>&1; exec /bin/sh -lc "$1""#, "sh", line];
    Program::Argv(words.map(str::to_owned).into())
}

/// Returns the name of a command's process.
pub fn name(handle: &str) -> String {
    format!("{MARK}{handle}")
}

/// Returns a handle as it was given out.
///
/// # Errors
/// `invalid_argument` for what cannot be one.
pub fn handle(text: &str) -> Result<String, ToolError> {
    let text = text.trim();
    if text.len() != DIGITS || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        let shown: String = text.chars().take(40).collect();
        return Err(invalid(format!("handle '{shown}' is not {DIGITS} hexadecimal digits"))
            .with_hint("pass the handle that workspace_exec returned with background"));
    }
    Ok(text.to_owned())
}

fn new_handle() -> String {
    // The standard library keys its hashers with random bytes of the host.
    let mut text = format!("{:016x}", RandomState::new().build_hasher().finish());
    text.truncate(DIGITS);
    text
}

/// Gives a failure the words of these tools.
pub fn failed(guest: &Guest, workspace_id: &str, handle: &str, error: Error) -> ToolError {
    if error.code != "not_found" {
        return error.into();
    }
    let mut known: Vec<String> = services::list(guest.machine())
        .unwrap_or_default()
        .into_iter()
        .filter_map(|info| info.name.strip_prefix(MARK).map(str::to_owned))
        .collect();
    known.truncate(LISTED);
    absent("background command", handle, workspace_id).with_hint(if known.is_empty() {
        "start one with workspace_exec and background; all end when the workspace stops".to_owned()
    } else {
        format!("the workspace has {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_checked_before_anything_is_asked() {
        let made = new_handle();
        assert_eq!(handle(&made), Ok(made.clone()));
        assert_ne!(made, new_handle());
        for bad in ["", "xyz", "0123456789a", "0123456789AB", "@0123456789a", "../../../etc"] {
            assert_eq!(handle(bad).unwrap_err().code, "invalid_argument", "{bad}");
        }
    }

    #[test]
    fn no_service_can_have_the_name_of_a_command() {
        assert!(pyro_plugin_guest::name("service_name", &name("0123456789ab")).is_err());
    }

    #[test]
    fn states_follow_how_it_ended() {
        let state = |running, stopped: bool| {
            let meta = stopped.then(|| ("stopped".to_owned(), "true".to_owned())).into_iter().collect();
            let info = ServiceInfo {
                name: "@1".to_owned(),
                pid: None,
                running,
                started_at: 1.0,
                ended_at: None,
                exit_code: None,
                signal: None,
                meta,
            };
            State::new("w", "1", info).state
        };
        assert_eq!((state(true, false), state(true, true)), ("running".to_owned(), "running".to_owned()));
        assert_eq!((state(false, false), state(false, true)), ("exited".to_owned(), "stopped".to_owned()));
    }
}
