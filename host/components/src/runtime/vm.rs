//! `pyro:vm`: microVMs and commands in them, over the engine. Every call is checked against the grant's scope first.

use std::sync::Arc;
use std::time::Duration;

use pyro_engine::{
    EngineError, ErrorCode, ExecCommand, ExecEvent, ExecExit, ExecInput, ExecRequest, Lifetime, MachineSpec,
};
use tokio::io::AsyncReadExt;
use wasmtime::component::Resource;

use super::bindings::pyro::vm::{exec, machines, types};
use super::capture::{Blob, Capture};
use super::state::CallState;
use crate::tool::{CallInput, CallObserver, OutputStream};

/// How long after a command's own timeout the guest's answer is waited for.
const EXEC_GRACE: Duration = Duration::from_secs(20);

/// Longest timeout of a command: a machine lives no longer than an hour.
const MAX_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;

/// Most bytes kept of each output stream.
const MAX_KEEP_BYTES: u64 = 16 << 20;

/// Bytes of the caller's input read at once.
const INPUT_CHUNK: usize = 64 << 10;

/// A machine behind a component's handle.
#[derive(Debug)]
pub struct MachineEntry {
    /// None once it was ended.
    machine: Option<pyro_engine::Machine>,
    info: pyro_engine::MachineInfo,
}

fn error(error: &EngineError) -> types::Error {
    types::Error {
        code: error.code().as_str().to_owned(),
        message: error.message().to_owned(),
        hint: error.hint().map(str::to_owned),
        retryable: error.retryable(),
        meta: error.console_tail().map(|tail| ("console_tail".to_owned(), tail.to_owned())).into_iter().collect(),
    }
}

fn refusal(code: ErrorCode, message: impl Into<String>, hint: &str) -> types::Error {
    error(&EngineError::new(code, message).with_hint(hint))
}

impl types::Host for CallState {}

impl types::HostMachine for CallState {
    fn info(&mut self, machine: Resource<MachineEntry>) -> wasmtime::Result<types::MachineInfo> {
        let entry = self.table.get(&machine)?;
        let info = &entry.info;
        Ok(types::MachineInfo {
            id: info.id.clone(),
            environment: info.environment.clone(),
            environment_version: info.environment_version.clone(),
            vcpu_count: info.vcpu_count,
            mem_mib: info.mem_mib,
            ttl_seconds: u32::try_from(info.ttl_seconds).unwrap_or(u32::MAX),
            created_at: info.created_at,
            expires_at: info.expires_at,
            state: if entry.machine.is_some() { "started" } else { "stopped" }.to_owned(),
            execution_mode: info.execution_mode.as_str().to_owned(),
            meta: Vec::new(),
        })
    }

    fn drop(&mut self, machine: Resource<MachineEntry>) -> wasmtime::Result<()> {
        // The machine is owned by its last handle, so this ends it.
        self.table.delete(machine)?;
        Ok(())
    }
}

impl machines::Host for CallState {
    async fn run_ephemeral(
        &mut self,
        config: machines::MachineConfig,
    ) -> wasmtime::Result<Result<Resource<MachineEntry>, types::Error>> {
        let refused = match &self.grants.machines {
            Some(scope) => scope.refusal(&config.environment),
            None => Some("the grant `machines` is missing".to_owned()),
        };
        if let Some(message) = refused {
            return Ok(Err(refusal(ErrorCode::Denied, message, "the profile's `grants` decide this")));
        }
        let Some(engine) = self.engine.clone() else {
            return Ok(Err(refusal(ErrorCode::Denied, "there are no machines here", "call a tool instead")));
        };
        let spec = MachineSpec {
            environment: config.environment,
            vcpu_count: config.vcpu_count,
            mem_mib: config.mem_mib,
            ttl: Duration::from_secs(config.ttl_seconds.into()),
            lifetime: Lifetime::Owned,
        };
        let progress = Arc::clone(&self.progress);
        let pause = self.clock.pause();
        let made = engine.create_machine(spec, &*progress).await;
        drop(pause);
        match made {
            Ok(machine) => {
                let info = machine.info().clone();
                Ok(Ok(self.table.push(MachineEntry { machine: Some(machine), info })?))
            }
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn end(&mut self, machine: Resource<MachineEntry>) -> wasmtime::Result<Result<(), types::Error>> {
        let Some(machine) = self.table.get_mut(&machine)?.machine.take() else {
            return Ok(Ok(()));
        };
        let _pause = self.clock.pause();
        Ok(machine.end().await.map_err(|failed| error(&failed)))
    }
}

impl exec::Host for CallState {
    async fn run(
        &mut self,
        machine: Resource<MachineEntry>,
        command: exec::Command,
    ) -> wasmtime::Result<Result<exec::Output, types::Error>> {
        let shell;
        let argv: Vec<&str> = match &command.program {
            exec::Program::Argv(argv) => argv.iter().map(String::as_str).collect(),
            exec::Program::Shell(line) => {
                shell = line.clone();
                vec!["sh", "-lc", &shell]
            }
        };
        let refused = match &self.grants.exec {
            Some(scope) => scope.refusal(&argv, &command.env, command.timeout_ms),
            None => Some("the grant `exec` is missing".to_owned()),
        };
        if let Some(message) = refused {
            return Ok(Err(refusal(ErrorCode::Denied, message, "the profile's `grants` decide this")));
        }
        if let Some(problem) = impossible(&command) {
            return Ok(Err(problem));
        }
        let Some(machine) = self.table.get(&machine)?.machine.clone() else {
            return Ok(Err(refusal(ErrorCode::NotFound, "the machine was ended", "make a new one")));
        };
        let input = match command.stdin {
            exec::Input::None => Input::None,
            exec::Input::Bytes(bytes) => Input::Bytes(bytes),
            exec::Input::Caller => match self.stdin.lock().await.take() {
                Some(stdin) => Input::Caller(stdin),
                None => Input::None,
            },
        };
        let timeout = Duration::from_millis(command.timeout_ms);
        let request = ExecRequest {
            command: match command.program {
                exec::Program::Argv(argv) => ExecCommand::Argv(argv),
                exec::Program::Shell(line) => ExecCommand::Shell(line),
            },
            cwd: command.cwd,
            env: command.env,
            timeout,
            stdin: !matches!(input, Input::None),
        };
        let keep = usize::try_from(command.keep_bytes.min(MAX_KEEP_BYTES)).unwrap_or_default();
        let observer = Arc::clone(&self.observer);
        let pause = self.clock.pause();
        let ran =
            tokio::time::timeout(timeout + EXEC_GRACE, run_command(&*observer, &machine, request, input, keep)).await;
        drop(pause);
        match ran {
            Ok(Ok((exit, stdout, stderr))) => Ok(Ok(self.output(exit, stdout, stderr)?)),
            Ok(Err(failed)) => Ok(Err(error(&failed))),
            Err(_) => Ok(Err(refusal(
                ErrorCode::OutcomeUnknown,
                format!("the guest did not say how the command ended within {} s of its timeout", EXEC_GRACE.as_secs()),
                "look at what it changed before you run it again",
            ))),
        }
    }
}

/// What no guest could run.
fn impossible(command: &exec::Command) -> Option<types::Error> {
    let invalid = |message: String, hint: &str| Some(refusal(ErrorCode::InvalidArgument, message, hint));
    if !(1..=MAX_TIMEOUT_MS).contains(&command.timeout_ms) {
        let message = format!("the timeout must be between 1 and {MAX_TIMEOUT_MS} ms, not {}", command.timeout_ms);
        return invalid(message, "pass a timeout of at most a day");
    }
    let nul = |text: &str| text.contains('\0');
    let words_nul = match &command.program {
        exec::Program::Argv(argv) => argv.iter().any(|word| nul(word)),
        exec::Program::Shell(line) => nul(line),
    };
    if words_nul || command.env.iter().any(|(name, value)| nul(name) || nul(value)) {
        return invalid("the command contains a NUL character".to_owned(), "pass binary data on standard input");
    }
    let empty = match &command.program {
        exec::Program::Argv(argv) => argv.first().is_none_or(String::is_empty),
        exec::Program::Shell(line) => line.trim().is_empty(),
    };
    if empty {
        return invalid("the command is empty".to_owned(), "pass a command");
    }
    if let Some((name, _)) = command.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
        return invalid(format!("environment variable name `{name}` is not possible"), "use letters, digits and `_`");
    }
    None
}

enum Input {
    None,
    Bytes(Vec<u8>),
    Caller(CallInput),
}

impl Input {
    /// Feeds a command. Write errors mean that it does not read any more: its exit is what counts.
    async fn feed(self, into: ExecInput) {
        match self {
            Input::None => return,
            Input::Bytes(bytes) => {
                for chunk in bytes.chunks(INPUT_CHUNK) {
                    if into.write(chunk).await.is_err() {
                        return;
                    }
                }
            }
            Input::Caller(mut from) => {
                let mut buffer = vec![0; INPUT_CHUNK];
                loop {
                    let read = from.read(&mut buffer).await.unwrap_or_default();
                    let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else {
                        break;
                    };
                    if into.write(chunk).await.is_err() {
                        return;
                    }
                }
            }
        }
        // The same as above: a command that is gone needs no end of file.
        let _ = into.close().await;
    }
}

/// Runs one command to its end, with its output going to the observer as it comes.
async fn run_command(
    observer: &dyn CallObserver,
    machine: &pyro_engine::Machine,
    request: ExecRequest,
    input: Input,
    keep: usize,
) -> Result<(ExecExit, Capture, Capture), EngineError> {
    let mut session = machine.exec(request).await?;
    let feed = input.feed(session.input());
    let drain = async {
        let (mut stdout, mut stderr) = (Capture::new(keep), Capture::new(keep));
        loop {
            match session.next().await? {
                ExecEvent::Started { .. } => {}
                ExecEvent::Stdout(bytes) => {
                    observer.output(OutputStream::Stdout, &bytes);
                    stdout.push(&bytes);
                }
                ExecEvent::Stderr(bytes) => {
                    observer.output(OutputStream::Stderr, &bytes);
                    stderr.push(&bytes);
                }
                ExecEvent::Exited(exit) => return Ok((exit, stdout, stderr)),
            }
        }
    };
    let feed_then_wait = async {
        feed.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        done = drain => done,
        () = feed_then_wait => Err(EngineError::new(ErrorCode::Internal, "the input ended the command")),
    }
}

impl CallState {
    fn output(&mut self, exit: ExecExit, stdout: Capture, stderr: Capture) -> wasmtime::Result<exec::Output> {
        let mut meta = Vec::new();
        if exit.oom_killed {
            meta.push(("oom_killed".to_owned(), "true".to_owned()));
        }
        Ok(exec::Output {
            exit_code: exit.exit_code,
            signal: exit.signal.map(|signal| signal.to_string()),
            timed_out: exit.timed_out,
            stdout: self.captured(stdout)?,
            stderr: self.captured(stderr)?,
            duration_ms: u64::try_from(exit.duration.as_millis()).unwrap_or(u64::MAX),
            cpu_us: exit.cpu.map(|cpu| u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX)),
            peak_memory_bytes: exit.peak_memory_bytes,
            meta,
        })
    }

    fn captured(&mut self, capture: Capture) -> wasmtime::Result<exec::Captured> {
        self.hold(capture.held())?;
        let (bytes, head_bytes, total_bytes, truncated) = capture.finish();
        let bytes = self.table.push(Blob(bytes))?;
        Ok(exec::Captured { bytes, head_bytes, total_bytes, truncated })
    }
}
