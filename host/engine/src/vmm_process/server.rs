//! The loop of a VM process: one thread, all state, no locks.

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pyro_vmm::vsock::ConnectOutcome;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::RecvFlags,
};

use super::{
    MachineConfig,
    backend::{self, Backend, VmExit},
    cgroup::OwnCgroup,
    console::Console,
    ports::Ports,
    ready::{Handshake, Ready},
    remove,
};
use crate::{
    control::{Event, LineBuffer, MAX_REQUEST, OkBody, Reply, Request, line, parse_request},
    error::{EngineError, ErrorCode},
    spec::{BootTimings, Lifetime, MachineState, PublishedPort, Statistics},
};

/// Clients that have connected and not sent their line yet. More wait in the socket's queue.
const MAX_PENDING: usize = 64;
/// Clients that hold or watch.
const MAX_WATCHERS: usize = 256;
/// How long a client may take to send its line.
const LINE_LIMIT: Duration = Duration::from_secs(5);
/// How long a guest that said it gave up may take to end, before it is ended. Only during the boot: later, a program in
/// the guest could print the same words.
const PANIC_GRACE: Duration = Duration::from_secs(2);

/// A running machine and those who talk to it.
pub(crate) struct Server {
    config: MachineConfig,
    dir: PathBuf,
    listener: UnixListener,
    signals: OwnedFd,
    vm: Box<dyn Backend>,
    ports: Ports,
    console: Console,
    handshake: Option<Handshake>,
    /// The channel to the maker, while it is open.
    maker: Option<UnixStream>,
    pending: Vec<Option<Pending>>,
    watchers: Vec<Option<Watcher>>,
    /// Clients that wait for the end.
    killers: Vec<UnixStream>,
    state: MachineState,
    timings: BootTimings,
    started: Instant,
    engine_started: Instant,
    expires: Instant,
    panicked_at: Option<Instant>,
    /// The machine's own control group.
    cgroup: Option<OwnCgroup>,
}

struct Pending {
    stream: UnixStream,
    line: LineBuffer,
    until: Instant,
}

struct Watcher {
    stream: UnixStream,
    holds: bool,
}

/// Why a machine ends.
enum End {
    Asked,
    Signalled,
    MakerGone,
    Expired,
    BootLimit,
    Vm(VmExit),
    GaveUp,
    Failed(EngineError),
}

/// Which descriptor of a poll is whose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Vm,
    Signals,
    Listener,
    Ports,
    Handshake,
    Maker,
    Pending(usize),
    Watcher(usize),
}

impl Server {
    /// Makes the disk and starts the machine.
    pub(crate) fn start(
        config: MachineConfig,
        dir: &Path,
        maker: UnixStream,
        listener: UnixListener,
        started: Instant,
        spawn_ms: f64,
        cgroup: Option<OwnCgroup>,
    ) -> Result<Self, EngineError> {
        let failed = |e: &io::Error| EngineError::io("set up the VM process", e);
        // Before the first thread, so that every thread inherits it.
        let signals = block_signals().map_err(|e| failed(&e))?;
        maker.set_nonblocking(true).map_err(|e| failed(&e))?;
        listener.set_nonblocking(true).map_err(|e| failed(&e))?;
        backend::make_disk(&config)?;
        let engine_started = Instant::now();
        let vm = backend::boot(&config, dir)?;
        let handshake = Handshake::start(vm.vsock())?;
        let timings = BootTimings { spawn_ms, disk_ms: ms(engine_started - started), ..BootTimings::default() };
        Ok(Self {
            expires: started + config.time_left(),
            console: Console::new(dir),
            config,
            dir: dir.to_owned(),
            listener,
            signals,
            vm,
            ports: Ports::new().map_err(|e| failed(&e))?,
            handshake: Some(handshake),
            maker: Some(maker),
            pending: Vec::new(),
            watchers: Vec::new(),
            killers: Vec::new(),
            state: MachineState::Booting,
            timings,
            started,
            engine_started,
            panicked_at: None,
            cgroup,
        })
    }

    /// Runs until the machine has ended and nothing of it is left.
    pub(crate) fn run(mut self) {
        let end = loop {
            if let Some(end) = self.turn() {
                break end;
            }
        };
        self.state = MachineState::Stopping;
        self.vm.kill(&mut self.console);
        let error = self.explain(end);
        tracing::info!(code = %error.code(), reason = %error, "the machine ended");
        // Streams into the guest end here.
        drop(self.vm);
        // Before the run directory, which names it for those who clean up.
        drop(self.cgroup);
        remove(&self.dir);
        let event = line(&Event::Ended { error });
        for mut stream in
            self.maker.into_iter().chain(self.watchers.into_iter().flatten().map(|watcher| watcher.stream))
        {
            let _ = stream.write_all(&event);
        }
        let done = line(&Reply::Ok(OkBody::default()));
        for mut stream in self.killers {
            let _ = stream.write_all(&done);
        }
    }

    /// Waits for something and handles it. Returns why the machine is to end, when it is.
    fn turn(&mut self) -> Option<End> {
        let ready = match self.wait() {
            Ok(ready) => ready,
            Err(e) => return Some(End::Failed(EngineError::io("wait for events", &e))),
        };
        let mut end = None;
        for source in ready {
            let this = match source {
                Source::Vm => self.vm.turn(&mut self.console).map(End::Vm),
                Source::Signals => Some(End::Signalled),
                Source::Handshake => self.greeted(),
                Source::Maker => self.hear_maker(),
                Source::Pending(at) => {
                    let client = self.pending.get_mut(at).and_then(Option::take);
                    self.hear_client(client);
                    None
                }
                Source::Watcher(at) => {
                    if let Some(slot) = self.watchers.get_mut(at)
                        && slot.as_ref().is_some_and(|watcher| closed(&watcher.stream))
                    {
                        *slot = None;
                    }
                    None
                }
                Source::Listener => {
                    self.accept();
                    None
                }
                Source::Ports => {
                    self.ports.accept(&self.vm.vsock());
                    None
                }
            };
            end = end.or(this);
        }
        self.pending.retain(Option::is_some);
        self.watchers.retain(Option::is_some);
        end.or_else(|| self.look_at_clock()).or_else(|| self.abandoned().then_some(End::MakerGone)).or_else(|| {
            // They are answered when nothing is left.
            (!self.killers.is_empty()).then_some(End::Asked)
        })
    }

    /// Waits until a descriptor is ready or a limit is reached.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut until = self.expires;
        if self.state == MachineState::Booting {
            until = until.min(self.started + self.config.boot_limit);
            if let Some(at) = self.panicked_at {
                until = until.min(at + PANIC_GRACE);
            }
        }
        let mut polled: Vec<(Source, BorrowedFd<'_>)> =
            Vec::with_capacity(8 + self.pending.len() + self.watchers.len());
        polled.extend(self.vm.descriptors().into_iter().map(|fd| (Source::Vm, fd)));
        polled.push((Source::Signals, self.signals.as_fd()));
        polled.extend(self.handshake.iter().map(|handshake| (Source::Handshake, handshake.descriptor())));
        polled.extend(self.maker.iter().map(|maker| (Source::Maker, maker.as_fd())));
        for (at, client) in self.pending.iter().enumerate() {
            if let Some(client) = client {
                until = until.min(client.until);
                polled.push((Source::Pending(at), client.stream.as_fd()));
            }
        }
        for (at, watcher) in self.watchers.iter().enumerate() {
            polled.extend(watcher.iter().map(|watcher| (Source::Watcher(at), watcher.stream.as_fd())));
        }
        polled.extend(self.ports.descriptors().map(|fd| (Source::Ports, fd)));
        // Clients beyond the limit wait in the socket's queue.
        if self.pending.len() < MAX_PENDING {
            polled.push((Source::Listener, self.listener.as_fd()));
        }
        let mut fds: Vec<PollFd<'_>> =
            polled.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let wait = until.saturating_duration_since(Instant::now());
        // No wait of this program is longer than its time to live, so the conversion does not fail.
        let wait = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut fds, Some(&wait)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        }
        let mut ready: Vec<Source> = polled
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|((source, _), _)| *source)
            .collect();
        ready.dedup();
        Ok(ready)
    }

    fn accept(&mut self) {
        while self.pending.len() < MAX_PENDING {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    tracing::warn!(error = %e, "a client could not be accepted");
                    return;
                }
            };
            if stream.set_nonblocking(true).is_ok() {
                let until = Instant::now() + LINE_LIMIT;
                // Clients send their line at once, so it is mostly there already.
                self.hear_client(Some(Pending { stream, line: LineBuffer::new(MAX_REQUEST), until }));
            }
        }
    }

    /// Reads a client's line and serves it, or keeps the client until the rest of the line comes.
    fn hear_client(&mut self, client: Option<Pending>) {
        let Some(mut client) = client else { return };
        match read_through_newline(&client.stream) {
            Ok(bytes) if bytes.is_empty() => return,
            Ok(bytes) => client.line.push(&bytes),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        match client.line.take().and_then(|line| line.map(|line| parse_request(&line)).transpose()) {
            Ok(Some(request)) => self.serve(client.stream, request),
            Ok(None) => self.pending.push(Some(client)),
            Err(error) => answer(&client.stream, &Reply::Error(error)),
        }
    }

    fn serve(&mut self, stream: UnixStream, request: Request) {
        match request {
            Request::Connect { port } => self.connect(stream, port),
            Request::Status => {
                let statistics = Statistics {
                    cgroup: self.cgroup.as_ref().map(|group| group.path().to_owned()),
                    ..self.vm.statistics()
                };
                answer(&stream, &Reply::Ok(OkBody { statistics: Some(statistics), ..self.description() }));
            }
            Request::Hold => self.add_watcher(stream, true),
            Request::Watch => self.add_watcher(stream, false),
            Request::Kill => self.killers.push(stream),
            Request::Pause => answer(&stream, &self.vm.pause().into()),
            Request::Resume => answer(&stream, &self.vm.resume().into()),
            Request::Publish { guest_port, host_port, owner } => {
                let published = self.ports.publish(guest_port, host_port, owner);
                answer(&stream, &published.map_or_else(Reply::Error, |port| ports(vec![port])));
            }
            Request::Unpublish { host_port } => answer(&stream, &self.ports.unpublish(host_port).into()),
            Request::Published => answer(&stream, &ports(self.ports.list())),
            Request::Extend { expires_at } => {
                if expires_at.is_finite() {
                    self.config.expires_at = expires_at;
                    self.expires = Instant::now() + self.config.time_left();
                    let changed = line(&Event::Changed { machine: self.config.describe(self.state) });
                    let watchers = self.watchers.iter().flatten().map(|watcher| &watcher.stream);
                    for mut watcher in self.maker.iter().chain(watchers) {
                        // One that does not read does not want to know.
                        let _ = watcher.write_all(&changed);
                    }
                    answer(&stream, &Reply::Ok(OkBody::default()));
                } else {
                    let error = EngineError::new(ErrorCode::InvalidArgument, "expires_at is not a time");
                    answer(&stream, &Reply::Error(error));
                }
            }
        }
    }

    fn connect(&self, stream: UnixStream, port: u32) {
        if self.state != MachineState::Running {
            let error = EngineError::new(ErrorCode::NotStarted, format!("machine {} is still booting", self.config.id));
            answer(&stream, &Reply::Error(error.retry_may_help()));
            return;
        }
        let id = self.config.id.clone();
        self.vm.vsock().connect(port, stream, move |outcome, stream| {
            let what = format!("port {port} of machine {id}: {outcome}");
            let reply = match outcome {
                ConnectOutcome::Connected => Reply::Ok(OkBody::default()),
                ConnectOutcome::LimitReached => Reply::Error(
                    EngineError::new(ErrorCode::LimitExceeded, what)
                        .with_hint("wait until other commands ended")
                        .retry_may_help(),
                ),
                ConnectOutcome::Reset => Reply::Error(EngineError::new(ErrorCode::MachineDied, what)),
                ConnectOutcome::Refused | ConnectOutcome::TimedOut => {
                    Reply::Error(EngineError::new(ErrorCode::NotStarted, what).retry_may_help())
                }
            };
            answer(stream, &reply);
        });
    }

    fn description(&self) -> OkBody {
        OkBody { machine: Some(self.config.describe(self.state)), timings: Some(self.timings), ..OkBody::default() }
    }

    fn add_watcher(&mut self, stream: UnixStream, holds: bool) {
        if self.watchers.len() >= MAX_WATCHERS {
            let error = EngineError::new(ErrorCode::LimitExceeded, format!("{MAX_WATCHERS} clients watch already"));
            answer(&stream, &Reply::Error(error));
            return;
        }
        answer(&stream, &Reply::Ok(self.description()));
        self.watchers.push(Some(Watcher { stream, holds }));
    }

    /// The maker says nothing; what is heard is its end.
    fn hear_maker(&mut self) -> Option<End> {
        if !self.maker.as_ref().is_some_and(closed) {
            return None;
        }
        self.maker = None;
        // A machine nobody was told of is nobody's, whatever its lifetime.
        (self.state == MachineState::Booting).then_some(End::MakerGone)
    }

    /// Returns whether an owned machine has lost everybody who held it.
    fn abandoned(&self) -> bool {
        self.config.spec.lifetime == Lifetime::Owned
            && self.maker.is_none()
            && !self.watchers.iter().flatten().any(|watcher| watcher.holds)
    }

    fn look_at_clock(&mut self) -> Option<End> {
        let now = Instant::now();
        // A client that does not say what it wants has no claim on a place.
        self.pending.retain(|client| client.as_ref().is_some_and(|client| client.until > now));
        if now >= self.expires {
            return Some(End::Expired);
        }
        if self.state != MachineState::Booting {
            return None;
        }
        if self.console.gave_up() {
            let at = *self.panicked_at.get_or_insert(now);
            if now >= at + PANIC_GRACE {
                return Some(End::GaveUp);
            }
        }
        (now >= self.started + self.config.boot_limit).then_some(End::BootLimit)
    }

    /// Takes the result of the first conversation.
    fn greeted(&mut self) -> Option<End> {
        let Ready { heard_at, hello } = match self.handshake.as_ref()?.take()? {
            Ok(ready) => ready,
            Err(error) => return Some(End::Failed(error)),
        };
        self.handshake = None;
        self.state = MachineState::Running;
        let since_engine = ms(heard_at.saturating_duration_since(self.engine_started));
        let guest_ms = (hello.boot_ms as f64).min(since_engine);
        let kernel_ms =
            hello.boot_steps.first().map_or(guest_ms, |step| step.done_us as f64 / 1e3).clamp(0.0, guest_ms);
        self.timings.engine_ms = since_engine - guest_ms;
        self.timings.kernel_ms = kernel_ms;
        self.timings.agent_ms = guest_ms - kernel_ms;
        self.timings.handover_ms = ms(heard_at.elapsed());
        self.timings.total_ms = self.timings.spawn_ms + ms(self.started.elapsed());
        tracing::info!(kernel = %hello.kernel, agent = %hello.agent_version, steps = ?hello.boot_steps, "ready");
        let event = Event::Ready { timings: self.timings, machine: self.config.describe(self.state) };
        if let Some(mut maker) = self.maker.as_ref()
            && maker.write_all(&line(&event)).is_err()
        {
            self.maker = None;
            return Some(End::MakerGone);
        }
        None
    }

    /// Returns the end of the machine as those who used it see it.
    fn explain(&self, end: End) -> EngineError {
        let id = &self.config.id;
        let booting = self.timings.total_ms == 0.0;
        let guest_failed =
            |code: ErrorCode, what: String| EngineError::new(code, what).with_console_tail(self.console.tail());
        match end {
            End::Asked => EngineError::new(ErrorCode::MachineDied, format!("machine {id} was ended on request")),
            End::Signalled => {
                EngineError::new(ErrorCode::MachineDied, format!("machine {id} was ended: the host asked to stop"))
            }
            End::MakerGone if booting => {
                EngineError::new(ErrorCode::Cancelled, format!("machine {id} is not wanted any more"))
            }
            End::MakerGone => {
                EngineError::new(ErrorCode::MachineDied, format!("machine {id} ended with the process that owned it"))
            }
            End::Expired => EngineError::new(
                ErrorCode::Expired,
                format!("machine {id} reached its time to live of {} s", self.config.spec.ttl.as_secs()),
            )
            .with_hint("create a machine with a larger ttl_seconds"),
            End::BootLimit => guest_failed(
                ErrorCode::BootTimeout,
                format!("the agent of machine {id} did not answer within {} s", self.config.boot_limit.as_secs_f64()),
            )
            .with_hint("a busy host boots slowly: try again, or look at the console"),
            End::GaveUp => guest_failed(ErrorCode::GuestPanic, format!("the guest of machine {id} gave up")),
            End::Vm(_) if self.console.gave_up() => {
                guest_failed(ErrorCode::GuestPanic, format!("the guest of machine {id} panicked"))
            }
            End::Vm(exit) if booting => guest_failed(
                ErrorCode::BootFailed,
                format!("machine {id} ended before its agent answered: {}", exit.how),
            ),
            End::Vm(exit) => {
                let error = EngineError::new(ErrorCode::MachineDied, format!("machine {id} ended: {}", exit.how));
                if exit.orderly { error } else { error.with_console_tail(self.console.tail()) }
            }
            End::Failed(error) => error.with_console_tail(self.console.tail()),
        }
    }
}

impl From<Result<(), EngineError>> for Reply {
    fn from(result: Result<(), EngineError>) -> Self {
        match result {
            Ok(()) => Reply::Ok(OkBody::default()),
            Err(error) => Reply::Error(error),
        }
    }
}

fn ports(ports: Vec<PublishedPort>) -> Reply {
    Reply::Ok(OkBody { ports, ..OkBody::default() })
}

/// Sends a line. A reply fits into an empty socket's buffer; a client that does not take it has gone.
fn answer(mut stream: &UnixStream, reply: &Reply) {
    let _ = stream.write_all(&line(reply));
}

/// Reads up to the first newline and leaves what follows in the socket: it belongs to the guest's stream.
fn read_through_newline(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MAX_REQUEST];
    let (_, count) = rustix::net::recv(stream, bytes.as_mut_slice(), RecvFlags::PEEK)?;
    let seen = bytes.get(..count).unwrap_or_default();
    let take = seen.iter().position(|&byte| byte == b'\n').map_or(count, |at| at + 1);
    bytes.truncate(take);
    if take > 0 {
        let (_, count) = rustix::net::recv(stream, bytes.as_mut_slice(), RecvFlags::empty())?;
        bytes.truncate(count);
    }
    Ok(bytes)
}

/// Returns whether the other side has closed the stream. What it may have sent is thrown away.
fn closed(stream: &UnixStream) -> bool {
    let mut bytes = [0; 512];
    loop {
        match rustix::net::recv(stream, bytes.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return true,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return false,
            Err(_) => return true,
        }
    }
}

/// Blocks the signals that ask a process to end and returns a descriptor that tells of them instead, so that the
/// machine's directory is removed on that way too.
fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero signal set is a valid value, the calls only read and write it, and the descriptor they return
    // is new and owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
