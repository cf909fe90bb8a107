//! An interactive shell on a pseudo-terminal.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use pyro_agent_protocol::{
    ErrorReply, ExecRequest, Program, TerminalOpenRequest, TerminalStatus, codes, signal_number,
};
use rustix::event::epoll::EventFlags;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};

use super::process::Process;
use super::ring::Ring;
use crate::environment::error;
use crate::exec::Context;
use crate::server::{Kind, Token};
use crate::sys::signal_group;

/// Output kept for reading again.
const SCROLLBACK_BYTES: usize = 1024 * 1024;
/// What was typed and is not read by the terminal's program yet. More is refused.
const INPUT_BYTES: usize = 1024 * 1024;
/// The largest size in either direction.
const SIZE_MAX: u32 = 1000;
/// How long after HUP everything is killed.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// How long a terminal that was closed stays for the operation that closed it.
const FORGET_AFTER: Duration = Duration::from_secs(2);
/// Reads before others have their turn.
const READS_PER_TURN: usize = 8;

/// The shells that are looked for, with their arguments.
const SHELLS: [&[&str]; 2] = [&["bash", "--noprofile", "--norc", "-i"], &["sh", "-i"]];
/// What a shell's environment has besides a command's.
const VARIABLES: [(&str, &str); 2] = [("TERM", "xterm-256color"), ("PS1", "pyro$ ")];
/// The signals that may be sent.
const SIGNALS: [i32; 7] =
    [libc::SIGINT, libc::SIGHUP, libc::SIGTERM, libc::SIGKILL, libc::SIGQUIT, libc::SIGTSTP, libc::SIGCONT];

/// A terminal.
#[derive(Debug)]
pub struct Terminal {
    id: String,
    cwd: String,
    cols: u32,
    rows: u32,
    process: Process,
    /// Our side; `None` once every process has closed the other.
    master: Option<OwnedFd>,
    readable: bool,
    writable: bool,
    input: Vec<u8>,
    output: Ring,
    last_output: Instant,
    closing: bool,
    /// When to remove it, once it was closed and has ended.
    forget_at: Option<Instant>,
}

impl Terminal {
    /// Starts a shell.
    ///
    /// # Errors
    /// What to answer: nothing was started.
    pub fn open(
        id: String,
        request: &TerminalOpenRequest,
        token: Token,
        context: &mut Context,
    ) -> Result<Self, ErrorReply> {
        let size = size(request.cols, request.rows)?;
        let system = |errno: Errno| error(codes::INTERNAL, format!("cannot make a pseudo-terminal: {errno}"));
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).map_err(system)?;
        unlockpt(&master).map_err(system)?;
        // Needs no name below /dev, which programs of the guest may have changed.
        let slave = ioctl_tiocgptpeer(&master, flags).map_err(system)?;
        tcsetwinsize(&master, size).map_err(system)?;
        fcntl_setfl(&master, OFlags::NONBLOCK).map_err(system)?;

        let mut env: Vec<(String, String)> =
            VARIABLES.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        env.extend(request.env.iter().cloned());
        let stdio = [slave.as_fd(); 3];
        let mut started = Err(error(codes::NOT_FOUND, "the guest has no shell"));
        for shell in SHELLS {
            let program = Program::Argv(shell.iter().map(|word| (*word).to_owned()).collect());
            let mut command = ExecRequest::new(program);
            command.cwd = Some(request.cwd.clone());
            command.env.clone_from(&env);
            started = Process::start(&command, stdio, true, context);
            if !started.as_ref().is_err_and(|reply| reply.code == codes::NOT_FOUND) {
                break;
            }
        }
        let process = started?;
        let watched = context.watch(process.pidfd(), token, Kind::TerminalProcess, EventFlags::IN).and_then(|()| {
            context.watch(master.as_fd(), token, Kind::TerminalMaster, EventFlags::IN | EventFlags::OUT)
        });
        if let Err(reason) = watched {
            process.abandon(context);
            return Err(error(codes::INTERNAL, format!("cannot watch a terminal: {reason}")));
        }
        Ok(Self {
            id,
            cwd: request.cwd.clone(),
            cols: request.cols,
            rows: request.rows,
            process,
            master: Some(master),
            readable: true,
            writable: true,
            input: Vec::new(),
            output: Ring::new(SCROLLBACK_BYTES),
            last_output: Instant::now(),
            closing: false,
            forget_at: None,
        })
    }

    /// Returns its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns what is known about it.
    pub fn status(&self) -> TerminalStatus {
        let end = self.process.end();
        TerminalStatus {
            id: self.id.clone(),
            cwd: self.cwd.clone(),
            cols: self.cols,
            rows: self.rows,
            running: end.is_none(),
            started_ms: self.process.started_ms(),
            ended_ms: end.map(|end| end.at_ms),
            exit_code: end.map(|end| end.shell_code()),
        }
    }

    /// Returns its shell.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Returns its output.
    pub fn output(&self) -> &Ring {
        &self.output
    }

    /// Returns when output last came.
    pub fn last_output(&self) -> Instant {
        self.last_output
    }

    /// Notes that a descriptor is ready.
    pub fn on_event(&mut self, kind: Kind, readable: bool, writable: bool) {
        if kind == Kind::TerminalProcess {
            self.process.on_event();
        } else {
            self.readable |= readable;
            self.writable |= writable;
        }
    }

    /// Takes what is typed.
    ///
    /// # Errors
    /// What to answer; nothing of `bytes` was taken.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ErrorReply> {
        self.must_run()?;
        if self.input.len() + bytes.len() > INPUT_BYTES {
            let message =
                format!("terminal `{}` has {} bytes of input that it does not read", self.id, self.input.len());
            return Err(error(codes::LIMIT_EXCEEDED, message));
        }
        self.input.extend_from_slice(bytes);
        self.pump_input();
        Ok(())
    }

    /// Changes its size.
    ///
    /// # Errors
    /// What to answer.
    pub fn resize(&mut self, cols: u32, rows: u32) -> Result<(), ErrorReply> {
        let size = size(cols, rows)?;
        self.must_run()?;
        if let Some(master) = &self.master {
            tcsetwinsize(master, size)
                .map_err(|errno| error(codes::INTERNAL, format!("cannot resize a terminal: {errno}")))?;
        }
        (self.cols, self.rows) = (cols, rows);
        Ok(())
    }

    /// Signals the foreground job.
    ///
    /// # Errors
    /// What to answer.
    pub fn signal(&mut self, name: &str) -> Result<(), ErrorReply> {
        let number = signal_number(name).filter(|number| SIGNALS.contains(number)).ok_or_else(|| {
            let message = format!("signal {name:?} is none of INT, HUP, TERM, KILL, QUIT, TSTP, CONT");
            error(codes::INVALID_ARGUMENT, message)
        })?;
        self.must_run()?;
        let foreground = self.master.as_ref().and_then(|master| tcgetpgrp(master).ok());
        let group = foreground.map_or_else(|| self.process.pid().cast_signed(), |pid| pid.as_raw_nonzero().get());
        signal_group(group, number)
            .map_err(|reason| error(codes::INTERNAL, format!("cannot signal process group {group}: {reason}")))
    }

    /// Begins its end. What was stopped is let go on, so that it hears of it.
    pub fn close(&mut self, now: Instant) {
        if !self.closing && !self.process.is_over() {
            self.process.signal_tree(libc::SIGHUP);
            self.process.signal_tree(libc::SIGCONT);
            self.process.kill_at(now + CLOSE_GRACE);
        }
        self.closing = true;
        self.forget_at = self.process.is_over().then_some(now + FORGET_AFTER);
    }

    /// Moves what can be moved. Returns whether something is left to move at once, and whether something happened that
    /// operations may wait for.
    pub fn turn(&mut self, now: Instant, scratch: &mut [u8], context: &mut Context) -> (bool, bool) {
        let more = self.pump_output(now, scratch);
        self.pump_input();
        let mut news = false;
        if self.process.turn(now, context) {
            // What it wrote last is there by now.
            self.readable = true;
            while self.pump_output(now, scratch) {}
            self.input = Vec::new();
            self.forget_at = self.closing.then_some(now + FORGET_AFTER);
            news = true;
        }
        (more, news)
    }

    /// True when it was closed, has ended, and nobody asked for it any more.
    pub fn is_forgotten(&self, now: Instant) -> bool {
        self.forget_at.is_some_and(|at| at <= now)
    }

    /// Returns the next moment at which [`turn`](Self::turn) must be called even if nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        [self.process.wake_at(), self.forget_at].into_iter().flatten().min()
    }

    fn must_run(&self) -> Result<(), ErrorReply> {
        if self.process.is_over() {
            return Err(error(codes::INVALID_STATE, format!("terminal `{}` has ended", self.id)));
        }
        Ok(())
    }

    /// Returns true when there may be more.
    fn pump_output(&mut self, now: Instant, scratch: &mut [u8]) -> bool {
        for _ in 0..READS_PER_TURN {
            let Some(master) = self.master.as_ref().filter(|_| self.readable) else {
                return false;
            };
            match rustix::io::read(master, &mut *scratch) {
                Ok(count) if count > 0 => {
                    self.output.push(scratch.get(..count).unwrap_or_default());
                    self.last_output = now;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.readable = false,
                // EIO: every process has closed its side. A shell may yet open it again through /dev/tty.
                Err(Errno::IO) if !self.process.is_over() => self.readable = false,
                Ok(_) | Err(_) => self.master = None,
            }
        }
        self.master.is_some() && self.readable
    }

    fn pump_input(&mut self) {
        let mut written = 0;
        while let Some(master) = self.master.as_ref().filter(|_| self.writable)
            && written < self.input.len()
        {
            match rustix::io::write(master, self.input.get(written..).unwrap_or_default()) {
                Ok(count) if count > 0 => written += count,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => self.writable = false,
            }
        }
        self.input.drain(..written);
    }
}

fn size(cols: u32, rows: u32) -> Result<Winsize, ErrorReply> {
    let within = |value: u32| u16::try_from(value).ok().filter(|_| (1..=SIZE_MAX).contains(&value));
    match (within(cols), within(rows)) {
        (Some(ws_col), Some(ws_row)) => Ok(Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }),
        _ => {
            let message = format!("a terminal of {cols} columns and {rows} rows is not within 1 to {SIZE_MAX}");
            Err(error(codes::INVALID_ARGUMENT, message))
        }
    }
}
