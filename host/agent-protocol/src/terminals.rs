//! What is said about terminals.

use serde::{Deserialize, Serialize};

/// The arguments of [`Op::TerminalOpen`](crate::Op::TerminalOpen).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalOpenRequest {
    /// The shell's directory.
    pub cwd: String,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
    /// Added to the shell's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
}

/// A terminal's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalId {
    /// As in [`TerminalStatus`].
    pub id: String,
}

/// The arguments of [`Op::TerminalRead`](crate::Op::TerminalRead).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalReadRequest {
    /// As in [`TerminalStatus`].
    pub id: String,
    /// The first byte, counted from the terminal's first.
    pub cursor: u64,
    /// The most bytes.
    pub max: u32,
    /// Waits until nothing new came for so many milliseconds, the terminal ended, `max` bytes are there, or 10 s passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u32>,
}

/// The arguments of [`Op::TerminalResize`](crate::Op::TerminalResize).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalResizeRequest {
    /// As in [`TerminalStatus`].
    pub id: String,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
}

/// The arguments of [`Op::TerminalSignal`](crate::Op::TerminalSignal).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSignalRequest {
    /// As in [`TerminalStatus`].
    pub id: String,
    /// The signal's name, with or without `SIG`.
    pub signal: String,
}

/// A terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TerminalStatus {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// The directory it was opened in.
    pub cwd: String,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
    /// True while its shell runs.
    pub running: bool,
    /// Unix milliseconds.
    pub started_ms: u64,
    /// Unix milliseconds, once the shell has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// The shell's exit code; 128 and a signal's number when a signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}
