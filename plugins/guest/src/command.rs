//! Commands, as the tools run them and report on them.

use pyro_plugin_sdk::vm::exec::{self, Command, Input, Program};
use pyro_plugin_sdk::vm::types::Machine;
use pyro_plugin_sdk::{JsonSchema, ToolError, output};
use serde::Serialize;

use crate::workspace::invalid;

/// The exit code of a command that was killed because its time was over, as `timeout(1)` has it.
const EXIT_TIMED_OUT: i32 = 124;
/// A command that a signal ended has this plus the signal's number, as in a shell.
const EXIT_SIGNAL: i32 = 128;

/// A command line for the guest's shell.
pub struct ShellLine<'a> {
    /// The line.
    pub command: &'a str,
    /// Absolute; the image's default when none.
    pub cwd: Option<&'a str>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// What it reads.
    pub stdin: Input,
    /// Seconds after which it and all it started are killed.
    pub timeout_seconds: u32,
    /// Bytes kept of each of stdout and stderr.
    pub keep_bytes: u64,
}

impl ShellLine<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// Those of the host; a command that fails or runs out of time is a result.
    pub fn run(self, machine: &Machine) -> Result<exec::Output, ToolError> {
        Ok(exec::run(machine, &self.command())?)
    }

    fn command(self) -> Command {
        Command {
            program: Program::Shell(self.command.to_owned()),
            cwd: self.cwd.map(str::to_owned),
            env: self.env,
            stdin: self.stdin,
            timeout_ms: u64::from(self.timeout_seconds) * 1000,
            keep_bytes: self.keep_bytes,
            meta: Vec::new(),
        }
    }
}

/// Refuses a command line that no shell could be given.
///
/// # Errors
/// `invalid_argument`.
pub fn check_command(command: &str) -> Result<(), ToolError> {
    if command.trim().is_empty() {
        return Err(invalid("command is empty").with_hint("pass a command line, as `uname -a`"));
    }
    if command.contains('\0') {
        return Err(invalid("command contains a NUL character")
            .with_hint("a command line cannot carry NUL; make one in the guest, as with printf '\\0'"));
    }
    Ok(())
}

/// Returns the directory to run a command in: one of the workspace, or any absolute one of the guest.
///
/// # Errors
/// `invalid_argument`.
pub fn directory(cwd: &str) -> Result<String, ToolError> {
    let cwd = cwd.trim();
    if cwd.is_empty() || cwd.contains('\0') {
        return Err(invalid("cwd is empty or has a NUL character"));
    }
    if cwd.starts_with('/') { Ok(cwd.to_owned()) } else { crate::workspace::path(cwd) }
}

/// How a command ended and what it wrote.
#[expect(missing_docs, reason = "the names are the contract's, and a comment would become part of the schemas")]
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ran {
    /// What was kept
    pub stdout: String,
    /// What was kept
    pub stderr: String,
    /// 124 after a time-out, 128 plus the number of a signal
    pub exit_code: i32,
    /// As SIGKILL
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    pub timed_out: bool,
    /// In all
    pub stdout_bytes: u64,
    /// In all
    pub stderr_bytes: u64,
    /// A line in stdout or stderr says how many bytes are missing there
    pub truncated: bool,
    /// Bytes that are not UTF-8 stand as U+FFFD
    pub encoding_lossy: bool,
    pub duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

impl Ran {
    /// Reads what was kept of a command's output.
    ///
    /// # Errors
    /// `internal` when the host says nothing about how it ended.
    pub fn new(ran: &exec::Output) -> Result<Ran, ToolError> {
        let (stdout, stderr) = (output::text(&ran.stdout), output::text(&ran.stderr));
        Ok(Ran {
            exit_code: exit_code(ran.timed_out, ran.exit_code, ran.signal.as_deref())?,
            signal: ran.signal.clone(),
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
        })
    }
}

fn exit_code(timed_out: bool, exit_code: Option<i32>, signal: Option<&str>) -> Result<i32, ToolError> {
    match (timed_out, exit_code, signal) {
        (true, ..) => Ok(EXIT_TIMED_OUT),
        (false, Some(code), _) => Ok(code),
        (false, None, Some(name)) => Ok(EXIT_SIGNAL + signal_number(name).unwrap_or(0)),
        (false, None, None) => Err(ToolError::new("internal", "the command ended in no known way")),
    }
}

/// Returns the number of a signal on x86-64 Linux, with or without `SIG`.
fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let name = name.strip_prefix("SIG").unwrap_or(name);
    NAMES.iter().position(|known| *known == name).and_then(|index| i32::try_from(index + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_numbers_that_the_guest_s_agent_has() {
        for number in 1..=31 {
            let name = pyro_agent_protocol::signal_name(number);
            assert_eq!(signal_number(&name), Some(number), "{name}");
        }
        assert_eq!(signal_number("SIGRTMIN+3"), None);
    }

    #[test]
    fn a_line_stands_alone_and_binds_to_no_change_of_directory() {
        let line = ShellLine {
            command: "false; pwd",
            cwd: Some("/workspace"),
            env: Vec::new(),
            stdin: Input::None,
            timeout_seconds: 30,
            keep_bytes: 9,
        };
        let command = line.command();
        assert!(matches!(command.program, Program::Shell(line) if line == "false; pwd"));
        assert_eq!((command.cwd.as_deref(), command.timeout_ms), (Some("/workspace"), 30_000));
    }

    #[test]
    fn a_time_out_and_a_signal_have_exit_codes() {
        assert_eq!(exit_code(true, None, Some("SIGKILL")), Ok(124));
        assert_eq!(exit_code(false, Some(3), None), Ok(3));
        assert_eq!(exit_code(false, None, Some("SIGKILL")), Ok(137));
        assert_eq!(exit_code(false, None, Some("SIGRTMIN")), Ok(128));
        assert_eq!(exit_code(false, None, None).unwrap_err().code, "internal");
    }

    #[test]
    fn a_line_that_cannot_be_run_is_refused() {
        assert!(check_command("true").is_ok());
        assert_eq!(check_command(" \n").unwrap_err().message, "command is empty");
        assert!(check_command("a\0b").unwrap_err().message.contains("NUL"));
    }

    #[test]
    fn a_directory_is_the_workspace_s_or_absolute() {
        assert_eq!(directory("/workspace").ok().as_deref(), Some("/workspace"));
        assert_eq!(directory(" src ").ok().as_deref(), Some("/workspace/src"));
        assert_eq!(directory("/etc").ok().as_deref(), Some("/etc"));
        for bad in ["", " ", "a\0b", "../etc", "a/../../b"] {
            assert!(directory(bad).is_err(), "{bad:?}");
        }
    }
}
