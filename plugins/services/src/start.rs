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
/// How long one readiness command may run, when so much time is left.
const PROBE_COMMAND: Duration = Duration::from_secs(10);
/// Between TERM and KILL of a service that did not get ready.
const GRACE_MS: u32 = 5_000;

/// How a service stands that is waited for. Other calls may end it meanwhile, and start another of its name.
#[derive(Debug, PartialEq)]
enum Standing {
    /// Nobody has touched it.
    Waited,
    /// Somebody is ending it.
    Stopping,
    /// Somebody ended it.
    Stopped,
    /// It ended by itself.
    Exited,
    /// Its name is another one's.
    Replaced,
}

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
    let first = services::start(guest.machine(), &config).map_err(told)?;
    let Some(probe) = &notes.probe else {
        return annotate(guest, name, "ready_at", &now()).map_err(told);
    };
    let deadline = Duration::from_secs(u64::from(notes.ready_timeout_seconds));
    let mut info = first.clone();
    loop {
        let standing = standing(&first, &info);
        match standing {
            Standing::Replaced => return Err(replaced(workspace_id, name)),
            Standing::Stopped => return Ok(info),
            Standing::Exited => {
                return annotate(guest, name, "stop_reason", "process_exited_before_ready").map_err(told);
            }
            Standing::Stopping => {}
            Standing::Waited => match is_ready(guest, &notes.cwd, probe, deadline.saturating_sub(started.elapsed())) {
                Ok(true) => {
                    info = services::status(guest.machine(), name).map_err(told)?;
                    if self::standing(&first, &info) == Standing::Waited {
                        return annotate(guest, name, "ready_at", &now()).map_err(told);
                    }
                    continue;
                }
                Ok(false) => {}
                Err(error) => {
                    // That it runs would be told nobody. What it failed of is what the caller has to know.
                    let _ = end(guest, name, &first, "readiness_failed");
                    return Err(error);
                }
            },
        }
        let waited = started.elapsed();
        if waited >= deadline {
            info = end(guest, name, &first, "readiness_timeout").map_err(told)?;
            continue;
        }
        call.progress(waited.as_secs_f64(), Some(deadline.as_secs_f64()), "waiting for readiness");
        let pause = Duration::from_millis(u64::from(notes.ready_interval_ms)).min(deadline - waited);
        let pause = u32::try_from(pause.as_millis()).unwrap_or(u32::MAX).max(1);
        info = services::wait(guest.machine(), name, pause).map_err(told)?;
    }
}

fn standing(first: &ServiceInfo, now: &ServiceInfo) -> Standing {
    let same = now.started_at.to_bits() == first.started_at.to_bits() && (now.pid.is_none() || now.pid == first.pid);
    match (Notes::read(&now.meta).stop_reason, now.running) {
        _ if !same => Standing::Replaced,
        (None, true) => Standing::Waited,
        (None, false) => Standing::Exited,
        (Some(_), true) => Standing::Stopping,
        (Some(_), false) => Standing::Stopped,
    }
}

/// Ends the service that was started, if it is there and runs, and returns what is there. The reason is noted first: who
/// waits for the service sees with its end that it did not end by itself.
fn end(guest: &Guest, name: &str, first: &ServiceInfo, reason: &str) -> Result<ServiceInfo, Error> {
    let info = services::status(guest.machine(), name)?;
    match standing(first, &info) {
        Standing::Waited => {
            annotate(guest, name, "stop_reason", reason)?;
        }
        Standing::Stopping => {}
        Standing::Stopped | Standing::Exited | Standing::Replaced => return Ok(info),
    }
    services::stop(guest.machine(), name, GRACE_MS)
}

fn replaced(workspace_id: &str, name: &str) -> ToolError {
    let message =
        format!("another call started service '{name}' of workspace '{workspace_id}' anew before this one was ready");
    ToolError::new("invalid_state", message).with_hint("look at the one that is there with service_status")
}

fn annotate(guest: &Guest, name: &str, key: &str, value: &str) -> Result<ServiceInfo, Error> {
    services::annotate(guest.machine(), name, &[(key.to_owned(), value.to_owned())])
}

/// Unix seconds.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:.3}", since.as_secs_f64())
}

/// Looks once; a command gets no more than the time that is `left`.
fn is_ready(guest: &Guest, cwd: &str, probe: &Probe, left: Duration) -> Result<bool, ToolError> {
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
                // No time at all would be no limit.
                timeout_ms: u64::try_from(left.min(PROBE_COMMAND).as_millis()).unwrap_or(u64::MAX).max(1),
                keep_bytes: 0,
                meta: Vec::new(),
            };
            let output = exec::run(guest.machine(), &command)?;
            return Ok(output.exit_code == Some(0) && !output.timed_out);
        }
    };
    Ok(services::probe(guest.machine(), &what)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_service_that_nobody_touched_is_stopped_or_noted() {
        let info = |pid: Option<u32>, started_at, reason: Option<&str>| ServiceInfo {
            name: "rc".to_owned(),
            pid,
            running: pid.is_some(),
            started_at,
            ended_at: None,
            exit_code: None,
            signal: None,
            meta: reason.map(|reason| ("stop_reason".to_owned(), reason.to_owned())).into_iter().collect(),
        };
        let first = info(Some(7), 1.5, None);
        for (now, expected) in [
            (first.clone(), Standing::Waited),
            (info(None, 1.5, None), Standing::Exited),
            (info(Some(7), 1.5, Some("sigterm")), Standing::Stopping),
            (info(None, 1.5, Some("sigterm")), Standing::Stopped),
            // Started in the same millisecond, or with the same number after it came round.
            (info(Some(8), 1.5, None), Standing::Replaced),
            (info(Some(7), 1.6, None), Standing::Replaced),
            (info(None, 1.6, Some("sigterm")), Standing::Replaced),
        ] {
            assert_eq!(standing(&first, &now), expected, "{now:?}");
        }
    }
}
