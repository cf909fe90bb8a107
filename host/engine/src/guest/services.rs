//! Named processes that go on after the call that started them, kept by the guest agent with their logs.

use std::time::Duration;

use pyro_agent_protocol::{
    self as protocol, GuestFrame, Op, ServiceAnnotateRequest, ServiceName, ServiceProbeRequest, ServiceReadRequest,
    ServiceStartRequest, ServiceStatus, ServiceStopRequest, ServiceWaitRequest,
};

use super::call::{Call, milliseconds, seconds};
use crate::{
    error::{EngineError, ErrorCode},
    exec::ExecCommand,
    machine::Machine,
};

/// No agent keeps more of a stream.
const LOG_LIMIT: usize = 16 * 1024 * 1024;

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
    /// Bytes kept of each output stream, at most 16 MiB; the oldest are dropped over it.
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

/// An output of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A part of one output of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceOutput {
    /// The bytes.
    pub data: Vec<u8>,
    /// Where they begin, counted from the start of the output: later than asked when older output was dropped.
    pub start: u64,
    /// Where the next read begins.
    pub next: u64,
    /// The service at that moment.
    pub info: ServiceInfo,
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
        let request = ServiceStartRequest {
            name: config.name,
            program: match config.program {
                ExecCommand::Argv(argv) => protocol::Program::Argv(argv),
                ExecCommand::Shell(line) => protocol::Program::Shell(line),
            },
            cwd: config.cwd,
            env: config.env,
            log_limit_bytes: config.log_limit_bytes,
            meta: config.meta,
        };
        let started = Call::change(self, Op::ServiceStart(request)).await?.service().await;
        started.map(ServiceInfo::from).map_err(|error| match error.code() {
            // Not the service: its program.
            ErrorCode::NotFound => EngineError::new(ErrorCode::NotStarted, error.message())
                .with_guest_code(protocol::codes::NOT_FOUND)
                .with_hint("check the name, or install the program in the guest"),
            _ => error,
        })
    }

    /// Returns a service.
    ///
    /// # Errors
    /// `not_found` when there is no such service.
    pub async fn service_status(&self, name: &str) -> Result<ServiceInfo, EngineError> {
        Ok(Call::look(self, Op::ServiceStatus(named(name))).await?.service().await?.into())
    }

    /// Returns the services, finished ones too, sorted by name.
    ///
    /// # Errors
    /// `machine_died` and what else a lost connection means.
    pub async fn service_list(&self) -> Result<Vec<ServiceInfo>, EngineError> {
        let mut call = Call::look(self, Op::ServiceList(Default::default())).await?;
        let mut all = Vec::new();
        loop {
            match call.next().await? {
                GuestFrame::Service(status) => all.push((*status).into()),
                GuestFrame::Done(_) => return Ok(all),
                other => return Err(call.unexpected(&other)),
            }
        }
    }

    /// Returns what was kept of a service's output.
    ///
    /// # Errors
    /// `not_found` when there is no such service.
    pub async fn service_logs(&self, name: &str) -> Result<ServiceLogs, EngineError> {
        let mut call = Call::look(self, Op::ServiceLogs(named(name))).await?;
        let mut logs = ServiceLogs { stdout: Vec::new(), stderr: Vec::new(), truncated: false };
        loop {
            match call.next().await? {
                GuestFrame::Stdout(bytes) => logs.stdout.extend_from_slice(&bytes),
                GuestFrame::Stderr(bytes) => logs.stderr.extend_from_slice(&bytes),
                GuestFrame::Done(done) => return Ok(ServiceLogs { truncated: done.truncated, ..logs }),
                other => return Err(call.unexpected(&other)),
            }
            if logs.stdout.len().max(logs.stderr.len()) > LOG_LIMIT {
                return Err(call.broken("logs without end"));
            }
        }
    }

    /// Returns output of a service from `cursor` on, at most `max` bytes.
    ///
    /// # Errors
    /// `not_found` when there is no such service.
    pub async fn service_read(
        &self,
        name: &str,
        stream: LogStream,
        cursor: u64,
        max: u32,
    ) -> Result<ServiceOutput, EngineError> {
        let stream = match stream {
            LogStream::Stdout => protocol::LogStream::Stdout,
            LogStream::Stderr => protocol::LogStream::Stderr,
        };
        let request = ServiceReadRequest { name: name.to_owned(), stream, cursor, max };
        let mut call = Call::look(self, Op::ServiceRead(request)).await?;
        let (start, data, status) = call
            .output(max, |frame| match frame {
                GuestFrame::Service(service) => Ok(*service),
                other => Err(other),
            })
            .await?;
        let next = start.saturating_add(data.len() as u64);
        Ok(ServiceOutput { data, start, next, info: status.into() })
    }

    /// Ends a service with TERM to its process tree and, after `grace`, KILL, and returns how it ended. One that has
    /// ended is returned as it is.
    ///
    /// # Errors
    /// `not_found` when there is no such service.
    pub async fn service_stop(&self, name: &str, grace: Duration) -> Result<ServiceInfo, EngineError> {
        let request = ServiceStopRequest { name: name.to_owned(), grace_ms: milliseconds(grace) };
        let mut call = Call::change(self, Op::ServiceStop(request)).await?.patient(grace);
        Ok(call.service().await?.into())
    }

    /// Forgets a finished service and its logs.
    ///
    /// # Errors
    /// `not_found`, `invalid_state` while it runs.
    pub async fn service_remove(&self, name: &str) -> Result<(), EngineError> {
        Call::change(self, Op::ServiceRemove(named(name))).await?.done().await.map(drop)
    }

    /// Adds to a service's `meta`; a key that is there gets the new value.
    ///
    /// # Errors
    /// `not_found`, `limit_exceeded` when it would become too large.
    pub async fn service_annotate(&self, name: &str, meta: Vec<(String, String)>) -> Result<ServiceInfo, EngineError> {
        let request = ServiceAnnotateRequest { name: name.to_owned(), meta };
        Ok(Call::change(self, Op::ServiceAnnotate(request)).await?.service().await?.into())
    }

    /// Returns a service once it has ended or `max` has passed.
    ///
    /// # Errors
    /// `not_found` when there is no such service.
    pub async fn service_wait(&self, name: &str, max: Duration) -> Result<ServiceInfo, EngineError> {
        let request = ServiceWaitRequest { name: name.to_owned(), max_ms: milliseconds(max) };
        let mut call = Call::look(self, Op::ServiceWait(request)).await?.patient(max);
        Ok(call.service().await?.into())
    }

    /// Tries once, inside the guest, whether something is ready.
    ///
    /// # Errors
    /// `invalid_argument` for an address that is none.
    pub async fn service_probe(&self, what: Readiness) -> Result<bool, EngineError> {
        let what = match what {
            Readiness::File(path) => protocol::Readiness::File(path),
            Readiness::Tcp(host, port) => protocol::Readiness::Tcp(host, port),
            Readiness::Http(address) => protocol::Readiness::Http(address),
        };
        Ok(Call::look(self, Op::ServiceProbe(ServiceProbeRequest { what })).await?.done().await?.ready)
    }
}

fn named(name: &str) -> ServiceName {
    ServiceName { name: name.to_owned() }
}

impl From<ServiceStatus> for ServiceInfo {
    fn from(status: ServiceStatus) -> Self {
        Self {
            name: status.name,
            pid: status.pid,
            running: status.running,
            started_at: seconds(status.started_ms),
            ended_at: status.ended_ms.map(seconds),
            exit_code: status.exit_code,
            signal: status.signal,
            meta: status.meta,
        }
    }
}
