//! `vm_run`: one command in a microVM of its own.

use pyro_plugin_sdk::vm::exec::{self, Command, Input, Program};
use pyro_plugin_sdk::vm::machines::{self, MachineConfig};
use pyro_plugin_sdk::{Call, Cli, Hints, JsonSchema, Tool, ToolError, output};
use serde::{Deserialize, Serialize};

/// The exit code of a command that was killed because its time was over, as `timeout(1)` has it.
const EXIT_TIMED_OUT: i32 = 124;
/// A command that a signal ended has this plus the signal's number, as in a shell.
const EXIT_SIGNAL: i32 = 128;

/// The tool.
pub struct VmRun;

impl Tool for VmRun {
    const NAME: &'static str = "vm_run";
    const TITLE: &'static str = "Run a command in a fresh microVM";
    const DESCRIPTION: &'static str = "Runs one shell command in a new Linux microVM made from an environment, then \
        deletes the microVM. Returns stdout, stderr and exit_code; a non-zero exit code or a time-out is a result, not \
        an error. Of long output the head and the tail are kept. Nothing is left for a later call.";
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
    /// Environment to boot, as debian:12 (git, python3), debian:12-base (minimal) or debian:12-build (C tool chain).
    environment: String,
    /// Command line for /bin/sh, run as root in /workspace.
    command: String,
    /// Virtual CPUs.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 8))]
    vcpu_count: u32,
    /// Memory in MiB.
    #[serde(default = "mem_mib")]
    #[schemars(range(min = 256, max = 32768))]
    mem_mib: u32,
    /// Seconds after which the command and all it started are killed.
    #[serde(default = "timeout_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    timeout_seconds: u32,
    /// Seconds after which the microVM ends, whatever happens.
    #[serde(default = "ttl_seconds")]
    #[schemars(range(min = 60, max = 3600))]
    ttl_seconds: u32,
}

fn one() -> u32 {
    1
}

fn mem_mib() -> u32 {
    1024
}

fn timeout_seconds() -> u32 {
    30
}

fn ttl_seconds() -> u32 {
    600
}

/// What `vm_run` returns.
#[derive(Serialize, JsonSchema)]
pub struct Output {
    /// The microVM that ran the command.
    vm_id: String,
    environment: String,
    environment_version: String,
    command: String,
    /// What was kept of standard output.
    stdout: String,
    /// What was kept of standard error.
    stderr: String,
    /// Exit code; 124 after a time-out, 128 plus the number of the signal that ended the command.
    exit_code: i32,
    /// The signal that ended the command, as SIGKILL.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<String>,
    /// The command was killed because its time was over.
    timed_out: bool,
    /// Bytes written to standard output in all.
    stdout_bytes: u64,
    /// Bytes written to standard error in all.
    stderr_bytes: u64,
    /// Bytes are missing from the middle of stdout or stderr; a line in it says how many.
    truncated: bool,
    /// Bytes that are not UTF-8 stand as U+FFFD.
    encoding_lossy: bool,
    /// Wall time of the command.
    duration_ms: u64,
    /// CPU time of the command and all it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ms: Option<f64>,
    /// Most memory the command and all it started held at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
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

fn vm_run(arguments: Arguments, call: &Call) -> Result<Output, ToolError> {
    let config: Config = call.config()?;
    if arguments.command.trim().is_empty() {
        return Err(
            ToolError::new("invalid_argument", "command is empty").with_hint("pass a command line, as `uname -a`")
        );
    }
    if arguments.command.contains('\0') {
        return Err(ToolError::new("invalid_argument", "command contains a NUL character")
            .with_hint("a command line cannot carry NUL; make one in the guest, as with printf '\\0'"));
    }
    let machine = machines::run_ephemeral(&MachineConfig {
        environment: arguments.environment,
        vcpu_count: arguments.vcpu_count,
        mem_mib: arguments.mem_mib,
        ttl_seconds: arguments.ttl_seconds,
        meta: Vec::new(),
    })?;
    let info = machine.info();
    let ran = exec::run(
        &machine,
        &Command {
            program: Program::Shell(arguments.command.clone()),
            cwd: None,
            env: Vec::new(),
            stdin: Input::Caller,
            timeout_ms: u64::from(arguments.timeout_seconds) * 1000,
            keep_bytes: config.keep_bytes,
            meta: Vec::new(),
        },
    )?;
    machines::end(&machine)?;
    let stdout = output::text(&ran.stdout);
    let stderr = output::text(&ran.stderr);
    let exit_code = match (ran.timed_out, ran.exit_code, &ran.signal) {
        (true, ..) => EXIT_TIMED_OUT,
        (false, Some(code), _) => code,
        (false, None, Some(name)) => EXIT_SIGNAL + signal_number(name),
        (false, None, None) => return Err(ToolError::new("internal", "the command ended in no known way")),
    };
    Ok(Output {
        cleanup: Cleanup { vm_id: info.id.clone(), deleted: true, reason: "post_exec_cleanup".to_owned() },
        vm_id: info.id,
        environment: info.environment,
        environment_version: info.environment_version,
        command: arguments.command,
        exit_code,
        signal: ran.signal,
        timed_out: ran.timed_out,
        stdout_bytes: stdout.total_bytes,
        stderr_bytes: stderr.total_bytes,
        truncated: stdout.truncated || stderr.truncated,
        encoding_lossy: stdout.lossy || stderr.lossy,
        stdout: stdout.text,
        stderr: stderr.text,
        duration_ms: ran.duration_ms,
        cpu_ms: ran.cpu_us.map(|us| us as f64 / 1e3),
        peak_memory_bytes: ran.peak_memory_bytes,
        execution_mode: info.execution_mode,
    })
}

/// The number of a signal on x86-64 Linux; 0 for a name that is none.
fn signal_number(name: &str) -> i32 {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let name = name.strip_prefix("SIG").unwrap_or(name);
    NAMES.iter().position(|known| *known == name).and_then(|index| i32::try_from(index + 1).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_have_their_numbers() {
        assert_eq!(signal_number("SIGKILL"), 9);
        assert_eq!(signal_number("SIGSYS"), 31);
        assert_eq!(signal_number("SIGRTMIN+3"), 0);
    }
}
