//! Accepts connections and drives every operation from one epoll loop.
//!
//! Work that no operation waits for (removing and preparing cgroups) is done when the loop has been idle for a moment.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use pyro_agent_protocol::{DATA_CHUNK_BYTES, GuestFrame, ShutdownMode, codes};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use thiserror::Error;

use crate::cgroup::CgroupRoot;
use crate::environment::error;
use crate::exec::Context;
use crate::facts::BootFacts;
use crate::kept::Kept;
use crate::operation::{Operation, Shared};
use crate::spawn::Spawner;
use crate::stream::Stream;
use crate::worker::Workers;

/// The most commands at once: enough for any caller, few enough that their buffers fit into a small guest.
pub const MAX_EXECS: usize = 256;
/// Connections beyond [`MAX_EXECS`], so that a host can ask and end a guest that is full of commands.
const SPARE_CONNECTIONS: usize = 64;
/// Calls to one operation before the others have their turn.
const STEPS_PER_TURN: usize = 16;
/// Connections accepted before the operations have their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How long the loop must be idle before it does work that was put off, while no command runs that it would slow.
const IDLE: Duration = Duration::from_millis(10);
/// The same, while a command runs.
const IDLE_BESIDE_COMMANDS: Duration = Duration::from_millis(100);
/// Between one piece of that work and the next.
const TIDY_STEP: Duration = Duration::from_millis(2);
/// How long the loop waits before it tries again to remove a cgroup that still holds processes.
const TIDY_RETRY: Duration = Duration::from_millis(500);

/// What a server needs.
#[derive(Debug)]
pub struct Config {
    /// A listening, non-blocking stream socket.
    pub listener: OwnedFd,
    /// The parent of the commands' cgroups; `None` kills by process group instead.
    pub cgroups: Option<CgroupRoot>,
    /// The working directory of commands that name none.
    pub default_cwd: String,
    /// Since the boot.
    pub boot: BootFacts,
    /// The `SIGCHLD` descriptor of a PID 1, which reaps orphans and may change the system's clock.
    pub child_signal: Option<OwnedFd>,
    /// The most commands at once.
    pub max_execs: usize,
}

/// Why the server cannot go on.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The system refused what the server cannot do without.
    #[error("cannot {what}: {source}")]
    System {
        /// What it tried.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// The host asked for the guest's end.
#[derive(Debug)]
pub struct ShutdownAsked {
    /// How it is to end.
    pub mode: ShutdownMode,
    /// Where the answer goes.
    pub stream: Option<Stream>,
    /// The parent of the commands' cgroups.
    pub cgroups: Option<CgroupRoot>,
}

/// What a descriptor in the epoll set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The listening socket.
    Listener = 0,
    /// The `SIGCHLD` descriptor.
    ChildSignal = 1,
    /// An operation's connection.
    Stream = 2,
    /// A command's pidfd.
    MainProcess = 3,
    /// The pipe to a command's stdin.
    Stdin = 4,
    /// The pipe from a command's stdout.
    Stdout = 5,
    /// The pipe from a command's stderr.
    Stderr = 6,
    /// A cgroup's event file.
    Cgroup = 7,
    /// The descriptor that tells of ended workers.
    Workers = 8,
    /// The guest's side of a relay.
    Relay = 9,
    /// A terminal's pidfd.
    TerminalProcess = 10,
    /// Our side of a terminal.
    TerminalMaster = 11,
    /// A service's pidfd.
    ServiceProcess = 12,
    /// The pipe from a service's stdout.
    ServiceStdout = 13,
    /// The pipe from a service's stderr.
    ServiceStderr = 14,
}

/// Names a descriptor in the epoll set: its kind, its operation's slot, and which connection of that slot or which command
/// it belongs to. A descriptor that is closed can have events later, while a child that is just being started has a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    slot: u16,
    generation: u32,
}

impl Token {
    /// Returns the token of something that no operation owns, by its number.
    pub fn kept(number: u32) -> Self {
        Self { kind: Kind::TerminalProcess, slot: 0, generation: number }
    }

    /// Returns the token of another descriptor of the same operation.
    pub fn with(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// Returns the token of a command of the same operation, by its number.
    pub fn of_command(self, number: u32) -> Self {
        Self { kind: Kind::MainProcess, generation: number, ..self }
    }

    /// Returns the token as epoll carries it.
    pub fn to_u64(self) -> u64 {
        (u64::from(self.generation) << 32) | (u64::from(self.slot) << 8) | u64::from(self.kind as u8)
    }

    fn from_u64(value: u64) -> Option<Self> {
        let kind = match value & 0xff {
            0 => Kind::Listener,
            1 => Kind::ChildSignal,
            2 => Kind::Stream,
            3 => Kind::MainProcess,
            4 => Kind::Stdin,
            5 => Kind::Stdout,
            6 => Kind::Stderr,
            7 => Kind::Cgroup,
            8 => Kind::Workers,
            9 => Kind::Relay,
            10 => Kind::TerminalProcess,
            11 => Kind::TerminalMaster,
            12 => Kind::ServiceProcess,
            13 => Kind::ServiceStdout,
            14 => Kind::ServiceStderr,
            _ => return None,
        };
        let slot = u16::try_from((value >> 8) & 0xffff).ok()?;
        Some(Self { kind, slot, generation: u32::try_from(value >> 32).ok()? })
    }
}

/// Serves operations.
pub struct Server {
    listener: OwnedFd,
    child_signal: Option<OwnedFd>,
    slots: Vec<Slot>,
    shared: Shared,
    /// Slots that must be stepped before the next wait.
    due: Vec<u16>,
    accept_due: bool,
    reap_due: bool,
    /// When something happened last.
    active_at: Instant,
    tidy_after: Option<Instant>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    operation: Option<Operation>,
    is_due: bool,
}

impl Server {
    /// Returns a server.
    ///
    /// # Errors
    /// When the system has no descriptors or memory left.
    pub fn new(config: Config) -> Result<Self, ServerError> {
        let system = |what| move |source: Errno| ServerError::System { what, source: source.into() };
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(system("create an epoll set"))?;
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .and_then(|fd| rustix::io::fcntl_dupfd_cloexec(&fd, 3))
        .map_err(system("open /dev/null"))?;
        let spawner =
            Spawner::new().map_err(|source| ServerError::System { what: "make a stack for children", source })?;
        let add = |fd: BorrowedFd<'_>, kind| {
            let token = Token { kind, slot: 0, generation: 0 };
            epoll::add(&epoll, fd, EventData::new_u64(token.to_u64()), EventFlags::IN | EventFlags::ET)
        };
        add(config.listener.as_fd(), Kind::Listener).map_err(system("watch the listening socket"))?;
        if let Some(fd) = &config.child_signal {
            add(fd.as_fd(), Kind::ChildSignal).map_err(system("watch for ended children"))?;
        }
        let workers =
            Workers::new().map_err(|source| ServerError::System { what: "make a descriptor for workers", source })?;
        add(workers.ended(), Kind::Workers).map_err(system("watch for ended workers"))?;
        let owns_system = config.child_signal.is_some();
        let context = Context {
            spawner,
            cgroups: config.cgroups,
            epoll,
            null,
            default_cwd: config.default_cwd,
            pipes: Vec::new(),
        };
        let shared = Shared {
            context,
            workers,
            kept: Kept::default(),
            scratch: vec![0; DATA_CHUNK_BYTES],
            boot: config.boot,
            owns_system,
            execs: 0,
            commands: 0,
            max_execs: config.max_execs,
        };
        Ok(Self {
            listener: config.listener,
            child_signal: config.child_signal,
            slots: Vec::new(),
            shared,
            due: Vec::new(),
            accept_due: true,
            reap_due: true,
            active_at: Instant::now(),
            tidy_after: None,
        })
    }

    /// Sends `frame` over `connection`, which may still be connecting. Nobody is told when that fails: a host that did
    /// not listen can ask instead.
    pub fn announce(&mut self, connection: OwnedFd, frame: &GuestFrame) {
        self.adopt(connection, |stream, token| Operation::announcement(stream, token, frame));
    }

    /// Serves until the host asks for the guest's end.
    ///
    /// # Errors
    /// When the system fails the server itself; what fails an operation only ends that operation.
    pub fn run(mut self) -> Result<ShutdownAsked, ServerError> {
        let mut events: Vec<Event> = Vec::with_capacity(64);
        loop {
            let now = Instant::now();
            if let Some(asked) = self.step_due(now) {
                let operation = self.slots.get_mut(usize::from(asked)).and_then(|slot| slot.operation.take());
                let mode = operation.as_ref().and_then(Operation::shutdown).unwrap_or_default();
                let stream = operation.and_then(Operation::into_stream);
                self.stop_workers();
                return Ok(ShutdownAsked { mode, stream, cgroups: self.shared.context.cgroups.take() });
            }
            if self.reap_due {
                self.reap_due = false;
                self.reap_orphans();
            }
            if self.accept_due {
                self.accept(now);
            }

            if self.shared.execs == 0 && self.due.is_empty() {
                // The host has its answer and thinks of the next command.
                self.shared.context.spare();
            }
            let timeout = self.timeout(Instant::now());
            events.clear();
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.shared.context.epoll, spare, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(source) => {
                    return Err(ServerError::System { what: "wait for events", source: source.into() });
                }
            }
            let now = Instant::now();
            if events.is_empty() && self.due.is_empty() {
                self.tidy(now);
            } else {
                self.active_at = now;
            }
            for event in &events {
                self.on_event(*event);
            }
            let shared = &mut self.shared;
            if shared.kept.turn(now, &mut shared.scratch, &mut shared.context) {
                self.wake_those(Operation::awaits_kept);
            }
            self.wake_expired(now);
        }
    }

    /// Steps the operations that are due. Returns the slot of one that asks for the guest's end.
    fn step_due(&mut self, now: Instant) -> Option<u16> {
        for index in std::mem::take(&mut self.due) {
            let Some(slot) = self.slots.get_mut(usize::from(index)) else {
                continue;
            };
            slot.is_due = false;
            let Some(operation) = &mut slot.operation else {
                continue;
            };
            let mut more = true;
            for _ in 0..STEPS_PER_TURN {
                more = operation.step(&mut self.shared, now);
                if !more || operation.is_done() {
                    break;
                }
            }
            if operation.shutdown().is_some() {
                return Some(index);
            }
            if operation.is_done() {
                slot.operation = None;
                slot.generation = slot.generation.wrapping_add(1);
            } else if more {
                self.make_due(index);
            }
        }
        None
    }

    fn make_due(&mut self, index: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(index))
            && !slot.is_due
        {
            slot.is_due = true;
            self.due.push(index);
        }
    }

    fn on_event(&mut self, event: Event) {
        let (flags, data) = (event.flags, event.data);
        let Some(token) = Token::from_u64(data.u64()) else {
            return;
        };
        match token.kind {
            Kind::Listener => self.accept_due = true,
            Kind::ChildSignal => self.reap_due = true,
            Kind::Workers => {
                self.shared.workers.clear_ended();
                self.wake_those(Operation::awaits_worker);
            }
            kind @ (Kind::TerminalProcess
            | Kind::TerminalMaster
            | Kind::ServiceProcess
            | Kind::ServiceStdout
            | Kind::ServiceStderr) => {
                let broken = flags.intersects(EventFlags::HUP | EventFlags::ERR);
                let readable = broken || flags.contains(EventFlags::IN);
                let writable = broken || flags.contains(EventFlags::OUT);
                self.shared.kept.on_event(token.generation, kind, readable, writable);
            }
            Kind::Stream
            | Kind::MainProcess
            | Kind::Stdin
            | Kind::Stdout
            | Kind::Stderr
            | Kind::Cgroup
            | Kind::Relay => {
                let operation = self.slots.get_mut(usize::from(token.slot)).and_then(|slot| slot.operation.as_mut());
                if operation.is_some_and(|operation| operation.on_event(token, flags)) {
                    self.make_due(token.slot);
                }
            }
        }
    }

    /// Makes every operation of this kind due.
    fn wake_those(&mut self, which: fn(&Operation) -> bool) {
        for index in 0..self.slots.len() {
            let operation = self.slots.get(index).and_then(|slot| slot.operation.as_ref());
            if operation.is_some_and(which)
                && let Ok(index) = u16::try_from(index)
            {
                self.make_due(index);
            }
        }
    }

    /// Ends the workers, so that nobody writes to the disk any more.
    fn stop_workers(&self) {
        self.slots.iter().filter_map(|slot| slot.operation.as_ref()).for_each(Operation::stop_worker);
        self.shared.workers.wait_for_all();
    }

    fn wake_expired(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let operation = self.slots.get(index).and_then(|slot| slot.operation.as_ref());
            if operation.and_then(Operation::wake_at).is_some_and(|at| at <= now)
                && let Ok(index) = u16::try_from(index)
            {
                self.make_due(index);
            }
        }
    }

    fn timeout(&self, now: Instant) -> Option<Timespec> {
        if !self.due.is_empty() || self.accept_due || self.reap_due || self.shared.kept.has_more() {
            return Some(Timespec { tv_sec: 0, tv_nsec: 0 });
        }
        let operations = self.slots.iter().filter_map(|slot| slot.operation.as_ref());
        let mut wake = operations.filter_map(Operation::wake_at).chain(self.shared.kept.wake_at()).min();
        if self.shared.context.cgroups.as_ref().is_some_and(CgroupRoot::wants_tidying) {
            let tidy = self.tidy_at();
            wake = Some(wake.map_or(tidy, |wake| wake.min(tidy)));
        }
        // A millisecond is added because the kernel counts whole ones, and a wait that ends early is repeated.
        let wait = wake?.saturating_duration_since(now) + Duration::from_micros(999);
        Timespec::try_from(wait).ok()
    }

    fn tidy(&mut self, now: Instant) {
        if self.tidy_at() > now {
            return;
        }
        self.tidy_after = Some(now + TIDY_STEP);
        if let Some(cgroups) = &mut self.shared.context.cgroups
            && cgroups.wants_tidying()
            && !cgroups.tidy()
        {
            self.tidy_after = Some(now + TIDY_RETRY);
        }
    }

    /// When the next piece of work that was put off may be done.
    fn tidy_at(&self) -> Instant {
        let idle = if self.shared.execs == 0 { IDLE } else { IDLE_BESIDE_COMMANDS };
        self.tidy_after.unwrap_or(self.active_at).max(self.active_at + idle)
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.is_someone_waiting() {
                self.accept_due = false;
                return;
            }
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => {
                    self.adopt(connection, |stream, token| Operation::accepted(stream, token, now));
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // A full descriptor table ends this turn too: operations free theirs, and the next connection is an event.
                Err(_) => {
                    self.accept_due = false;
                    return;
                }
            }
        }
    }

    /// Tells whether a connection can be accepted. Linux 6.1 lets `accept` on a vsock sleep until the next tick of the
    /// clock, 4 ms at the most, although the socket is non-blocking, when nobody is there (`vsock_accept` calls
    /// `schedule_timeout` before it looks at the timeout of 0).
    fn is_someone_waiting(&self) -> bool {
        let mut listener = [PollFd::new(&self.listener, PollFlags::IN)];
        // Only an answer of "nobody" is one: an edge that is missed here does not come again.
        poll(&mut listener, Some(&Timespec::default())) != Ok(0)
    }

    fn adopt(&mut self, connection: OwnedFd, make: impl FnOnce(Stream, Token) -> Operation) {
        let Some(index) = self.free_slot() else {
            refuse(connection, format!("{} connections are open already", self.slots.len()));
            return;
        };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        let token = Token { kind: Kind::Stream, slot: index, generation: slot.generation };
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(token.to_u64());
        match epoll::add(&self.shared.context.epoll, &connection, data, flags) {
            Ok(()) => {
                slot.operation = Some(make(Stream::new(connection), token));
                self.make_due(index);
            }
            Err(errno) => refuse(connection, format!("cannot watch the connection: {errno}")),
        }
    }

    fn free_slot(&mut self) -> Option<u16> {
        let limit = self.shared.max_execs + SPARE_CONNECTIONS;
        let index = match self.slots.iter().position(|slot| slot.operation.is_none()) {
            Some(index) => index,
            None if self.slots.len() < limit => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            None => return None,
        };
        u16::try_from(index).ok()
    }

    /// Reaps children that are no command's main process.
    fn reap_orphans(&mut self) {
        let Some(signal) = &self.child_signal else {
            return;
        };
        // Empties the descriptor, so that the next child is an event again. Signals merge, so its content says nothing.
        let mut buffer = [0; 512];
        while rustix::io::read(signal, &mut buffer).is_ok_and(|count| count > 0) {}
        while let Ok(Some(pid)) = crate::sys::peek_ended_child() {
            let owner = self
                .slots
                .iter()
                .position(|slot| slot.operation.as_ref().and_then(Operation::unreaped_pid) == Some(pid));
            if owner.is_none() && self.shared.kept.on_child(pid) {
                // As below: it is reaped in its turn.
                self.reap_due = true;
                return;
            }
            match owner.and_then(|index| u16::try_from(index).ok()) {
                None => {
                    let _ = crate::sys::reap_child(pid);
                }
                Some(index) => {
                    if let Some(operation) =
                        self.slots.get_mut(usize::from(index)).and_then(|slot| slot.operation.as_mut())
                    {
                        operation.on_main_process_end();
                    }
                    self.make_due(index);
                    // It hides other ended children until its operation has reaped it.
                    self.reap_due = true;
                    return;
                }
            }
        }
    }
}

/// Tells the host why its connection is closed. Best effort: the socket is new, so its buffer has room.
fn refuse(connection: OwnedFd, message: String) {
    let mut stream = Stream::new(connection);
    stream.queue(&GuestFrame::Error(error(codes::LIMIT_EXCEEDED, message)));
    stream.flush();
}
