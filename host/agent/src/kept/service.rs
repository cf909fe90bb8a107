//! A named process with its logs.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use pyro_agent_protocol::{ErrorReply, ExecRequest, ServiceStartRequest, ServiceStatus, codes};
use rustix::event::epoll::EventFlags;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::process::Process;
use super::ring::Ring;
use crate::environment::error;
use crate::exec::Context;
use crate::server::{Kind, Token};

/// The most bytes kept of a stream, whatever is asked for.
const LOG_BYTES: u64 = 16 * 1024 * 1024;
/// The longest name.
const NAME_BYTES: usize = 128;
/// What may be kept with a service: JSON makes at most six bytes of each, and it must fit into a frame.
const META_BYTES: usize = 32 * 1024;
/// Reads of each stream before others have their turn.
const READS_PER_TURN: usize = 8;

/// A service.
#[derive(Debug)]
pub struct Service {
    name: String,
    process: Process,
    stdout: Log,
    stderr: Log,
    meta: Vec<(String, String)>,
}

#[derive(Debug)]
struct Log {
    /// `None` once every process has closed the other side.
    pipe: Option<OwnedFd>,
    readable: bool,
    kept: Ring,
}

impl Service {
    /// Starts a service.
    ///
    /// # Errors
    /// What to answer: nothing was started.
    pub fn start(request: ServiceStartRequest, token: Token, context: &mut Context) -> Result<Self, ErrorReply> {
        if request.name.is_empty() || request.name.len() > NAME_BYTES {
            let message = format!("the service's name {:?} has not 1 to {NAME_BYTES} bytes", request.name);
            return Err(error(codes::INVALID_ARGUMENT, message));
        }
        let meta = merged(Vec::new(), request.meta)?;
        let system = |errno: Errno| error(codes::INTERNAL, format!("cannot make a pipe: {errno}"));
        let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        for ours in [&stdout, &stderr] {
            fcntl_setfl(ours, OFlags::NONBLOCK).map_err(system)?;
        }
        let null = rustix::io::fcntl_dupfd_cloexec(&context.null, 3).map_err(system)?;
        let mut command = ExecRequest::new(request.program);
        command.cwd = Some(request.cwd);
        command.env = request.env;
        let stdio = [null.as_fd(), child_stdout.as_fd(), child_stderr.as_fd()];
        let process = Process::start(&command, stdio, false, context)?;
        let watched = context
            .watch(process.pidfd(), token, Kind::ServiceProcess, EventFlags::IN)
            .and_then(|()| context.watch(stdout.as_fd(), token, Kind::ServiceStdout, EventFlags::IN))
            .and_then(|()| context.watch(stderr.as_fd(), token, Kind::ServiceStderr, EventFlags::IN));
        if let Err(reason) = watched {
            process.abandon(context);
            return Err(error(codes::INTERNAL, format!("cannot watch a service: {reason}")));
        }
        let limit = usize::try_from(request.log_limit_bytes.min(LOG_BYTES)).unwrap_or(0);
        let log = |pipe| Log { pipe: Some(pipe), readable: true, kept: Ring::new(limit) };
        Ok(Self { name: request.name, process, stdout: log(stdout), stderr: log(stderr), meta })
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its main process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Returns what is known about it.
    pub fn status(&self) -> ServiceStatus {
        let end = self.process.end();
        let (exit_code, signal) = end.map(|end| end.code_or_signal()).unwrap_or_default();
        ServiceStatus {
            name: self.name.clone(),
            pid: end.is_none().then(|| self.process.pid()),
            running: end.is_none(),
            started_ms: self.process.started_ms(),
            ended_ms: end.map(|end| end.at_ms),
            exit_code,
            signal,
            meta: self.meta.clone(),
        }
    }

    /// Returns what was kept of its output, and whether older output was dropped.
    pub fn logs(&self) -> (&Ring, &Ring, bool) {
        let (stdout, stderr) = (&self.stdout.kept, &self.stderr.kept);
        (stdout, stderr, stdout.start() > 0 || stderr.start() > 0)
    }

    /// Begins its end.
    pub fn stop(&mut self, grace: Duration, now: Instant) {
        if !self.process.is_over() {
            self.process.signal_tree(libc::SIGTERM);
            self.process.kill_at(now + grace);
        }
    }

    /// Adds to what is kept with it.
    ///
    /// # Errors
    /// What to answer; nothing was added.
    pub fn annotate(&mut self, meta: Vec<(String, String)>) -> Result<(), ErrorReply> {
        self.meta = merged(self.meta.clone(), meta)?;
        Ok(())
    }

    /// Notes that a descriptor is ready.
    pub fn on_event(&mut self, kind: Kind) {
        match kind {
            Kind::ServiceStdout => self.stdout.readable = true,
            Kind::ServiceStderr => self.stderr.readable = true,
            _ => self.process.on_event(),
        }
    }

    /// Moves what can be moved. Returns whether something is left to move at once, and whether it has ended just now.
    pub fn turn(&mut self, now: Instant, scratch: &mut [u8], context: &mut Context) -> (bool, bool) {
        let mut more = self.stdout.pump(scratch);
        more |= self.stderr.pump(scratch);
        let ended = self.process.turn(now, context);
        if ended {
            // What it wrote last is there by now. Nothing that it left behind can go on writing.
            (self.stdout.readable, self.stderr.readable) = (true, true);
            while self.stdout.pump(scratch) || self.stderr.pump(scratch) {}
        }
        (more, ended)
    }
}

impl Log {
    /// Returns true when there may be more.
    fn pump(&mut self, scratch: &mut [u8]) -> bool {
        for _ in 0..READS_PER_TURN {
            let Some(pipe) = self.pipe.as_ref().filter(|_| self.readable) else {
                return false;
            };
            match rustix::io::read(pipe, &mut *scratch) {
                Ok(count) if count > 0 => self.kept.push(scratch.get(..count).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Ok(_) | Err(_) => self.pipe = None,
            }
        }
        self.pipe.is_some() && self.readable
    }
}

fn merged(mut meta: Vec<(String, String)>, more: Vec<(String, String)>) -> Result<Vec<(String, String)>, ErrorReply> {
    for (key, value) in more {
        match meta.iter_mut().find(|(known, _)| *known == key) {
            Some(found) => found.1 = value,
            None => meta.push((key, value)),
        }
    }
    let bytes: usize = meta.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
    if bytes > META_BYTES {
        let message = format!("what is kept with the service would have {bytes} bytes, more than {META_BYTES}");
        return Err(error(codes::LIMIT_EXCEEDED, message));
    }
    Ok(meta)
}
