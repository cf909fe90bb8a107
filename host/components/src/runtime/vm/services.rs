//! `pyro:vm/services`: processes that outlive the call.

use std::time::Duration;

use pyro_engine::{EngineError, ErrorCode, LogStream, Readiness, ServiceConfig, ServiceInfo, ServiceLogs};
use wasmtime::component::Resource;

use super::super::bindings::pyro::vm::{services, types};
use super::super::blob::Blob;
use super::super::state::CallState;
use super::exec::{impossible_program, program};
use super::redact::Redaction;
use super::window::{Part, Window};
use super::{GUEST_LIMIT, MachineEntry, Reached, missing, refusal, sendable};

/// Most bytes kept of each stream of a service.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// What notes of the host's own begin with; components neither see nor make them.
const OURS: char = '@';

/// The note with the names of the secrets and variables that a service was started with.
const SECRET_ENV: &str = "@secret_env";

/// Most bytes that one read returns.
const MAX_READ: u32 = 4 << 20;

/// Longest grace time of a stop, and longest wait.
const MAX_WAIT: Duration = Duration::from_secs(600);

impl CallState {
    async fn reach_services(
        &mut self,
        machine: &Resource<MachineEntry>,
        name: Option<&str>,
    ) -> wasmtime::Result<Result<Reached, types::Error>> {
        if self.grants.services.is_none() {
            return Ok(Err(missing("services")));
        }
        if let Some(Err(problem)) = name.map(|name| sendable("name", name)) {
            return Ok(Err(problem));
        }
        self.reach(machine).await
    }
}

impl services::Host for CallState {
    async fn start(
        &mut self,
        machine: Resource<MachineEntry>,
        config: services::ServiceConfig,
    ) -> wasmtime::Result<Result<services::ServiceInfo, types::Error>> {
        let reached = match self.reach_services(&machine, Some(&config.name)).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let problem = impossible_program(&config.program)
            .or_else(|| sendable("directory", &config.cwd).err())
            .or_else(|| meta(&config.meta).err());
        if let Some(problem) = problem {
            return Ok(Err(problem));
        }
        let env = match self.process_env(&reached, config.env).await {
            Ok(env) => env,
            Err(problem) => return Ok(Err(problem)),
        };
        let mut meta = config.meta;
        meta.extend(self.bound_names(&reached));
        let asked = ServiceConfig {
            name: config.name,
            program: program(config.program),
            cwd: config.cwd,
            env,
            log_limit_bytes: config.log_limit_bytes.min(MAX_LOG_BYTES),
            meta,
        };
        let _pause = self.clock.pause();
        let started = reached.ask(GUEST_LIMIT, reached.machine.service_start(asked)).await;
        Ok(started.map(|service| info(service, &reached.redaction)))
    }

    async fn status(
        &mut self,
        machine: Resource<MachineEntry>,
        name: String,
    ) -> wasmtime::Result<Result<services::ServiceInfo, types::Error>> {
        let reached = match self.reach_services(&machine, Some(&name)).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let status = reached.ask(GUEST_LIMIT, reached.machine.service_status(&name)).await;
        Ok(status.map(|service| info(service, &reached.redaction)))
    }

    async fn list(
        &mut self,
        machine: Resource<MachineEntry>,
    ) -> wasmtime::Result<Result<Vec<services::ServiceInfo>, types::Error>> {
        let reached = match self.reach_services(&machine, None).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let listed = reached.ask(GUEST_LIMIT, reached.machine.service_list()).await;
        Ok(listed.map(|list| list.into_iter().map(|service| info(service, &reached.redaction)).collect()))
    }

    async fn logs(
        &mut self,
        machine: Resource<MachineEntry>,
        name: String,
    ) -> wasmtime::Result<Result<(Resource<Blob>, Resource<Blob>, bool), types::Error>> {
        let reached = match self.reach_services(&machine, Some(&name)).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let pause = self.clock.pause();
        let logs = reached.ask(GUEST_LIMIT, logs(&reached, &name)).await;
        drop(pause);
        match logs {
            Ok(logs) => Ok(Ok((self.push_bytes(logs.stdout)?, self.push_bytes(logs.stderr)?, logs.truncated))),
            Err(problem) => Ok(Err(problem)),
        }
    }

    async fn read(
        &mut self,
        machine: Resource<MachineEntry>,
        name: String,
        of: services::LogStream,
        cursor: u64,
        max: u32,
    ) -> wasmtime::Result<Result<services::LogPart, types::Error>> {
        let reached = match self.reach_services(&machine, Some(&name)).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let stream = match of {
            services::LogStream::Stdout => LogStream::Stdout,
            services::LogStream::Stderr => LogStream::Stderr,
        };
        let window = Window { cursor, max: max.min(MAX_READ), most: u32::MAX, release: false };
        let (from, asked) = window.around(&reached.redaction);
        let pause = self.clock.pause();
        let read = reached.ask(GUEST_LIMIT, reached.machine.service_read(&name, stream, from, asked)).await;
        drop(pause);
        match read {
            Ok(read) => {
                let ended = !read.info.running;
                let part = Part { data: read.data, start: read.start, next: read.next, ended, info: read.info };
                let part = window.cut(&reached.redaction, part);
                let data = self.push_bytes(part.data)?;
                let info = info(part.info, &reached.redaction);
                Ok(Ok(services::LogPart { data, start: part.start, next: part.next, info }))
            }
            Err(problem) => Ok(Err(problem)),
        }
    }

    async fn stop(
        &mut self,
        machine: Resource<MachineEntry>,
        name: String,
        grace_ms: u32,
    ) -> wasmtime::Result<Result<services::ServiceInfo, types::Error>> {
        let reached = match self.reach_services(&machine, Some(&name)).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let grace = Duration::from_millis(grace_ms.into()).min(MAX_WAIT);
        let _pause = self.clock.pause();
        let stopped = reached.ask(grace + GUEST_LIMIT, reached.machine.service_stop(&name, grace)).await;
        Ok(stopped.map(|service| info(service, &reached.redaction)))
    }

    async fn remove(
        &mut self,
        machine: Resource<MachineEntry>,
        name: String,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        let reached = match self.reach_services(&machine, Some(&name)).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(reached.ask(GUEST_LIMIT, reached.machine.service_remove(&name)).await)
    }

    async fn annotate(
        &mut self,
        machine: Resource<MachineEntry>,
        name: String,
        notes: Vec<(String, String)>,
    ) -> wasmtime::Result<Result<services::ServiceInfo, types::Error>> {
        if let Err(problem) = meta(&notes) {
            return Ok(Err(problem));
        }
        let reached = match self.reach_services(&machine, Some(&name)).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let annotated = reached.ask(GUEST_LIMIT, reached.machine.service_annotate(&name, notes)).await;
        Ok(annotated.map(|service| info(service, &reached.redaction)))
    }

    async fn rebind(
        &mut self,
        machine: Resource<MachineEntry>,
        name: String,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        let reached = match self.reach_services(&machine, Some(&name)).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let pause = self.clock.pause();
        let status = reached.ask(GUEST_LIMIT, reached.machine.service_status(&name)).await;
        drop(pause);
        let service = match status {
            Ok(service) => service,
            Err(problem) => return Ok(Err(problem)),
        };
        let record = service.meta.iter().find(|(key, _)| key == SECRET_ENV);
        let bound = record.and_then(|(_, text)| serde_json::from_str(text).ok()).unwrap_or_default();
        Ok(self.bind_again(&reached, &name, bound).await)
    }

    async fn wait(
        &mut self,
        machine: Resource<MachineEntry>,
        name: String,
        max_ms: u32,
    ) -> wasmtime::Result<Result<services::ServiceInfo, types::Error>> {
        let reached = match self.reach_services(&machine, Some(&name)).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        // The call's own clock bounds a wait that nobody asked the guest for: it stands only this long.
        let most = Duration::from_millis(max_ms.into()).min(MAX_WAIT);
        let _pause = self.clock.pause();
        let waited = reached.ask(most + GUEST_LIMIT, reached.machine.service_wait(&name, most)).await;
        Ok(waited.map(|service| info(service, &reached.redaction)))
    }

    async fn probe(
        &mut self,
        machine: Resource<MachineEntry>,
        what: services::Readiness,
    ) -> wasmtime::Result<Result<bool, types::Error>> {
        let what = match what {
            services::Readiness::File(path) => Readiness::File(path),
            services::Readiness::Tcp((host, port)) => Readiness::Tcp(host, port),
            services::Readiness::Http(url) => Readiness::Http(url),
        };
        let (Readiness::File(text) | Readiness::Tcp(text, _) | Readiness::Http(text)) = &what;
        if let Err(problem) = sendable("probe", text) {
            return Ok(Err(problem));
        }
        let reached = match self.reach_services(&machine, None).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(reached.ask(GUEST_LIMIT, reached.machine.service_probe(what)).await)
    }
}

impl CallState {
    /// The names of the secrets that a process is given, and of their variables, to be kept with it.
    fn bound_names(&self, reached: &Reached) -> Option<(String, String)> {
        let bound = self.attachments.variables(reached.workspace.as_deref()?);
        let names: Vec<_> = bound.into_iter().map(|bound| (bound.secret, bound.variable)).collect();
        let text = serde_json::to_string(&names).ok().filter(|_| !names.is_empty())?;
        Some((SECRET_ENV.to_owned(), text))
    }
}

/// What may be kept with a service.
fn meta(pairs: &[(String, String)]) -> Result<(), types::Error> {
    if pairs.len() > 64 {
        let message = format!("{} notes, more than 64", pairs.len());
        return Err(refusal(ErrorCode::InvalidArgument, message, "keep fewer"));
    }
    if let Some((key, _)) = pairs.iter().find(|(key, _)| key.starts_with(OURS)) {
        let message = format!("the note `{}` begins with `{OURS}`", key.escape_debug());
        return Err(refusal(ErrorCode::InvalidArgument, message, "call it something else"));
    }
    pairs.iter().try_for_each(|(key, value)| sendable("note", key).and_then(|()| sendable("note", value)))
}

/// Returns what was kept of a service's output, without secrets.
async fn logs(reached: &Reached, name: &str) -> Result<ServiceLogs, EngineError> {
    let mut logs = reached.machine.service_logs(name).await?;
    for (stream, bytes) in [(LogStream::Stdout, &mut logs.stdout), (LogStream::Stderr, &mut logs.stderr)] {
        if logs.truncated && reached.machine.service_read(name, stream, 0, 1).await?.start > 0 {
            reached.redaction.behead(bytes);
        }
        *bytes = reached.redaction.bytes(std::mem::take(bytes));
    }
    Ok(logs)
}

/// A service as a component sees it: a note may hold its command line.
fn info(service: ServiceInfo, redaction: &Redaction) -> services::ServiceInfo {
    services::ServiceInfo {
        name: service.name,
        pid: service.pid,
        running: service.running,
        started_at: service.started_at,
        ended_at: service.ended_at,
        exit_code: service.exit_code,
        signal: service.signal,
        meta: redaction.pairs(service.meta.into_iter().filter(|(key, _)| !key.starts_with(OURS)).collect()),
    }
}
