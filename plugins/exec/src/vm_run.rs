//! `vm_run`: one command in a microVM of its own.

use pyro_plugin_guest::{Ran, ShellLine, check_command, defaults};
use pyro_plugin_sdk::vm::exec::Input;
use pyro_plugin_sdk::vm::machines::{self, MachineConfig};
use pyro_plugin_sdk::{Call, Cli, Hints, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::Config;

/// The tool.
pub struct VmRun;

impl Tool for VmRun {
    const NAME: &'static str = "vm_run";
    const TITLE: &'static str = "Run a command in a fresh microVM";
    const DESCRIPTION: &'static str = "Runs one command line in a new Linux microVM, then deletes the microVM. A non-zero \
        exit code or a time-out is a result, not an error.";
    const HINTS: Hints = Hints::CONTAINED;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["run"],
            positionals: vec!["environment"],
            trailing: Some("command"),
            stdin: true,
            streams: true,
            exit_code: Some("exit_code"),
            examples: vec![
                "pyro run debian:12 -- git --version",
                "pyro run debian:12 -- 'echo $HOME | wc -c'",
                "pyro run debian:12 -- printf '%s\\n' '$HOME' '*'",
                "tar c src | pyro run debian:12-build -- 'tar x && make'",
                "pyro run debian:12 --json -- uname -r | jq -r .stdout",
            ],
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, call: &Call) -> Result<Output, ToolError> {
        vm_run(arguments, call)
    }
}

/// What `vm_run` takes.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// debian:12 (git, python3), debian:12-base (minimal) or debian:12-build (C tool chain).
    environment: String,
    /// Command line for /bin/sh, run as root in /workspace.
    command: String,
    /// Virtual CPUs.
    #[serde(default = "defaults::vcpu_count")]
    #[schemars(range(min = 1, max = 8))]
    vcpu_count: u32,
    /// Memory in MiB.
    #[serde(default = "defaults::mem_mib")]
    #[schemars(range(min = 256, max = 32768))]
    mem_mib: u32,
    /// Seconds after which the command is killed.
    #[serde(default = "defaults::timeout_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    timeout_seconds: u32,
    /// Seconds after which the microVM ends.
    #[serde(default = "defaults::ttl_seconds")]
    #[schemars(range(min = 60, max = 3600))]
    ttl_seconds: u32,
}

/// What `vm_run` returns.
#[derive(Serialize, JsonSchema)]
pub struct Output {
    /// The microVM that ran the command.
    vm_id: String,
    environment: String,
    environment_version: String,
    command: String,
    #[serde(flatten)]
    ran: Ran,
    /// What the microVM ran on.
    execution_mode: String,
    cleanup: Cleanup,
}

/// What became of the microVM.
#[derive(Serialize, JsonSchema)]
pub struct Cleanup {
    vm_id: String,
    deleted: bool,
    reason: String,
}

fn vm_run(arguments: Arguments, call: &Call) -> Result<Output, ToolError> {
    let config: Config = call.config()?;
    check_command(&arguments.command)?;
    let machine = machines::run_ephemeral(&MachineConfig {
        environment: arguments.environment,
        vcpu_count: arguments.vcpu_count,
        mem_mib: arguments.mem_mib,
        ttl_seconds: arguments.ttl_seconds,
        meta: Vec::new(),
    })?;
    let info = machine.info();
    let line = ShellLine {
        command: &arguments.command,
        cwd: None,
        env: Vec::new(),
        stdin: Input::Caller,
        timeout_seconds: arguments.timeout_seconds,
        keep_bytes: config.keep_bytes,
    };
    let ran = line.run(&machine)?;
    machines::end(&machine)?;
    Ok(Output {
        cleanup: Cleanup { vm_id: info.id.clone(), deleted: true, reason: "post_exec_cleanup".to_owned() },
        vm_id: info.id,
        environment: info.environment,
        environment_version: info.environment_version,
        ran: Ran::new(&ran)?,
        command: arguments.command,
        execution_mode: info.execution_mode,
    })
}
