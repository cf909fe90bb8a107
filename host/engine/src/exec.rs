//! Running one command in a machine.
//!
//! One command is one connection. The request is sent once: a connection that is lost after that is reported, never
//! repeated. Dropping the session closes the connection, and the agent then kills everything the command started.

use std::time::Duration;

use bytes::Bytes;

use crate::error::{EngineError, ErrorCode};

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecCommand {
    /// A program and its arguments, looked up in the guest's `PATH`.
    Argv(Vec<String>),
    /// A line for the guest's shell.
    Shell(String),
}

/// A command and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// What to run.
    pub command: ExecCommand,
    /// Working directory in the guest; the guest's default when absent.
    pub cwd: Option<String>,
    /// Added to the guest's default environment.
    pub env: Vec<(String, String)>,
    /// The guest kills the command after this long.
    pub timeout: Duration,
    /// Whether standard input will be written; otherwise the command reads end-of-file.
    pub stdin: bool,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecExit {
    /// Exit code, when it exited by itself.
    pub exit_code: Option<i32>,
    /// Number of the signal that ended it.
    pub signal: Option<i32>,
    /// Whether the timeout ended it.
    pub timed_out: bool,
    /// Wall time in the guest.
    pub duration: Duration,
    /// CPU time of everything it started, when the guest could account for it.
    pub cpu: Option<Duration>,
    /// Peak memory of everything it started, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Whether the guest ran out of memory for it.
    pub oom_killed: bool,
}

/// Something that happened to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It runs, with this process id in the guest.
    Started {
        /// Process id in the guest.
        pid: u32,
    },
    /// It wrote to standard output.
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// It ended; all its output was delivered before.
    Exited(ExecExit),
}

/// A command that was sent to a machine. Dropping it cancels the command.
#[derive(Debug)]
pub struct ExecSession {
    input: ExecInput,
}

/// Writes to a command's standard input and sends it signals; cheap to clone and usable beside [`ExecSession::next`].
#[derive(Debug, Clone)]
pub struct ExecInput {}

impl ExecSession {
    /// Returns the next event. After `Exited`, returns the same `Exited` again.
    ///
    /// # Errors
    /// `not_started` when the guest refused the command before it ran, `machine_died`, `expired` or `outcome_unknown`
    /// when the connection was lost.
    pub async fn next(&mut self) -> Result<ExecEvent, EngineError> {
        Err(unfinished())
    }

    /// Returns a handle for standard input and signals.
    pub fn input(&self) -> ExecInput {
        self.input.clone()
    }
}

impl ExecInput {
    /// Writes to standard input, waiting while the guest does not read.
    ///
    /// # Errors
    /// When the command ended or the connection was lost.
    pub async fn write(&self, _bytes: &[u8]) -> Result<(), EngineError> {
        Err(unfinished())
    }

    /// Ends standard input.
    ///
    /// # Errors
    /// When the connection was lost.
    pub async fn close(&self) -> Result<(), EngineError> {
        Err(unfinished())
    }

    /// Sends a signal, by name (`SIGTERM` or `TERM`), to the command.
    ///
    /// # Errors
    /// When the connection was lost.
    pub async fn signal(&self, _name: &str) -> Result<(), EngineError> {
        Err(unfinished())
    }
}

fn unfinished() -> EngineError {
    EngineError::new(ErrorCode::Internal, "this build cannot run commands yet")
}
