//! Starting a service and waiting for it to be ready.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pyro_plugin_guest::Guest;
use pyro_plugin_sdk::vm::exec::{self, Input, Program};
use pyro_plugin_sdk::vm::services::{self, ServiceConfig, ServiceInfo};
use pyro_plugin_sdk::vm::types::Error;
use pyro_plugin_sdk::{Call, ToolError};
use pyro_tree::WORKSPACE;

use crate::notes::Notes;
use crate::readiness::Probe;
use crate::shape::failed;

/// Bytes kept of each of a service's two logs.
const LOG_LIMIT: u64 = 4 << 20;
/// How long a readiness command may run.
const PROBE_COMMAND_MS: u64 = 10_000;
/// Between TERM and KILL of a service that did not get ready.
const GRACE_MS: u32 = 5_000;

/// Starts a service and returns once it is ready or has failed; both are results.
pub fn start(
    guest: &Guest,
    workspace_id: &str,
    name: &str,
    notes: &Notes,
    call: &Call,
) -> Result<ServiceInfo, ToolError> {
    let told = |error: Error| failed(workspace_id, name, error);
    let config = ServiceConfig {
        name: name.to_owned(),
        program: Program::Shell(notes.command.clone()),
        cwd: notes.cwd.clone(),
        env: Vec::new(),
        log_limit_bytes: LOG_LIMIT,
        meta: notes.write(),
    };
    let started = Instant::now();
    let mut info = services::start(guest.machine(), &config).map_err(told)?;
    let Some(probe) = &notes.probe else {
        return annotate(guest, name, "ready_at", &now()).map_err(told);
    };
    let deadline = Duration::from_secs(u64::from(notes.ready_timeout_seconds));
    loop {
        if !info.running {
            return annotate(guest, name, "stop_reason", "process_exited_before_ready").map_err(told);
        }
        if is_ready(guest, &notes.cwd, probe)? {
            return annotate(guest, name, "ready_at", &now()).map_err(told);
        }
        let waited = started.elapsed();
        if waited >= deadline {
            services::stop(guest.machine(), name, GRACE_MS).map_err(told)?;
            return annotate(guest, name, "stop_reason", "readiness_timeout").map_err(told);
        }
        call.progress(waited.as_secs_f64(), Some(deadline.as_secs_f64()), "waiting for readiness");
        let pause = Duration::from_millis(u64::from(notes.ready_interval_ms)).min(deadline - waited);
        let pause = u32::try_from(pause.as_millis()).unwrap_or(u32::MAX).max(1);
        info = services::wait(guest.machine(), name, pause).map_err(told)?;
    }
}

fn annotate(guest: &Guest, name: &str, key: &str, value: &str) -> Result<ServiceInfo, Error> {
    services::annotate(guest.machine(), name, &[(key.to_owned(), value.to_owned())])
}

/// Unix seconds.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:.3}", since.as_secs_f64())
}

/// Looks once.
fn is_ready(guest: &Guest, cwd: &str, probe: &Probe) -> Result<bool, ToolError> {
    let what = match probe {
        Probe::File(path) => services::Readiness::File(path.clone()),
        Probe::Tcp(_, host, port) => services::Readiness::Tcp((host.clone(), *port)),
        Probe::Http(url) => services::Readiness::Http(url.clone()),
        Probe::Command(command) => {
            let command = exec::Command {
                program: Program::Shell(command.clone()),
                cwd: Some(if cwd.is_empty() { WORKSPACE.to_owned() } else { cwd.to_owned() }),
                env: Vec::new(),
                stdin: Input::None,
                timeout_ms: PROBE_COMMAND_MS,
                keep_bytes: 0,
                meta: Vec::new(),
            };
            let output = exec::run(guest.machine(), &command)?;
            return Ok(output.exit_code == Some(0) && !output.timed_out);
        }
    };
    Ok(services::probe(guest.machine(), &what)?)
}
