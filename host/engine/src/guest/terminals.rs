//! Interactive shells on a pseudo-terminal, kept by the guest agent until they are closed.

use std::time::Duration;

use super::unsupported;
use crate::{error::EngineError, machine::Machine};

/// A terminal to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalRequest {
    /// The shell's directory.
    pub cwd: String,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
    /// Added to the shell's environment.
    pub env: Vec<(String, String)>,
}

/// Whether a terminal's shell runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalState {
    /// It runs.
    Running,
    /// It has ended.
    Stopped,
}

/// A terminal.
#[derive(Debug, Clone, PartialEq)]
pub struct TerminalInfo {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// The directory it was opened in.
    pub cwd: String,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
    /// Whether its shell runs.
    pub state: TerminalState,
    /// Unix seconds.
    pub started_at: f64,
    /// Unix seconds; `None` while it runs.
    pub ended_at: Option<f64>,
    /// As a shell reports it: 128 and more is a signal.
    pub exit_code: Option<i32>,
}

/// A part of a terminal's output.
#[derive(Debug, Clone, PartialEq)]
pub struct TerminalOutput {
    /// The bytes.
    pub data: Vec<u8>,
    /// Where `data` begins; later than asked when older output was dropped.
    pub start: u64,
    /// Where the next read begins.
    pub next: u64,
    /// The terminal.
    pub info: TerminalInfo,
}

impl TerminalState {
    /// Returns `running` or `stopped`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

impl Machine {
    /// Starts a shell on a new pseudo-terminal.
    ///
    /// # Errors
    /// `invalid_argument` for a directory that is not there or a size outside 1 to 1000, `limit_exceeded` when the guest
    /// has as many terminals as it may, `outcome_unknown` when the connection was lost.
    pub async fn terminal_open(&self, request: TerminalRequest) -> Result<TerminalInfo, EngineError> {
        let _ = request;
        Err(unsupported())
    }

    /// Returns the terminals, ended ones too, in the order they were opened.
    ///
    /// # Errors
    /// `machine_died` and what else a lost connection means.
    pub async fn terminal_list(&self) -> Result<Vec<TerminalInfo>, EngineError> {
        Err(unsupported())
    }

    /// Returns output from `cursor` on, at most `max` bytes. With `idle`, waits until nothing new came for that long, the
    /// terminal ended, `max` bytes are there, or 10 s passed.
    ///
    /// # Errors
    /// `not_found` when there is no such terminal.
    pub async fn terminal_read(
        &self,
        id: &str,
        cursor: u64,
        max: u32,
        idle: Option<Duration>,
    ) -> Result<TerminalOutput, EngineError> {
        let _ = (id, cursor, max, idle);
        Err(unsupported())
    }

    /// Types `data` into a terminal.
    ///
    /// # Errors
    /// `not_found`, `invalid_state` when it has ended, `limit_exceeded` when its program does not read what was written.
    pub async fn terminal_write(&self, id: &str, data: &[u8]) -> Result<TerminalInfo, EngineError> {
        let _ = (id, data);
        Err(unsupported())
    }

    /// Changes a terminal's size.
    ///
    /// # Errors
    /// As [`Self::terminal_open`]; `not_found`, `invalid_state` when it has ended.
    pub async fn terminal_resize(&self, id: &str, cols: u32, rows: u32) -> Result<TerminalInfo, EngineError> {
        let _ = (id, cols, rows);
        Err(unsupported())
    }

    /// Sends a signal, by name with or without `SIG`, to a terminal's foreground job.
    ///
    /// # Errors
    /// `invalid_argument` for another signal than INT, HUP, TERM, KILL, QUIT, TSTP and CONT; `not_found`, `invalid_state`.
    pub async fn terminal_signal(&self, id: &str, name: &str) -> Result<TerminalInfo, EngineError> {
        let _ = (id, name);
        Err(unsupported())
    }

    /// Ends a terminal and everything it runs, with HUP and, after 5 s, KILL, and forgets it.
    ///
    /// # Errors
    /// `not_found` when there is no such terminal.
    pub async fn terminal_close(&self, id: &str) -> Result<TerminalInfo, EngineError> {
        let _ = id;
        Err(unsupported())
    }
}
