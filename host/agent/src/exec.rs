//! One running command: its process tree, its streams, its end.
//!
//! ```text
//! running ──main process ends──► draining ──tree dead, pipes at their end──► finished
//!    │                              ▲
//!    └─timeout, cancel: kill tree───┘
//! ```
//!
//! When the main process ends, what is left of its tree is killed, so no background child outlives the command or holds
//! its output open; what the pipes still hold is then delivered. Output is read only while the host takes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use pyro_agent_protocol::{
    ErrorReply, ExecRequest, Exited, GuestFrame, STDIN_WINDOW_BYTES, Started, codes, encode_stderr, encode_stdout,
    signal_name, signal_number,
};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::{CgroupRoot, ExecCgroup};
use crate::environment::{error, prepare, spawn_error};
use crate::server::{Kind, Token};
use crate::spawn::{Command, Launch, Spawner};
use crate::stream::{Encode, Stream};
use crate::sys::{ChildEnd, reap_child, signal_group};

/// How long after the main process's end the agent waits for killed processes to be gone and for the pipes' end. Killed
/// processes are gone within milliseconds; only one that is stuck in the kernel, or a pipe that was handed to a process
/// outside the tree, uses all of it.
const DRAIN_GRACE: Duration = Duration::from_millis(500);
/// How long the agent waits for a killed main process. One that is stuck in the kernel is then reported as killed.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// How long the host may be kept waiting for the word that a command runs. Most commands that end by then cost one message
/// fewer, and one turn of the agent while they run.
const START_HOLD: Duration = Duration::from_millis(10);
/// The outputs of a command.
const OUTPUTS: usize = 2;
/// Stdin bytes passed on before the host is told. A quarter of the window, so that the host never runs dry.
const CREDIT_STEP_BYTES: usize = STDIN_WINDOW_BYTES / 4;

/// What starting a command needs.
pub struct Context {
    /// Starts processes.
    pub spawner: Spawner,
    /// The parent of the commands' cgroups; `None` when the system has no cgroup v2.
    pub cgroups: Option<CgroupRoot>,
    /// Tells when descriptors are ready.
    pub epoll: OwnedFd,
    /// The stdin of commands that get none.
    pub null: OwnedFd,
    /// The working directory of commands that name none.
    pub default_cwd: String,
    /// For the output of the next command: each our end, which does not block, and the command's.
    pub pipes: Vec<(OwnedFd, OwnedFd)>,
}

impl Context {
    /// Makes ready what the next command needs. What fails is for that command to tell.
    pub fn spare(&mut self) {
        if let Some(cgroups) = &mut self.cgroups {
            cgroups.spare();
        }
        while self.pipes.len() < OUTPUTS
            && let Ok(pipe) = output_pipe()
        {
            self.pipes.push(pipe);
        }
    }

    fn output_pipe(&mut self) -> io::Result<(OwnedFd, OwnedFd)> {
        self.pipes.pop().map_or_else(output_pipe, Ok)
    }

    /// Makes events of `fd` known under `token` and `kind`.
    ///
    /// # Errors
    /// When the system has no memory left.
    pub fn watch(&self, fd: BorrowedFd<'_>, token: Token, kind: Kind, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(token.with(kind).to_u64());
        epoll::add(&self.epoll, fd, data, flags | EventFlags::ET)?;
        Ok(())
    }
}

/// A command that was started.
#[derive(Debug)]
pub struct Exec {
    /// The program's name, for messages.
    program: String,
    pid: i32,
    pidfd: OwnedFd,
    launch: Launch,
    /// When to tell the host that the command runs; `None` once it was told.
    tell_at: Option<Instant>,
    token: Token,
    cgroup: Option<ExecCgroup>,
    stdin: Option<Stdin>,
    takes_stdin: bool,
    /// Whether the host would like to use the connection again.
    keep: bool,
    stdout: Option<Output>,
    stderr: Option<Output>,
    started: Instant,
    deadline: Option<Instant>,
    /// When to stop waiting, once the tree was killed.
    drain_until: Option<Instant>,
    /// True once `drain_until` has passed.
    waited: bool,
    end: Option<MainEnd>,
    tree_dead: bool,
    timed_out: bool,
    killed: bool,
    leftovers_killed: bool,
    /// True when the pidfd said that the main process has ended.
    may_have_ended: bool,
    /// True when the cgroup's event file may have changed.
    may_be_empty: bool,
}

#[derive(Debug, Clone, Copy)]
struct MainEnd {
    /// `None` when somebody else reaped the process.
    how: Option<ChildEnd>,
    after: Duration,
}

#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    readable: bool,
    /// True when nobody can write to it any more.
    ended: bool,
}

impl Output {
    fn on_event(&mut self, flags: EventFlags) {
        // A pipe without writers that is not readable is empty.
        self.ended |= flags.contains(EventFlags::HUP) && !flags.contains(EventFlags::IN);
        self.readable = true;
    }
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Stdout,
    Stderr,
}

#[derive(Debug)]
struct Stdin {
    /// `None` when the command has closed its side; what comes is then dropped, as a shell's pipe would.
    fd: Option<OwnedFd>,
    writable: bool,
    buffer: Vec<u8>,
    written: usize,
    eof: bool,
    uncredited: usize,
}

impl Exec {
    /// Starts `request`.
    ///
    /// # Errors
    /// What to answer: nothing was started.
    pub fn start(request: &ExecRequest, token: Token, context: &mut Context) -> Result<Self, ErrorReply> {
        let prepared = prepare(request, &context.default_cwd)?;
        let system = |what: &str, reason: io::Error| error(codes::INTERNAL, format!("cannot make {what}: {reason}"));
        let (stdout, child_stdout) = context.output_pipe().map_err(|e| system("a pipe", e))?;
        let (stderr, child_stderr) = context.output_pipe().map_err(|e| system("a pipe", e))?;
        let stdin = if request.stdin {
            Some(pipe_with(PipeFlags::CLOEXEC).map_err(|e| system("a pipe", e.into()))?)
        } else {
            None
        };
        let (child_stdin, stdin) = stdin.map_or((None, None), |(read, write)| (Some(read), Some(write)));
        if let Some(ours) = &stdin {
            fcntl_setfl(ours, OFlags::NONBLOCK).map_err(|e| system("a pipe", e.into()))?;
        }
        let cgroup = match &mut context.cgroups {
            Some(root) => Some(root.take().map_err(|e| system("a cgroup", e))?),
            None => None,
        };

        let command = Command {
            candidates: prepared.candidates,
            argv: prepared.argv,
            envp: prepared.envp,
            cwd: prepared.cwd.as_fd(),
            stdio: [child_stdin.as_ref().unwrap_or(&context.null).as_fd(), child_stdout.as_fd(), child_stderr.as_fd()],
            cgroup: cgroup.as_ref().map(ExecCgroup::dir),
            on_terminal: false,
        };
        let started = Instant::now();
        let (spawned, launch) = match context.spawner.start(command) {
            Ok(started) => started,
            Err(why) => {
                if let (Some(root), Some(cgroup)) = (&mut context.cgroups, cgroup) {
                    root.retire(cgroup);
                }
                return Err(spawn_error(&prepared.program, &why));
            }
        };
        // From here on there is a child: an error must end it.
        let mut exec = Self {
            program: prepared.program,
            pid: spawned.pid,
            pidfd: spawned.pidfd,
            launch,
            tell_at: Some(started + START_HOLD),
            token,
            cgroup,
            stdin: stdin.map(|fd| Stdin {
                fd: Some(fd),
                writable: true,
                buffer: Vec::new(),
                written: 0,
                eof: false,
                uncredited: 0,
            }),
            takes_stdin: request.stdin,
            keep: request.keep,
            // What is true already when a descriptor is first watched is told as well.
            stdout: Some(Output { fd: stdout, readable: false, ended: false }),
            stderr: Some(Output { fd: stderr, readable: false, ended: false }),
            started,
            deadline: match request.timeout_ms {
                0 => None,
                // A limit past the clock's end is no limit.
                ms => started.checked_add(Duration::from_millis(ms)),
            },
            drain_until: None,
            waited: false,
            end: None,
            tree_dead: false,
            timed_out: false,
            killed: false,
            leftovers_killed: false,
            may_have_ended: false,
            may_be_empty: false,
        };
        if let Err(reason) = exec.watch_all(context) {
            exec.kill_tree();
            let _ = reap_blocking(exec.pidfd.as_fd());
            if let (Some(root), Some(cgroup)) = (&mut context.cgroups, exec.cgroup) {
                root.retire(cgroup);
            }
            return Err(system("an event", reason));
        }
        Ok(exec)
    }

    /// Returns the main process's id while it is not reaped.
    pub fn unreaped_pid(&self) -> Option<i32> {
        self.end.is_none().then_some(self.pid)
    }

    /// Notes that a descriptor is ready. Returns false when it is none of this command's.
    pub fn on_event(&mut self, token: Token, flags: EventFlags) -> bool {
        if token != self.token.with(token.kind) {
            return false;
        }
        match token.kind {
            Kind::Stdout => self.stdout.iter_mut().for_each(|output| output.on_event(flags)),
            Kind::Stderr => self.stderr.iter_mut().for_each(|output| output.on_event(flags)),
            Kind::Stdin => self.stdin.iter_mut().for_each(|stdin| stdin.writable = true),
            Kind::MainProcess => self.on_main_process_end(),
            Kind::Cgroup => self.may_be_empty = true,
            _ => {}
        }
        true
    }

    /// Notes that the main process has ended.
    pub fn on_main_process_end(&mut self) {
        self.may_have_ended = true;
    }

    /// Takes bytes for stdin. Returns false when the command was started without one, or after its end.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        match &mut self.stdin {
            Some(stdin) if !stdin.eof => {
                stdin.buffer.extend_from_slice(bytes);
                true
            }
            Some(_) => false,
            // The main process has ended and stdin with it; the host could not know.
            None => self.takes_stdin && self.end.is_some(),
        }
    }

    /// Ends stdin after what was fed.
    pub fn feed_eof(&mut self) {
        self.stdin.iter_mut().for_each(|stdin| stdin.eof = true);
    }

    /// True while more input may be taken from the host. A host that has filled its window to the last byte is still
    /// read: what follows is a signal or the end of the input.
    pub fn has_room(&self) -> bool {
        self.stdin.as_ref().is_none_or(|stdin| stdin.buffer.len() - stdin.written <= STDIN_WINDOW_BYTES)
    }

    /// Sends a signal to the main process's group; `SIGKILL` to the whole tree. Returns false for an unknown name.
    pub fn signal(&mut self, name: &str) -> bool {
        let Some(number) = signal_number(name) else {
            return false;
        };
        if number == libc::SIGKILL {
            self.kill_tree();
        } else if self.end.is_none() {
            self.signal_group(number);
        }
        true
    }

    /// Ends the command because nobody wants its result any more.
    pub fn cancel(&mut self, now: Instant) {
        self.stdin = None;
        self.stdout = None;
        self.stderr = None;
        self.deadline = None;
        self.tell_at = None;
        self.kill_tree();
        self.drain_until.get_or_insert(now + KILL_GRACE);
    }

    /// Moves bytes and watches for the end. Without a stream the command was cancelled. Returns true when something
    /// moved, so that another call may move more.
    pub fn pump(&mut self, stream: Option<&mut Stream>, scratch: &mut [u8], now: Instant, context: &Context) -> bool {
        let mut progress = false;
        if self.deadline.is_some_and(|deadline| deadline <= now) && self.end.is_none() && !self.timed_out {
            // The main process may have ended before this moment without our having looked.
            self.collect_end(now, context);
            if self.end.is_none() {
                self.timed_out = true;
                self.kill_tree();
                self.drain_until = Some(now + KILL_GRACE);
            }
        }
        if let Some(stream) = stream {
            if self.tell_at.is_some_and(|at| at <= now) {
                match self.launch.outcome() {
                    // A program may have to be read from a slow disk first.
                    None => self.tell_at = Some(now + START_HOLD),
                    Some(Ok(())) => self.tell(stream),
                    // It ends in a moment.
                    Some(Err(_)) => self.tell_at = None,
                }
            }
            progress |= self.pump_stdin(stream);
            progress |= self.pump_output(Which::Stdout, scratch, stream);
            progress |= self.pump_output(Which::Stderr, scratch, stream);
        }
        if self.may_have_ended && self.end.is_none() {
            self.may_have_ended = false;
            progress |= self.collect_end(now, context);
        }
        if self.may_be_empty && !self.tree_dead {
            self.may_be_empty = false;
            self.tree_dead = self.end.is_some() && !self.is_populated();
        }
        self.waited |= self.drain_until.is_some_and(|until| until <= now);
        progress
    }

    /// True when nothing more will come from the command.
    pub fn is_finished(&self) -> bool {
        let outputs = [&self.stdout, &self.stderr];
        let drained = outputs.iter().all(|output| output.as_ref().is_none_or(|o| o.ended));
        let nothing_readable = outputs.iter().all(|output| output.as_ref().is_none_or(|o| o.ended || !o.readable));
        let dead = self.end.is_some() && self.tree_dead;
        (dead && drained) || (self.waited && nothing_readable)
    }

    /// Returns the next moment at which [`pump`](Self::pump) must be called even if nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        let deadline = self.deadline.filter(|_| self.end.is_none() && !self.timed_out);
        // Once passed, only the host's reading can bring the end nearer.
        let drain = self.drain_until.filter(|_| !self.waited);
        [deadline, drain, self.tell_at].into_iter().flatten().min()
    }

    /// Sends the last frames, and ends the bookkeeping while the host reads them. Returns true when the host was promised
    /// that it can use the connection again.
    pub fn finish(mut self, stream: Option<&mut Stream>, context: &mut Context) -> bool {
        let mut kept = false;
        if let Some(stream) = stream {
            let frame = self.last_frame();
            if let GuestFrame::Exited(exited) = &frame {
                kept = exited.kept;
                self.tell(stream);
            }
            stream.queue(&frame);
            stream.flush();
            // A thread of the kernel carries it to the host, and does not interrupt this one for that.
            rustix::thread::sched_yield();
        }
        context.spawner.recycle(self.launch);
        if let (Some(root), Some(cgroup)) = (&mut context.cgroups, self.cgroup) {
            root.retire(cgroup);
        }
        kept
    }

    fn last_frame(&self) -> GuestFrame {
        if let Some(Err(why)) = self.launch.outcome() {
            return GuestFrame::Error(spawn_error(&self.program, &why));
        }
        let (how, after) = match self.end {
            Some(MainEnd { how: Some(how), after }) => (how, after),
            Some(MainEnd { how: None, .. }) => {
                return GuestFrame::Error(error(codes::INTERNAL, "the end of the main process was lost"));
            }
            // Killed, but stuck in the kernel.
            None => (ChildEnd::Signal(libc::SIGKILL), self.started.elapsed()),
        };
        let usage = self.cgroup.as_ref().map(ExecCgroup::usage).unwrap_or_default();
        let (exit_code, signal) = match how {
            ChildEnd::Code(code) => (Some(code), None),
            ChildEnd::Signal(number) => (None, Some(signal_name(number))),
        };
        GuestFrame::Exited(Exited {
            exit_code,
            signal,
            timed_out: self.timed_out,
            duration_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
            cpu_us: usage.cpu_us,
            peak_memory_bytes: usage.peak_memory_bytes,
            oom_killed: usage.oom_killed,
            leftovers_killed: self.leftovers_killed,
            kept: self.keep,
        })
    }

    fn watch_all(&self, context: &Context) -> io::Result<()> {
        context.watch(self.pidfd.as_fd(), self.token, Kind::MainProcess, EventFlags::IN)?;
        if let Some(output) = &self.stdout {
            context.watch(output.fd.as_fd(), self.token, Kind::Stdout, EventFlags::IN)?;
        }
        if let Some(output) = &self.stderr {
            context.watch(output.fd.as_fd(), self.token, Kind::Stderr, EventFlags::IN)?;
        }
        if let Some(fd) = self.stdin.as_ref().and_then(|stdin| stdin.fd.as_ref()) {
            context.watch(fd.as_fd(), self.token, Kind::Stdin, EventFlags::OUT)?;
        }
        Ok(())
    }

    fn pump_stdin(&mut self, stream: &mut Stream) -> bool {
        let Some(stdin) = &mut self.stdin else {
            return false;
        };
        let mut progress = false;
        while stdin.writable && stdin.written < stdin.buffer.len() {
            let rest = stdin.buffer.get(stdin.written..).unwrap_or_default();
            let taken = match &stdin.fd {
                None => rest.len(),
                Some(fd) => match rustix::io::write(fd, rest) {
                    Ok(count) => count,
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => {
                        stdin.writable = false;
                        break;
                    }
                    Err(_) => {
                        stdin.fd = None;
                        rest.len()
                    }
                },
            };
            stdin.written += taken;
            stdin.uncredited += taken;
            progress = true;
        }
        if stdin.written == stdin.buffer.len() {
            stdin.buffer.clear();
            stdin.written = 0;
            if stdin.eof {
                self.stdin = None;
                return true;
            }
        } else if stdin.written > STDIN_WINDOW_BYTES / 2 {
            stdin.buffer.drain(..stdin.written);
            stdin.written = 0;
        }
        if stdin.uncredited >= CREDIT_STEP_BYTES {
            let credit = u32::try_from(std::mem::take(&mut stdin.uncredited)).unwrap_or(u32::MAX);
            self.tell(stream);
            stream.queue(&GuestFrame::StdinCredit(credit));
        }
        progress
    }

    /// Queues what one pipe holds. Returns true when something moved.
    fn pump_output(&mut self, which: Which, scratch: &mut [u8], stream: &mut Stream) -> bool {
        let (output, encode): (_, Encode) = match which {
            Which::Stdout => (&mut self.stdout, encode_stdout),
            Which::Stderr => (&mut self.stderr, encode_stderr),
        };
        let Some(output) = output else {
            return false;
        };
        while output.readable && !output.ended && stream.has_room() {
            match rustix::io::read(&output.fd, &mut *scratch) {
                Ok(count) if count > 0 => {
                    self.tell(stream);
                    stream.queue_data(scratch.get(..count).unwrap_or_default(), encode);
                    return true;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => output.readable = false,
                Ok(_) | Err(_) => {
                    // It is closed when the host has its answer.
                    output.ended = true;
                    return true;
                }
            }
        }
        false
    }

    /// Tells the host that the command runs, if it was not told yet.
    fn tell(&mut self, stream: &mut Stream) {
        if self.tell_at.take().is_some() {
            stream.queue(&GuestFrame::Started(Started { pid: u32::try_from(self.pid).unwrap_or(0) }));
        }
    }

    /// Reaps the main process if it has ended, and kills what it left behind.
    fn collect_end(&mut self, now: Instant, context: &Context) -> bool {
        if self.cgroup.is_none() && has_ended(self.pidfd.as_fd()) {
            // Until the leader is reaped its group's number cannot be used again.
            let _ = signal_group(self.pid, libc::SIGKILL);
        }
        let how = match reap_child(self.pid) {
            Ok(None) => return false,
            Ok(Some(end)) => Some(end),
            Err(_) => None,
        };
        self.end = Some(MainEnd { how, after: self.started.elapsed() });
        self.stdin = None;
        self.drain_until = Some(now + DRAIN_GRACE);
        if !self.is_populated() {
            self.tree_dead = true;
        } else if let Some(cgroup) = &self.cgroup {
            self.leftovers_killed = !self.killed;
            let _ = cgroup.kill();
            let flags = EventFlags::PRI;
            if context.watch(cgroup.events(), self.token, Kind::Cgroup, flags).is_err() {
                // Without the event the grace time ends the wait.
                self.tree_dead = false;
            }
            self.may_be_empty = true;
        }
        true
    }

    fn is_populated(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|cgroup| cgroup.populated().unwrap_or(true))
    }

    fn kill_tree(&mut self) {
        self.killed = true;
        let by_cgroup = self.cgroup.as_ref().is_some_and(|cgroup| cgroup.kill().is_ok());
        if !by_cgroup && self.end.is_none() {
            self.signal_group(libc::SIGKILL);
        }
    }

    /// Signals the main process's group, which is there once the process executes its program. Until then everybody waits:
    /// the child needs nothing but its turn, and its program from the disk.
    fn signal_group(&self, number: i32) {
        self.launch.wait();
        // It may be gone although the process is not reaped yet.
        let _ = signal_group(self.pid, number);
    }
}

/// Returns a pipe's end to read, which does not block, and the one to write.
fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&ours, OFlags::NONBLOCK)?;
    Ok((ours, theirs))
}

/// Returns true when the process has ended.
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(pidfd, rustix::event::PollFlags::IN)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
}

/// Reaps the process once it has ended.
///
/// # Errors
/// When it is no child.
pub fn reap_blocking(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)?;
    Ok(())
}
