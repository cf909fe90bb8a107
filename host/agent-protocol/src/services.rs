//! What is said about services.

use serde::{Deserialize, Serialize};

use crate::message::Program;

/// The arguments of [`Op::ServiceStart`](crate::Op::ServiceStart).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStartRequest {
    /// Its name.
    pub name: String,
    /// What it runs.
    pub program: Program,
    /// Its directory.
    pub cwd: String,
    /// Added to the agent's base environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Bytes kept of each output stream.
    pub log_limit_bytes: u64,
    /// Kept with the service for whoever asks.
    #[serde(default)]
    pub meta: Vec<(String, String)>,
}

/// A service's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceName {
    /// As it was started.
    pub name: String,
}

/// The arguments of [`Op::ServiceStop`](crate::Op::ServiceStop).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStopRequest {
    /// As it was started.
    pub name: String,
    /// Milliseconds between TERM and KILL.
    #[serde(default)]
    pub grace_ms: u32,
}

/// The arguments of [`Op::ServiceWait`](crate::Op::ServiceWait).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceWaitRequest {
    /// As it was started.
    pub name: String,
    /// The longest wait, in milliseconds.
    #[serde(default)]
    pub max_ms: u32,
}

/// The arguments of [`Op::ServiceRead`](crate::Op::ServiceRead).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReadRequest {
    /// As it was started.
    pub name: String,
    /// Which of its two outputs.
    #[serde(default)]
    pub stream: LogStream,
    /// The first byte, counted from the start of the output.
    #[serde(default)]
    pub cursor: u64,
    /// The most bytes.
    pub max: u32,
}

/// An output of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
}

/// The arguments of [`Op::ServiceAnnotate`](crate::Op::ServiceAnnotate).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAnnotateRequest {
    /// As it was started.
    pub name: String,
    /// What is added; a key that is there gets the new value.
    #[serde(default)]
    pub meta: Vec<(String, String)>,
}

/// The arguments of [`Op::ServiceProbe`](crate::Op::ServiceProbe).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceProbeRequest {
    /// What is tried.
    pub what: Readiness,
}

/// What tells that a service is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// There is something at this path.
    File(String),
    /// A connection to this host and port is accepted within 1 s.
    Tcp(String, u16),
    /// A GET of this `http://` address answers 200 to 399 within 2 s.
    Http(String),
}

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// The main process's id, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// True while its main process runs.
    pub running: bool,
    /// Unix milliseconds.
    pub started_ms: u64,
    /// Unix milliseconds, once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// The exit code, when it exited by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal's name (`SIGKILL`), when a signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// What is kept with it.
    pub meta: Vec<(String, String)>,
}
