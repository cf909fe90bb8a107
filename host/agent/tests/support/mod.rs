#![allow(dead_code, reason = "each test file uses a part")]
//! A server on a Unix socket, and a host that talks to it.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyro_agent::cgroup::CgroupRoot;
use pyro_agent::facts::BootFacts;
use pyro_agent::server::{Config, Server, ServerError, ShutdownAsked};
use pyro_agent_protocol::*;

/// Longer than anything here takes; a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running server.
pub struct Agent {
    dir: tempfile::TempDir,
    thread: Option<JoinHandle<Result<ShutdownAsked, ServerError>>>,
    /// True when commands get cgroups.
    pub cgroups: bool,
}

impl Agent {
    /// Starts a server that kills by process group.
    pub fn without_cgroups() -> Self {
        Self::start(None, 256)
    }

    /// Starts a server with cgroups, or returns `None` where this machine lets nobody make one.
    pub fn with_cgroups() -> Option<Self> {
        let parent = cgroup_parent()?;
        Some(Self::start(Some(CgroupRoot::open(&parent).ok()?), 256))
    }

    /// Starts a server.
    pub fn start(cgroups: Option<CgroupRoot>, max_execs: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let has_cgroups = cgroups.is_some();
        let server = Server::new(Config {
            listener: OwnedFd::from(listener),
            cgroups,
            default_cwd: dir.path().to_str().unwrap().to_owned(),
            boot: BootFacts::default(),
            child_signal: None,
            max_execs,
        })
        .unwrap();
        let thread = Some(std::thread::spawn(move || server.run()));
        Self { dir, thread, cgroups: has_cgroups }
    }

    /// Returns the directory in which commands start.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Opens a connection.
    pub fn connect(&self) -> Host {
        let stream = UnixStream::connect(self.dir.path().join("agent.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Host { stream, decoder: FrameDecoder::new() }
    }

    /// Opens a connection and sends an operation.
    pub fn open(&self, op: Op) -> Host {
        let mut host = self.connect();
        host.send(&HostFrame::Open(Open::new(op)));
        host
    }

    /// Opens a connection and runs a shell command.
    pub fn shell(&self, line: &str) -> Host {
        self.open(Op::Exec(ExecRequest::new(Program::Shell(line.to_owned()))))
    }

    /// Ends the server and returns what it reports.
    pub fn shut_down(mut self) -> ShutdownAsked {
        let _host = self.open(Op::Shutdown(ShutdownRequest { mode: ShutdownMode::Reboot }));
        self.thread.take().unwrap().join().unwrap().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take()
            && !thread.is_finished()
            && !std::thread::panicking()
        {
            let _host = self.open(Op::Shutdown(ShutdownRequest::default()));
            thread.join().unwrap().unwrap();
        }
    }
}

/// Writes a program by another process: a child that a test next to this one is just starting would hold a file that this
/// process has open for writing, and such a file cannot be executed.
pub fn write_program(path: &Path, text: &str) {
    let mut tee = Command::new("tee").arg(path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    tee.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(tee.wait().unwrap().success());
}

/// One connection, from the host's side.
pub struct Host {
    pub stream: UnixStream,
    decoder: FrameDecoder,
}

/// Everything a command sent.
#[derive(Debug, Default)]
pub struct Collected {
    pub started: Option<Started>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exited: Option<Exited>,
    pub error: Option<ErrorReply>,
    pub credit: usize,
}

impl Collected {
    /// Returns the end, which must have come.
    pub fn exited(&self) -> &Exited {
        self.exited.as_ref().unwrap_or_else(|| panic!("no end: {:?}", self.error))
    }

    /// Returns the error, which must have come instead.
    pub fn error(&self) -> &ErrorReply {
        self.error.as_ref().unwrap_or_else(|| panic!("no error: {:?}", self.exited))
    }
}

/// Everything an operation other than a command sent.
#[derive(Debug, Default)]
pub struct Answer {
    pub data: Vec<u8>,
    pub entries: Vec<FileEntry>,
    pub terminals: Vec<TerminalStatus>,
    pub services: Vec<ServiceStatus>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub done: Option<Done>,
    pub error: Option<ErrorReply>,
}

impl Answer {
    /// Returns the last frame, which must be good.
    pub fn done(&self) -> &Done {
        self.done.as_ref().unwrap_or_else(|| panic!("not done: {:?}", self.error))
    }

    /// Returns the code of the error, which must have come instead.
    pub fn code(&self) -> &str {
        &self.error.as_ref().unwrap_or_else(|| panic!("no error: {self:?}")).code
    }

    /// Returns the one terminal, which must have come.
    pub fn terminal(&self) -> &TerminalStatus {
        self.terminals.first().unwrap_or_else(|| panic!("no terminal: {:?}", self.error))
    }

    /// Returns the one service, which must have come.
    pub fn service(&self) -> &ServiceStatus {
        self.services.first().unwrap_or_else(|| panic!("no service: {:?}", self.error))
    }
}

impl Agent {
    /// Does an operation that needs nothing but its request.
    pub fn ask(&self, op: Op) -> Answer {
        self.open(op).answer()
    }

    /// Does an operation that takes bytes in.
    pub fn feed(&self, op: Op, bytes: &[u8]) -> Answer {
        let mut host = self.open(op);
        host.send_data(bytes);
        host.answer()
    }
}

impl Host {
    /// Sends bytes and their end. An agent that refused may have closed before it took them.
    pub fn send_data(&mut self, bytes: &[u8]) {
        let mut frames = Vec::new();
        encode_host_data(bytes, &mut frames);
        HostFrame::DataEof.encode(&mut frames).unwrap();
        let _ = self.stream.write_all(&frames);
    }

    /// Reads until the last frame of an operation that is no command.
    pub fn answer(&mut self) -> Answer {
        let mut all = Answer::default();
        while let Some(frame) = self.next() {
            assert!(all.done.is_none() && all.error.is_none(), "a frame after the last: {frame:?}");
            match frame {
                GuestFrame::Data(bytes) => all.data.extend(bytes),
                GuestFrame::Entries(entries) => all.entries.extend(entries),
                GuestFrame::Terminal(terminal) => all.terminals.push(*terminal),
                GuestFrame::Service(service) => all.services.push(*service),
                GuestFrame::Stdout(bytes) => all.stdout.extend(bytes),
                GuestFrame::Stderr(bytes) => all.stderr.extend(bytes),
                GuestFrame::Done(done) => all.done = Some(done),
                GuestFrame::Error(error) => all.error = Some(error),
                other => panic!("unexpected: {other:?}"),
            }
        }
        all
    }

    /// Sends a frame. An agent that refused may have closed before it came.
    pub fn send(&mut self, frame: &HostFrame) {
        self.send_all(&[frame]);
    }

    /// Sends frames at once.
    pub fn send_all(&mut self, frames: &[&HostFrame]) {
        let mut bytes = Vec::new();
        for frame in frames {
            frame.encode(&mut bytes).unwrap();
        }
        if let Err(error) = self.stream.write_all(&bytes) {
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        }
    }

    /// Returns the next frame, or `None` when the agent has closed the connection.
    pub fn next(&mut self) -> Option<GuestFrame> {
        let mut buffer = vec![0; 65536];
        loop {
            if let Some(frame) = self.decoder.next_guest().unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                // A read with a timeout is not begun again by the kernel.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// Waits for the command to have started and returns its pid.
    pub fn started(&mut self) -> u32 {
        match self.next() {
            Some(GuestFrame::Started(started)) => started.pid,
            other => panic!("not started: {other:?}"),
        }
    }

    /// Reads until the last frame.
    pub fn collect(&mut self) -> Collected {
        let mut all = Collected::default();
        while let Some(frame) = self.next() {
            assert!(all.exited.is_none() && all.error.is_none(), "a frame after the last: {frame:?}");
            match frame {
                GuestFrame::Started(started) => all.started = Some(started),
                GuestFrame::Stdout(bytes) => all.stdout.extend(bytes),
                GuestFrame::Stderr(bytes) => all.stderr.extend(bytes),
                GuestFrame::Exited(exited) => all.exited = Some(exited),
                GuestFrame::Error(error) => all.error = Some(error),
                GuestFrame::StdinCredit(bytes) => all.credit += bytes as usize,
                other => panic!("unexpected: {other:?}"),
            }
        }
        all
    }
}

/// True when the process exists and is not a zombie.
pub fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Waits until `condition` holds; panics with `what` when it never does.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns a fresh name for a cgroup below a cgroup v2 mount.
fn cgroup_parent() -> Option<PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let target = words.nth(1)?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(target))
    })?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Some(mount.join(format!("pyro-test-{}-{number}", std::process::id())))
}
