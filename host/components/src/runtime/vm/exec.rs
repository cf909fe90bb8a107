//! `pyro:vm/exec`: commands in a machine.

use std::sync::Arc;
use std::time::Duration;

use pyro_engine::secrets::RedactedStream;
use pyro_engine::{EngineError, ErrorCode, ExecCommand, ExecEvent, ExecExit, ExecInput, ExecRequest};
use tokio::io::AsyncReadExt;
use wasmtime::component::Resource;

use super::super::bindings::pyro::vm::{exec, types};
use super::super::capture::Capture;
use super::super::state::CallState;
use super::redact::Redaction;
use super::{MachineEntry, denied, missing, possible_env, refusal};
use crate::tool::{CallInput, CallObserver, OutputStream};

/// How long after a command's own timeout the guest's answer is waited for.
const EXEC_GRACE: Duration = Duration::from_secs(20);

/// Longest timeout of a command.
const MAX_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;

/// Most bytes kept of each output stream.
const MAX_KEEP_BYTES: u64 = 16 << 20;

/// Bytes of the caller's input read at once.
const INPUT_CHUNK: usize = 64 << 10;

impl exec::Host for CallState {
    async fn run(
        &mut self,
        machine: Resource<MachineEntry>,
        command: exec::Command,
    ) -> wasmtime::Result<Result<exec::Output, types::Error>> {
        if let Some(problem) = impossible(&command) {
            return Ok(Err(problem));
        }
        let refused = match &self.grants.exec {
            Some(scope) => scope.refusal(&words(&command.program), &command.env, command.timeout_ms).map(denied),
            None => Some(missing("exec")),
        };
        if let Some(refused) = refused {
            return Ok(Err(refused));
        }
        let reached = match self.reach(&machine).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let env = match self.process_env(&reached, command.env).await {
            Ok(env) => env,
            Err(problem) => return Ok(Err(problem)),
        };
        // A bound secret is a variable like any other: `LD_PRELOAD` stays closed.
        if let Some(scope) = &self.grants.exec
            && let Some(message) = scope.refusal(&words(&command.program), &env, command.timeout_ms)
        {
            return Ok(Err(denied(message)));
        }
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
            command: program(command.program),
            cwd: command.cwd,
            env,
            timeout,
            stdin: !matches!(input, Input::None),
        };
        let keep = usize::try_from(command.keep_bytes.min(MAX_KEEP_BYTES)).unwrap_or_default();
        let observer = Arc::clone(&self.observer);
        self.progress.done_with_steps("running");
        let pause = self.clock.pause();
        let ran = run_command(&*observer, &reached.machine, &reached.redaction, request, input, keep);
        let ran = tokio::time::timeout(timeout + EXEC_GRACE, ran).await;
        drop(pause);
        match ran {
            Ok(Ok((exit, mut stdout, mut stderr))) => {
                // One that was set while the command ran may be in what it wrote.
                let newer = self.newer_redaction(reached.workspace.as_deref(), &reached.redaction).await;
                if let Some(newer) = newer {
                    stdout.rewrite(|bytes| newer.bytes(bytes));
                    stderr.rewrite(|bytes| newer.bytes(bytes));
                }
                Ok(Ok(self.output(exit, stdout, stderr)?))
            }
            Ok(Err(failed)) => Ok(Err(reached.error(&failed))),
            Err(_) => Ok(Err(refusal(
                ErrorCode::OutcomeUnknown,
                format!("the guest did not say how the command ended within {} s of its timeout", EXEC_GRACE.as_secs()),
                "look at what it changed before you run it again",
            ))),
        }
    }
}

/// A program as the engine takes it.
pub(super) fn program(program: exec::Program) -> ExecCommand {
    match program {
        exec::Program::Argv(argv) => ExecCommand::Argv(argv),
        exec::Program::Shell(line) => ExecCommand::Shell(line),
    }
}

/// A program as a scope sees it.
fn words(program: &exec::Program) -> Vec<&str> {
    match program {
        exec::Program::Argv(argv) => argv.iter().map(String::as_str).collect(),
        exec::Program::Shell(line) => vec!["sh", "-lc", line],
    }
}

/// What is wrong with a program that no guest could run.
pub(super) fn impossible_program(program: &exec::Program) -> Option<types::Error> {
    let invalid = |message: &str, hint: &str| Some(refusal(ErrorCode::InvalidArgument, message, hint));
    let (nul, empty) = match program {
        exec::Program::Argv(argv) => {
            (argv.iter().any(|word| word.contains('\0')), argv.first().is_none_or(String::is_empty))
        }
        exec::Program::Shell(line) => (line.contains('\0'), line.trim().is_empty()),
    };
    if nul {
        return invalid("the command contains a NUL character", "pass binary data on standard input");
    }
    if empty {
        return invalid("the command is empty", "pass a command");
    }
    None
}

/// What no guest could run.
fn impossible(command: &exec::Command) -> Option<types::Error> {
    if !(1..=MAX_TIMEOUT_MS).contains(&command.timeout_ms) {
        let message = format!("the timeout must be between 1 and {MAX_TIMEOUT_MS} ms, not {}", command.timeout_ms);
        return Some(refusal(ErrorCode::InvalidArgument, message, "pass a timeout of at most a day"));
    }
    impossible_program(&command.program).or_else(|| possible_env(&command.env).err())
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

/// One output stream of a command: without secrets, to the observer as it comes, and kept.
struct Channel<'c> {
    observer: &'c dyn CallObserver,
    which: OutputStream,
    redacted: RedactedStream<'c>,
    kept: Capture,
}

impl Channel<'_> {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = self.redacted.push(bytes);
        self.give(&bytes);
    }

    fn finish(mut self) -> Capture {
        let bytes = self.redacted.finish();
        self.give(&bytes);
        self.kept
    }

    fn give(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.observer.output(self.which, bytes);
            self.kept.push(bytes);
        }
    }
}

/// Runs one command to its end, with its output going to the observer as it comes.
async fn run_command(
    observer: &dyn CallObserver,
    machine: &pyro_engine::Machine,
    redaction: &Redaction,
    request: ExecRequest,
    input: Input,
    keep: usize,
) -> Result<(ExecExit, Capture, Capture), EngineError> {
    let mut session = machine.exec(request).await?;
    let feed = input.feed(session.input());
    let drain = async {
        let channel = |which| Channel { observer, which, redacted: redaction.stream(), kept: Capture::new(keep) };
        let (mut stdout, mut stderr) = (channel(OutputStream::Stdout), channel(OutputStream::Stderr));
        loop {
            match session.next().await? {
                ExecEvent::Started { .. } => {}
                ExecEvent::Stdout(bytes) => stdout.push(&bytes),
                ExecEvent::Stderr(bytes) => stderr.push(&bytes),
                ExecEvent::Exited(exit) => return Ok((exit, stdout.finish(), stderr.finish())),
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
        let (bytes, head_bytes, total_bytes, truncated) = capture.finish();
        let bytes = self.push_bytes(bytes)?;
        Ok(exec::Captured { bytes, head_bytes, total_bytes, truncated })
    }
}
