//! `vm_exec`.

use pyro_plugin_guest::{Ran, ShellLine, check_command, defaults};
use pyro_plugin_sdk::vm::exec::Input;
use pyro_plugin_sdk::vm::machine_lifecycle;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::shape::{Deleted, open};

/// Bytes kept of each of stdout and stderr.
const KEEP_BYTES: u64 = 64 * 1024;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Started microVM
    pub vm_id: String,
    /// Line for /bin/sh
    pub command: String,
    /// Then it is killed
    #[serde(default = "defaults::timeout_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: u32,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub vm_id: String,
    pub environment: String,
    pub environment_version: String,
    pub command: String,
    #[serde(flatten)]
    pub ran: Ran,
    pub execution_mode: String,
    pub cleanup: Deleted,
}

/// Runs one command, and ends the microVM.
pub struct VmExec;

impl Tool for VmExec {
    const NAME: &'static str = "vm_exec";
    const DESCRIPTION: &'static str = "Runs one shell command in a started microVM, then deletes the microVM.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["vm", "exec"],
            positionals: vec!["vm_id"],
            trailing: Some("command"),
            stdin: true,
            streams: true,
            exit_code: Some("exit_code"),
            human: Some(Human {
                text: Some("stdout"),
                error_text: Some("stderr"),
                summary: Some("vm {vm_id} is deleted; the command ended with {exit_code} after {duration_ms} ms"),
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        check_command(&arguments.command)?;
        let machine = open(&arguments.vm_id)?;
        let info = machine.info();
        if info.state != "started" {
            return Err(ToolError::new(
                "invalid_state",
                format!("vm {} must be in 'started' state before execution", info.id),
            )
            .with_hint("start it with vm_start"));
        }
        let line = ShellLine {
            command: &arguments.command,
            cwd: None,
            env: Vec::new(),
            stdin: Input::Caller,
            timeout_seconds: arguments.timeout_seconds,
            keep_bytes: KEEP_BYTES,
        };
        // A call that fails leaves the microVM: its caller may want to look, or to try again.
        let ran = line.run(&machine)?;
        let ran = Ran::new(&ran)?;
        machine_lifecycle::delete(&machine)?;
        Ok(Output {
            cleanup: Deleted::new(&info.id, "post_exec_cleanup"),
            vm_id: info.id,
            environment: info.environment,
            environment_version: info.environment_version,
            command: arguments.command,
            ran,
            execution_mode: info.execution_mode,
        })
    }
}
