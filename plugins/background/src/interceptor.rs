//! `background` in `workspace_exec`.

use std::collections::BTreeMap;

use pyro_plugin_guest::{Guest, check_command, check_kept_command, directory, invalid, workspace_root};
use pyro_plugin_sdk::{Amendment, Call, Decision, Human, Interceptor, JsonSchema, ToolError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::command;

/// The tool that runs commands.
const EXEC: &str = "workspace_exec";
/// What a command that has not ended has not yet.
const NOT_YET: [&str; 9] = [
    "stdout",
    "stderr",
    "exit_code",
    "timed_out",
    "stdout_bytes",
    "stderr_bytes",
    "truncated",
    "encoding_lossy",
    "duration_ms",
];

/// What `workspace_exec` takes besides.
#[derive(Debug, Deserialize, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct Added {
    /// Returns at once with a handle, for workspace_exec_output and workspace_exec_stop
    #[serde(default)]
    background: bool,
}

/// What it returns then.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Started {
    /// Of a background command
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
}

/// What this needs to know of the tool's arguments.
#[derive(Debug, Deserialize)]
struct Arguments {
    workspace_id: String,
    command: String,
    #[serde(default)]
    background: bool,
    #[serde(default = "workspace_root")]
    cwd: String,
    #[serde(default)]
    env: BTreeMap<String, String>,
    stdin: Option<Value>,
    timeout_seconds: Option<Value>,
}

/// Starts background commands.
pub struct Background;

impl Interceptor for Background {
    fn amendments() -> Vec<Amendment> {
        let human = Human { text: Some("handle"), summary: Some("runs in the background"), ..Human::default() };
        vec![Amendment::of(EXEC).input::<Added>().output::<Started>().answers(&NOT_YET, "handle", &human)]
    }

    fn before(_tool: &str, arguments: &Map<String, Value>, _call: &Call) -> Result<Decision, ToolError> {
        let arguments: Arguments = serde_json::from_value(Value::Object(arguments.clone()))
            .map_err(|error| invalid(format!("{EXEC}: {error}")))?;
        if !arguments.background {
            return Ok(Decision::Proceed);
        }
        check(&arguments)?;
        let cwd = directory(&arguments.cwd)?;
        let guest = Guest::open(&arguments.workspace_id, EXEC)?;
        let handle = command::start(&guest, &arguments.command, &cwd, arguments.env.into_iter().collect())?;
        let info = guest.machine().info();
        let answer = json!({
            "workspace_id": arguments.workspace_id,
            "environment": info.environment,
            "environment_version": info.environment_version,
            "command": arguments.command,
            "execution_mode": info.execution_mode,
            "cwd": cwd,
            "handle": handle,
        });
        match answer {
            Value::Object(answer) => Ok(Decision::Answer(answer)),
            _ => Err(ToolError::new("internal", "an object is no object")),
        }
    }
}

/// Refuses what a command without a caller cannot have.
fn check(arguments: &Arguments) -> Result<(), ToolError> {
    check_command(&arguments.command)?;
    check_kept_command("command", &[&arguments.command])?;
    if arguments.stdin.is_some() {
        return Err(invalid("stdin and background cannot be used together")
            .with_hint("write the input to a file and redirect it: command < file"));
    }
    if arguments.timeout_seconds.is_some() {
        return Err(invalid("timeout_seconds and background cannot be used together")
            .with_hint("end it with workspace_exec_stop, or run it under timeout(1)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(extra: Value) -> Arguments {
        let mut all = json!({ "workspace_id": "w", "command": "make", "background": true });
        if let (Value::Object(all), Value::Object(extra)) = (&mut all, extra) {
            all.extend(extra);
        }
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn what_needs_a_caller_is_refused() {
        assert_eq!(check(&arguments(json!({ "cwd": "src", "env": { "A": "b" } }))), Ok(()));
        for (extra, word) in [
            (json!({ "stdin": "" }), "stdin and"),
            (json!({ "timeout_seconds": 5 }), "timeout_seconds and"),
            (json!({ "command": " " }), "command is empty"),
            (json!({ "command": "x".repeat(40_000) }), "command: 40000 bytes"),
        ] {
            let error = check(&arguments(extra)).unwrap_err();
            assert!(error.message.starts_with(word) && error.hint.is_some(), "{error:?}");
        }
    }

    #[test]
    fn an_answer_says_what_it_leaves_out() {
        let amendment = serde_json::to_value(&Background::amendments()[0]).unwrap();
        let left_out: Vec<String> =
            serde_json::from_str(amendment["meta"]["optional_results"].as_str().unwrap()).unwrap();
        assert_eq!(left_out, NOT_YET);
        assert_eq!(amendment["input_properties"]["background"]["default"], json!(false));
    }
}
