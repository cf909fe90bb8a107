//! `pyro:vm` and `pyro:secrets` over the engine, one module per interface. Every call is checked against the grant's
//! scope first, whatever was checked when the component was linked; what a component asks wrongly is an error in its
//! hand, never a trap.

mod environments;
mod exec;
mod files;
mod lifecycle;
mod machines;
mod ports;
mod redact;
mod secrets;
mod seen;
mod services;
mod terminals;
mod window;
mod workspaces;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pyro_engine::workspaces::{RecordKind, Workspaces};
use pyro_engine::{EngineError, ErrorCode, Machine, MachineInfo};
use wasmtime::component::Resource;

use super::access::HostAccess;
use super::bindings::pyro::vm::types;
use super::state::CallState;
pub(super) use files::blocking;
use redact::Redaction;
pub(crate) use redact::Redactors;
pub(crate) use seen::SeenFiles;
pub use workspaces::WorkspaceEntry;

/// How long an answer of the guest is waited for, when the request has no time of its own.
const GUEST_LIMIT: Duration = Duration::from_secs(120);

/// How long a tree may take on its way in or out of a guest.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Longest path, name or other text that is sent to a guest or kept.
const MAX_TEXT: usize = 64 << 10;

/// A machine behind a component's handle.
#[derive(Debug)]
pub struct MachineEntry {
    origin: Origin,
    /// What was known when the handle was made.
    info: types::MachineInfo,
}

/// Where a machine came from, which decides how it is reached and what ends it.
#[derive(Debug)]
enum Origin {
    /// Owned by the call; none once it was ended.
    Ephemeral(Option<Machine>),
    /// The running machine of a workspace.
    Workspace { id: String, machine: Machine },
    /// A machine of its own record: looked up for each use, because any process may start, stop or delete it.
    Record(String),
}

/// A machine that can be asked, and what must not be seen of it.
struct Reached {
    machine: Machine,
    /// The workspace it belongs to.
    workspace: Option<String>,
    redaction: Arc<Redaction>,
}

impl Reached {
    fn error(&self, failed: &EngineError) -> types::Error {
        self.redaction.error(failed)
    }

    /// Waits for an answer of the guest, at most so long.
    async fn ask<T>(
        &self,
        limit: Duration,
        what: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, types::Error> {
        match tokio::time::timeout(limit, what).await {
            Ok(answer) => answer.map_err(|failed| self.error(&failed)),
            Err(_) => Err(refusal(
                ErrorCode::OutcomeUnknown,
                format!("the guest did not answer within {} s", limit.as_secs()),
                "look at what was done before you try again",
            )),
        }
    }
}

/// An engine's error as a component sees it.
pub(super) fn error(failed: &EngineError) -> types::Error {
    types::Error {
        code: failed.code().as_str().to_owned(),
        message: failed.message().to_owned(),
        hint: failed.hint().map(str::to_owned),
        retryable: failed.retryable(),
        meta: failed.console_tail().map(|tail| ("console_tail".to_owned(), tail.to_owned())).into_iter().collect(),
    }
}

fn refusal(code: ErrorCode, message: impl Into<String>, hint: &str) -> types::Error {
    error(&EngineError::new(code, message).with_hint(hint))
}

/// What a scope, or the lack of a grant, does not allow.
fn denied(message: impl Into<String>) -> types::Error {
    refusal(ErrorCode::Denied, message, "the profile's `grants` decide this")
}

/// The error of a component that reaches a function without its grant.
pub(super) fn missing(grant: &str) -> types::Error {
    denied(format!("the grant `{grant}` is missing"))
}

/// Whether a text may be sent to a guest at all.
pub(super) fn sendable(what: &str, text: &str) -> Result<(), types::Error> {
    if text.len() > MAX_TEXT {
        let message = format!("the {what} has {} bytes, more than {MAX_TEXT}", text.len());
        return Err(refusal(ErrorCode::InvalidArgument, message, "pass a shorter one"));
    }
    if text.contains('\0') {
        return Err(refusal(
            ErrorCode::InvalidArgument,
            format!("the {what} contains a NUL character"),
            "leave it out",
        ));
    }
    Ok(())
}

/// What a machine's environment may be given.
fn possible_env(env: &[(String, String)]) -> Result<(), types::Error> {
    for (name, value) in env {
        if name.is_empty() || name.contains('=') {
            let message = format!("environment variable name `{name}` is not possible");
            return Err(refusal(ErrorCode::InvalidArgument, message, "use letters, digits and `_`"));
        }
        sendable("name of an environment variable", name)?;
        sendable("value of an environment variable", value)?;
    }
    Ok(())
}

fn machine_info(info: &MachineInfo, running: bool) -> types::MachineInfo {
    types::MachineInfo {
        id: info.id.clone(),
        environment: info.environment.clone(),
        environment_version: info.environment_version.clone(),
        vcpu_count: info.vcpu_count,
        mem_mib: info.mem_mib,
        ttl_seconds: u32::try_from(info.ttl_seconds).unwrap_or(u32::MAX),
        created_at: info.created_at,
        expires_at: info.expires_at,
        state: if running { "started" } else { "stopped" }.to_owned(),
        execution_mode: info.execution_mode.as_str().to_owned(),
        meta: Vec::new(),
    }
}

impl types::Host for CallState {}

impl types::HostMachine for CallState {
    async fn info(&mut self, machine: Resource<MachineEntry>) -> wasmtime::Result<types::MachineInfo> {
        let entry = self.table.get(&machine)?;
        let mut info = entry.info.clone();
        match &entry.origin {
            Origin::Ephemeral(Some(_)) | Origin::Workspace { .. } => {}
            Origin::Ephemeral(None) => info.state = "stopped".to_owned(),
            Origin::Record(id) => {
                let id = id.clone();
                match self.record_info(&id).await {
                    Ok(now) => info = now,
                    // It is gone, and this function has no error.
                    Err(_) => info.state = "stopped".to_owned(),
                }
            }
        }
        Ok(info)
    }

    async fn drop(&mut self, machine: Resource<MachineEntry>) -> wasmtime::Result<()> {
        // An ephemeral machine is owned by its last handle, so this ends it.
        self.table.delete(machine)?;
        Ok(())
    }
}

impl CallState {
    /// What is behind the gated interfaces.
    pub(super) fn access(&self) -> Result<Arc<HostAccess>, types::Error> {
        self.access
            .clone()
            .ok_or_else(|| refusal(ErrorCode::Denied, "there are no machines here", "call a tool instead"))
    }

    async fn records(&mut self) -> Result<Workspaces, types::Error> {
        let access = self.access()?;
        access.workspaces().await.cloned().map_err(|failed| error(&failed))
    }

    /// Returns the machine behind a handle, running, and what must not be seen of it.
    async fn reach(&mut self, machine: &Resource<MachineEntry>) -> wasmtime::Result<Result<Reached, types::Error>> {
        let found = match &self.table.get(machine)?.origin {
            Origin::Ephemeral(Some(machine)) => Ok((machine.clone(), None)),
            Origin::Ephemeral(None) => Err(refusal(ErrorCode::NotFound, "the machine was ended", "make a new one")),
            Origin::Workspace { id, machine } => Ok((machine.clone(), Some(id.clone()))),
            Origin::Record(id) => {
                let id = id.clone();
                self.record_machine(&id).await.map(|machine| (machine, None))
            }
        };
        let (machine, workspace) = match found {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        Ok(self.redaction(workspace.as_deref()).await.map(|redaction| Reached { machine, workspace, redaction }))
    }

    async fn record_machine(&mut self, id: &str) -> Result<Machine, types::Error> {
        let _pause = self.clock.pause();
        let records = self.records().await?;
        records.machine(id, RecordKind::Machine).await.map_err(|failed| error(&failed))
    }

    /// The environment of a process: what the component asks for and what interceptors bound.
    async fn process_env(
        &mut self,
        reached: &Reached,
        mut env: Vec<(String, String)>,
    ) -> Result<Vec<(String, String)>, types::Error> {
        possible_env(&env)?;
        let Some(workspace) = &reached.workspace else { return Ok(env) };
        for (variable, value) in self.bound_variables(workspace).await? {
            env.retain(|(name, _)| *name != variable);
            env.push((variable, value));
        }
        Ok(env)
    }
}
