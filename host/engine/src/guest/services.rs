//! Named processes that go on after the call that started them, kept by the guest agent with their logs.

use std::time::Duration;

use super::unsupported;
use crate::{error::EngineError, exec::ExecCommand, machine::Machine};

/// A service to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Its name.
    pub name: String,
    /// What it runs.
    pub program: ExecCommand,
    /// Its directory.
    pub cwd: String,
    /// Added to the guest's default environment.
    pub env: Vec<(String, String)>,
    /// Bytes kept of each output stream; the oldest are dropped over it.
    pub log_limit_bytes: u64,
    /// Kept with the service for whoever asks.
    pub meta: Vec<(String, String)>,
}

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceInfo {
    /// Its name.
    pub name: String,
    /// The main process's id in the guest, while it runs.
    pub pid: Option<u32>,
    /// Whether it runs.
    pub running: bool,
    /// Unix seconds.
    pub started_at: f64,
    /// Unix seconds; `None` while it runs.
    pub ended_at: Option<f64>,
    /// Exit code, when it exited by itself.
    pub exit_code: Option<i32>,
    /// Name of the signal that ended it, such as `SIGKILL`.
    pub signal: Option<String>,
    /// The config's, with what [`Machine::service_annotate`] added.
    pub meta: Vec<(String, String)>,
}

/// What was kept of a service's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLogs {
    /// The end of standard output.
    pub stdout: Vec<u8>,
    /// The end of standard error.
    pub stderr: Vec<u8>,
    /// Whether older output was dropped.
    pub truncated: bool,
}

/// What tells that a service is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// There is something at this path.
    File(String),
    /// A connection to this host and port, from inside the guest, is accepted within 1 s.
    Tcp(String, u16),
    /// A GET of this `http://` address answers 200 to 399 within 2 s.
    Http(String),
}

impl Machine {
    /// Starts a service. A finished one of that name is replaced.
    ///
    /// # Errors
    /// `already_exists` while one of that name runs, `not_started` when the program cannot be executed,
    /// `invalid_argument`, `limit_exceeded`, `outcome_unknown` when the connection was lost.
    pub async fn service_start(&self, config: ServiceConfig) -> Result<ServiceInfo, EngineError> {
        let _ = config;
        Err(unsupported())
    }

    /// Returns a service.
    ///
    /// # Errors
    /// `not_found` when there is no such service.
    pub async fn service_status(&self, name: &str) -> Result<ServiceInfo, EngineError> {
        let _ = name;
        Err(unsupported())
    }

    /// Returns the services, finished ones too, sorted by name.
    ///
    /// # Errors
    /// `machine_died` and what else a lost connection means.
    pub async fn service_list(&self) -> Result<Vec<ServiceInfo>, EngineError> {
        Err(unsupported())
    }

    /// Returns what was kept of a service's output.
    ///
    /// # Errors
    /// `not_found` when there is no such service.
    pub async fn service_logs(&self, name: &str) -> Result<ServiceLogs, EngineError> {
        let _ = name;
        Err(unsupported())
    }

    /// Ends a service with TERM to its process tree and, after `grace`, KILL, and returns how it ended. One that has
    /// ended is returned as it is.
    ///
    /// # Errors
    /// `not_found` when there is no such service.
    pub async fn service_stop(&self, name: &str, grace: Duration) -> Result<ServiceInfo, EngineError> {
        let _ = (name, grace);
        Err(unsupported())
    }

    /// Forgets a finished service and its logs.
    ///
    /// # Errors
    /// `not_found`, `invalid_state` while it runs.
    pub async fn service_remove(&self, name: &str) -> Result<(), EngineError> {
        let _ = name;
        Err(unsupported())
    }

    /// Adds to a service's `meta`; a key that is there gets the new value.
    ///
    /// # Errors
    /// `not_found`, `limit_exceeded` when it would become too large.
    pub async fn service_annotate(&self, name: &str, meta: Vec<(String, String)>) -> Result<ServiceInfo, EngineError> {
        let _ = (name, meta);
        Err(unsupported())
    }

    /// Returns a service once it has ended or `max` has passed.
    ///
    /// # Errors
    /// `not_found` when there is no such service.
    pub async fn service_wait(&self, name: &str, max: Duration) -> Result<ServiceInfo, EngineError> {
        let _ = (name, max);
        Err(unsupported())
    }

    /// Tries once, inside the guest, whether something is ready.
    ///
    /// # Errors
    /// `invalid_argument` for an address that is none.
    pub async fn service_probe(&self, what: Readiness) -> Result<bool, EngineError> {
        let _ = what;
        Err(unsupported())
    }
}
