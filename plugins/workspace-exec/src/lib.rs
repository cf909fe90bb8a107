//! `workspace_exec`: one command in a started workspace.
//!
//! A component of its own, apart from `vm_run`: a profile with that alone then asks for no rights over workspaces.

use std::collections::BTreeMap;

use pyro_plugin_guest::{Guest, Ran, ShellLine, check_command, defaults, directory, workspace_root};
use pyro_plugin_sdk::host::log::{self, Level};
use pyro_plugin_sdk::vm::exec::{self, Input};
use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

pyro_plugin_sdk::export!(WorkspaceExec);

/// Runs a command line in a workspace.
struct WorkspaceExec;

impl Tool for WorkspaceExec {
    const NAME: &'static str = "workspace_exec";
    const DESCRIPTION: &'static str = "Runs a command line in a started workspace. A non-zero exit code or a time-out \
        is a result.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "exec"],
            positionals: vec!["workspace_id"],
            trailing: Some("command"),
            flags: vec![Flag::plain("env", "env").value_name("KEY=VALUE")],
            omit: vec!["stdin"],
            stdin: true,
            streams: true,
            exit_code: Some("exit_code"),
            human: Some(Human {
                text: Some("stdout"),
                error_text: Some("stderr"),
                summary: Some("command {sequence} ended with {exit_code} after {duration_ms} ms"),
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, call: &Call) -> Result<Output, ToolError> {
        let config: Config = call.config()?;
        check_command(&arguments.command)?;
        let cwd = directory(&arguments.cwd)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let line = ShellLine {
            command: &arguments.command,
            cwd: Some(&cwd),
            env: arguments.env.into_iter().collect(),
            stdin: arguments.stdin.map_or(Input::Caller, |text| Input::Bytes(text.into_bytes())),
            timeout_seconds: arguments.timeout_seconds,
            keep_bytes: config.keep_bytes,
        };
        let ran = line.run(guest.machine())?;
        let shown = Ran::new(&ran)?;
        let sequence = record(&guest, &arguments.command, &cwd, &ran, &shown);
        let info = guest.machine().info();
        Ok(Output {
            workspace_id: arguments.workspace_id,
            environment: info.environment,
            environment_version: info.environment_version,
            command: arguments.command,
            ran: shown,
            execution_mode: info.execution_mode,
            sequence,
            cwd,
        })
    }
}

/// What `workspace_exec` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Workspace
    workspace_id: String,
    /// Line for /bin/sh
    command: String,
    /// Then it and all it started are killed
    #[serde(default = "defaults::timeout_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    timeout_seconds: u32,
    /// Existing directory
    #[serde(default = "workspace_root")]
    cwd: String,
    /// Environment variables
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Standard input
    stdin: Option<String>,
}

/// What `workspace_exec` returns.
#[derive(Debug, Serialize, JsonSchema)]
struct Output {
    workspace_id: String,
    environment: String,
    environment_version: String,
    command: String,
    #[serde(flatten)]
    ran: Ran,
    execution_mode: String,
    /// Place in workspace_logs; absent when it could not be recorded
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    cwd: String,
}

/// The component's `config`.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Bytes kept of each of stdout and stderr.
    keep_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { keep_bytes: 64 * 1024 }
    }
}

/// Writes the command into the history. The command has run: when that cannot be recorded, its result is still worth
/// more than an error.
fn record(guest: &Guest, command: &str, cwd: &str, ran: &exec::Output, shown: &Ran) -> Option<u64> {
    let (stdout, stderr) = (&ran.stdout.bytes, &ran.stderr.bytes);
    let recorded =
        guest.workspace().record_command(command, cwd, Some(shown.exit_code), ran.duration_ms, stdout, stderr);
    recorded
        .inspect_err(|error| {
            let fields = [("code".to_owned(), error.code.clone())];
            log::log(Level::Warn, &format!("the command was not recorded: {}", error.message), &fields);
        })
        .ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tool_takes_what_the_contract_says() {
        let expected =
            ["workspace_exec(workspace_id*, command*, timeout_seconds=30, cwd=\"/workspace\", env={}, stdin)"];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
