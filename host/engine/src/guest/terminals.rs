//! Interactive shells on a pseudo-terminal, kept by the guest agent until they are closed.

use std::time::Duration;

use pyro_agent_protocol::{
    GuestFrame, Op, TerminalId, TerminalOpenRequest, TerminalReadRequest, TerminalResizeRequest, TerminalSignalRequest,
    TerminalStatus,
};

use super::call::{Call, milliseconds, seconds};
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
        let TerminalRequest { cwd, cols, rows, env } = request;
        let request = TerminalOpenRequest { cwd, cols, rows, env };
        Ok(Call::change(self, Op::TerminalOpen(request)).await?.terminal().await?.into())
    }

    /// Returns the terminals, ended ones too, in the order they were opened.
    ///
    /// # Errors
    /// `machine_died` and what else a lost connection means.
    pub async fn terminal_list(&self) -> Result<Vec<TerminalInfo>, EngineError> {
        let mut call = Call::look(self, Op::TerminalList(Default::default())).await?;
        let mut all = Vec::new();
        loop {
            match call.next().await? {
                GuestFrame::Terminal(status) => all.push((*status).into()),
                GuestFrame::Done(_) => return Ok(all),
                other => return Err(call.unexpected(&other)),
            }
        }
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
        let request = TerminalReadRequest { id: id.to_owned(), cursor, max, idle_ms: idle.map(milliseconds) };
        let mut call = Call::look(self, Op::TerminalRead(request)).await?;
        let (start, data, status) = call
            .output(max, |frame| match frame {
                GuestFrame::Terminal(terminal) => Ok(*terminal),
                other => Err(other),
            })
            .await?;
        let next = start.saturating_add(data.len() as u64);
        Ok(TerminalOutput { data, start, next, info: status.into() })
    }

    /// Types `data` into a terminal.
    ///
    /// # Errors
    /// `not_found`, `invalid_state` when it has ended, `limit_exceeded` when its program does not read what was written.
    pub async fn terminal_write(&self, id: &str, data: &[u8]) -> Result<TerminalInfo, EngineError> {
        let mut call = Call::change(self, Op::TerminalWrite(TerminalId { id: id.to_owned() })).await?;
        // A terminal that refuses has said so, and that is what is read below.
        if call.send_data(data).await {
            call.send_eof().await?;
        }
        Ok(call.terminal().await?.into())
    }

    /// Changes a terminal's size.
    ///
    /// # Errors
    /// As [`Self::terminal_open`]; `not_found`, `invalid_state` when it has ended.
    pub async fn terminal_resize(&self, id: &str, cols: u32, rows: u32) -> Result<TerminalInfo, EngineError> {
        let request = TerminalResizeRequest { id: id.to_owned(), cols, rows };
        Ok(Call::change(self, Op::TerminalResize(request)).await?.terminal().await?.into())
    }

    /// Sends a signal, by name with or without `SIG`, to a terminal's foreground job.
    ///
    /// # Errors
    /// `invalid_argument` for another signal than INT, HUP, TERM, KILL, QUIT, TSTP and CONT; `not_found`, `invalid_state`.
    pub async fn terminal_signal(&self, id: &str, name: &str) -> Result<TerminalInfo, EngineError> {
        let request = TerminalSignalRequest { id: id.to_owned(), signal: name.to_owned() };
        Ok(Call::change(self, Op::TerminalSignal(request)).await?.terminal().await?.into())
    }

    /// Ends a terminal and everything it runs, with HUP and, after 5 s, KILL, and forgets it.
    ///
    /// # Errors
    /// `not_found` when there is no such terminal.
    pub async fn terminal_close(&self, id: &str) -> Result<TerminalInfo, EngineError> {
        let request = TerminalId { id: id.to_owned() };
        Ok(Call::change(self, Op::TerminalClose(request)).await?.terminal().await?.into())
    }
}

impl From<TerminalStatus> for TerminalInfo {
    fn from(status: TerminalStatus) -> Self {
        Self {
            id: status.id,
            cwd: status.cwd,
            cols: status.cols,
            rows: status.rows,
            state: if status.running { TerminalState::Running } else { TerminalState::Stopped },
            started_at: seconds(status.started_ms),
            ended_at: status.ended_ms.map(seconds),
            exit_code: status.exit_code,
        }
    }
}
