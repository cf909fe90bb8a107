//! A process tree that outlives the connection that started it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use pyro_agent_protocol::{ErrorReply, ExecRequest, codes, signal_name};

use crate::cgroup::ExecCgroup;
use crate::environment::{error, prepare, spawn_error};
use crate::exec::{Context, has_ended, reap_blocking};
use crate::spawn::Command;
use crate::sys::{ChildEnd, reap_child, signal_group, signal_process};

/// How long after its KILL a process is still awaited.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// A process that was started, and everything it starts.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    cgroup: Option<ExecCgroup>,
    started_ms: u64,
    end: Option<End>,
    /// When to kill it.
    kill_at: Option<Instant>,
    /// When to stop waiting for it.
    give_up_at: Option<Instant>,
    may_have_ended: bool,
}

/// How a process ended, and when.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// How.
    pub how: ChildEnd,
    /// Unix milliseconds.
    pub at_ms: u64,
}

impl Process {
    /// Starts `request` with these streams.
    ///
    /// # Errors
    /// What to answer: nothing was started.
    pub fn start(
        request: &ExecRequest,
        stdio: [BorrowedFd<'_>; 3],
        on_terminal: bool,
        context: &mut Context,
    ) -> Result<Self, ErrorReply> {
        let prepared = prepare(request, &context.default_cwd)?;
        let system = |what: &str, reason: io::Error| error(codes::INTERNAL, format!("cannot make {what}: {reason}"));
        let cgroup = match &mut context.cgroups {
            Some(root) => Some(root.take().map_err(|e| system("a cgroup", e))?),
            None => None,
        };
        let command = Command {
            candidates: prepared.candidates,
            argv: prepared.argv,
            envp: prepared.envp,
            cwd: prepared.cwd.as_fd(),
            stdio,
            cgroup: cgroup.as_ref().map(ExecCgroup::dir),
            on_terminal,
        };
        match context.spawner.spawn(command) {
            Ok(spawned) => Ok(Self {
                pid: spawned.pid,
                pidfd: spawned.pidfd,
                cgroup,
                started_ms: unix_ms(),
                end: None,
                kill_at: None,
                give_up_at: None,
                may_have_ended: false,
            }),
            Err(why) => {
                if let (Some(root), Some(cgroup)) = (&mut context.cgroups, cgroup) {
                    root.retire(cgroup);
                }
                Err(spawn_error(&prepared.program, &why))
            }
        }
    }

    /// Returns its id.
    pub fn pid(&self) -> u32 {
        u32::try_from(self.pid).unwrap_or(0)
    }

    /// Returns the descriptor that becomes readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns its id while it is not reaped.
    pub fn unreaped_pid(&self) -> Option<i32> {
        self.end.is_none().then_some(self.pid)
    }

    /// Returns when it started, in Unix milliseconds.
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// Returns how it ended.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// True when it has ended.
    pub fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Notes that it may have ended.
    pub fn on_event(&mut self) {
        self.may_have_ended = true;
    }

    /// Signals every process of the tree.
    pub fn signal_tree(&self, number: i32) {
        if self.end.is_some() {
            return;
        }
        match self.cgroup.as_ref().map(ExecCgroup::processes) {
            Some(Ok(processes)) => {
                for pid in processes {
                    // One that ended since is no matter.
                    let _ = signal_process(pid, number);
                }
            }
            _ => {
                let _ = signal_group(self.pid, number);
            }
        }
    }

    /// Kills the tree at `at`, unless it is to be killed sooner.
    pub fn kill_at(&mut self, at: Instant) {
        let at = self.kill_at.map_or(at, |sooner| sooner.min(at));
        self.kill_at = Some(at);
        self.give_up_at = Some(at + KILL_GRACE);
    }

    /// Looks at the clock, and whether it has ended. Returns true when it has ended just now; what it left is then killed.
    pub fn turn(&mut self, now: Instant, context: &mut Context) -> bool {
        if self.end.is_some() {
            return false;
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.kill();
        }
        let given_up = self.give_up_at.is_some_and(|at| at <= now);
        if !std::mem::take(&mut self.may_have_ended) && !given_up {
            return false;
        }
        if self.cgroup.is_none() && has_ended(self.pidfd.as_fd()) {
            // Until the leader is reaped its group's number cannot be used again.
            let _ = signal_group(self.pid, libc::SIGKILL);
        }
        let how = match reap_child(self.pid) {
            Ok(Some(how)) => how,
            Ok(None) if !given_up => return false,
            // Stuck in the kernel, or reaped by somebody else.
            Ok(None) | Err(_) => ChildEnd::Signal(libc::SIGKILL),
        };
        self.end = Some(End { how, at_ms: unix_ms() });
        self.give_up(context);
        true
    }

    /// Returns the next moment at which [`turn`](Self::turn) must be called even if nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        if self.end.is_some() {
            return None;
        }
        self.kill_at.or(self.give_up_at)
    }

    /// Kills it and waits for its end; for one that cannot be watched.
    pub fn abandon(mut self, context: &mut Context) {
        self.kill();
        let _ = reap_blocking(self.pidfd.as_fd());
        self.end = Some(End { how: ChildEnd::Signal(libc::SIGKILL), at_ms: unix_ms() });
        self.give_up(context);
    }

    fn kill(&self) {
        let by_cgroup = self.cgroup.as_ref().is_some_and(|cgroup| cgroup.kill().is_ok());
        if !by_cgroup && self.end.is_none() {
            let _ = signal_group(self.pid, libc::SIGKILL);
        }
    }

    fn give_up(&mut self, context: &mut Context) {
        if let Some(cgroup) = self.cgroup.take() {
            if cgroup.populated().unwrap_or(true) {
                let _ = cgroup.kill();
            }
            if let Some(root) = &mut context.cgroups {
                root.retire(cgroup);
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.end.is_none() {
            self.kill();
        }
    }
}

impl End {
    /// Returns the exit code, or the signal's name.
    pub fn code_or_signal(&self) -> (Option<i32>, Option<String>) {
        match self.how {
            ChildEnd::Code(code) => (Some(code), None),
            ChildEnd::Signal(number) => (None, Some(signal_name(number))),
        }
    }

    /// Returns the exit code as a shell reports it.
    pub fn shell_code(&self) -> i32 {
        match self.how {
            ChildEnd::Code(code) => code,
            ChildEnd::Signal(number) => 128 + number,
        }
    }
}

/// Returns the wall clock, in milliseconds since 1970.
fn unix_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    u64::try_from(Duration::try_from(now).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
