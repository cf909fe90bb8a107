//! Running one command in a machine.
//!
//! One command has a connection for itself, and leaves it to the next when it was sent nothing but its request. The
//! request is sent once: a connection that is lost after that is reported, never repeated. Dropping the session closes the
//! connection, and the agent then kills everything the command started.
//!
//! Nothing is buffered here beyond one read: when the caller does not ask for the next event, the socket fills, then
//! the guest's, and the command waits.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use pyro_agent_protocol::{
    self as protocol, AGENT_PORT, FrameDecoder, GuestFrame, HostFrame, Op, Open, STDIN_WINDOW_BYTES, codes,
    signal_number,
};
use rustix::net::Shutdown;
use tokio::{
    net::UnixStream,
    sync::{Mutex as AsyncMutex, Semaphore},
    time::Instant,
};

use crate::{
    control::{LineBuffer, MAX_REPLY, Reply, Request},
    error::{EngineError, ErrorCode},
    machine::Machine,
};

/// How long after its timeout a command's end is waited for. The guest kills the command at the timeout; this covers a
/// guest that is too busy, or too broken, to say so.
const TIMEOUT_GRACE: Duration = Duration::from_secs(15);
/// Bytes asked for in one read: one full data frame and a little more.
const READ_SIZE: usize = 72 * 1024;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecCommand {
    /// A program and its arguments, looked up in the guest's `PATH`.
    Argv(Vec<String>),
    /// A line for the guest's shell.
    Shell(String),
}

/// A command and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// What to run.
    pub command: ExecCommand,
    /// Working directory in the guest; the guest's default when absent.
    pub cwd: Option<String>,
    /// Added to the guest's default environment.
    pub env: Vec<(String, String)>,
    /// The guest kills the command after this long.
    pub timeout: Duration,
    /// Whether standard input will be written; otherwise the command reads end-of-file.
    pub stdin: bool,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecExit {
    /// Exit code, when it exited by itself.
    pub exit_code: Option<i32>,
    /// Name of the signal that ended it, such as `SIGKILL`.
    pub signal: Option<String>,
    /// Whether the timeout ended it.
    pub timed_out: bool,
    /// Wall time in the guest.
    pub duration: Duration,
    /// CPU time of everything it started, when the guest could account for it.
    pub cpu: Option<Duration>,
    /// Peak memory of everything it started, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Whether the guest ran out of memory for it.
    pub oom_killed: bool,
    /// Whether processes it left running were killed after it.
    pub leftovers_killed: bool,
}

/// Something that happened to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It runs, with this process id in the guest.
    Started {
        /// Process id in the guest.
        pid: u32,
    },
    /// It wrote to standard output.
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// It ended; all its output was delivered before.
    Exited(ExecExit),
}

/// A command that was sent to a machine. Dropping it cancels the command.
#[derive(Debug)]
pub struct ExecSession {
    machine: Machine,
    connection: Arc<Connection>,
    phase: Phase,
    reply: Option<LineBuffer>,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    deadline: Instant,
    timeout: Duration,
    /// True once the command has ended and the agent awaits another over the connection.
    reusable: bool,
}

/// Writes to a command's standard input and sends it signals; cheap to clone and usable beside [`ExecSession::next`],
/// which must be polled while a large input is written.
#[derive(Debug, Clone)]
pub struct ExecInput {
    connection: Arc<Connection>,
}

#[derive(Debug)]
enum Phase {
    /// The VM process has not said yet that the guest was reached.
    Connecting,
    /// The guest has the request.
    Sent,
    /// The command runs.
    Running,
    /// The command ended.
    Ended(ExecExit),
    /// The session failed; the error is final.
    Failed(EngineError),
}

#[derive(Debug)]
struct Connection {
    stream: Arc<UnixStream>,
    /// Keeps frames whole when several tasks write.
    writing: AsyncMutex<()>,
    /// True once anything but the request was sent.
    fed: AtomicBool,
    /// Bytes of standard input that may still be sent before the guest reads some.
    window: Semaphore,
    /// Bytes that were sent and not credited yet, so that a guest cannot make the window larger than it was.
    outstanding: Mutex<usize>,
}

impl ExecRequest {
    fn open(&self) -> Result<Open, EngineError> {
        let refuse = |what: String| EngineError::new(ErrorCode::InvalidArgument, what);
        let program = match &self.command {
            ExecCommand::Argv(argv) => {
                if argv.first().is_none_or(String::is_empty) {
                    return Err(refuse("the command is empty".to_owned()));
                }
                for (at, argument) in argv.iter().enumerate() {
                    if argument.contains('\0') {
                        return Err(refuse(format!("argument {at} of the command contains a NUL byte")));
                    }
                }
                protocol::Program::Argv(argv.clone())
            }
            ExecCommand::Shell(line) => {
                if line.trim().is_empty() {
                    return Err(refuse("the command is empty".to_owned()));
                }
                if line.contains('\0') {
                    return Err(refuse("the command contains a NUL byte".to_owned()));
                }
                protocol::Program::Shell(line.clone())
            }
        };
        if self.cwd.as_ref().is_some_and(|cwd| cwd.is_empty() || cwd.contains('\0')) {
            return Err(refuse("the working directory is empty or contains a NUL byte".to_owned()));
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(refuse(format!("`{}` is not a usable environment variable", name.escape_debug())));
            }
        }
        if self.timeout.is_zero() {
            return Err(refuse("the timeout must be positive".to_owned()));
        }
        // The guest reads 0 as no limit, so a fraction of a millisecond is rounded up.
        let timeout_ms = u64::try_from(self.timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Ok(Open::new(Op::Exec(protocol::ExecRequest {
            program,
            cwd: self.cwd.clone(),
            env: self.env.clone(),
            timeout_ms,
            stdin: self.stdin,
            // Of input the guest may still have some on its way when the command ends.
            keep: !self.stdin,
        })))
    }
}

impl ExecExit {
    /// Returns the exit code as a shell reports it: that of the command, or 128 plus the number of the signal.
    pub fn shell_code(&self) -> i32 {
        match (&self.exit_code, &self.signal) {
            (Some(code), _) => *code,
            (None, Some(signal)) => 128 + signal_number(signal).unwrap_or(0),
            (None, None) => 128,
        }
    }
}

impl ExecSession {
    pub(crate) async fn start(machine: Machine, request: &ExecRequest) -> Result<Self, EngineError> {
        let mut open = Vec::new();
        HostFrame::Open(request.open()?).encode(&mut open).map_err(|e| {
            EngineError::new(ErrorCode::InvalidArgument, format!("the command does not fit into a request: {e}"))
                .with_hint("write long input to standard input, or to a file first")
        })?;
        let (stream, bytes, phase) = match machine.take_kept() {
            Some(stream) => (stream, open, Phase::Sent),
            None => {
                // The request goes out together with the wish to connect, which saves a round trip between two
                // processes. The VM process passes it on only after it said that the guest was reached.
                let mut bytes = crate::control::line(&Request::Connect { port: AGENT_PORT });
                bytes.append(&mut open);
                (Arc::new(machine.control().await?), bytes, Phase::Connecting)
            }
        };
        let reply = matches!(phase, Phase::Connecting).then(|| LineBuffer::new(MAX_REPLY));
        let connection = Arc::new(Connection {
            stream,
            writing: AsyncMutex::new(()),
            fed: AtomicBool::new(false),
            window: Semaphore::new(STDIN_WINDOW_BYTES),
            outstanding: Mutex::new(0),
        });
        // A VM process that refuses hangs up while a large request is still being written; its reply tells why, and is
        // read below.
        if let Err(error) = connection.send(&bytes).await {
            tracing::debug!(%error, "the request was not taken as a whole");
        }
        // No timer can count further than this, and no machine lives this long.
        let wait = request.timeout.min(Duration::from_secs(86_400)) + TIMEOUT_GRACE;
        Ok(Self {
            machine,
            connection,
            phase,
            reply,
            reusable: false,
            decoder: FrameDecoder::new(),
            buffer: Vec::new(),
            deadline: Instant::now() + wait,
            timeout: request.timeout,
        })
    }

    /// Returns the next event. After `Exited`, returns the same `Exited` again; an error repeats too. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// `not_started` when the guest refused the command before it ran, `machine_died`, `guest_panic`, `expired` or
    /// `outcome_unknown` when the connection was lost, `timeout` when the guest did not report the end of the command
    /// long after its timeout.
    pub async fn next(&mut self) -> Result<ExecEvent, EngineError> {
        loop {
            match &self.phase {
                Phase::Ended(exit) => return Ok(ExecEvent::Exited(exit.clone())),
                Phase::Failed(error) => return Err(error.clone()),
                Phase::Connecting | Phase::Sent | Phase::Running => {}
            }
            match self.advance() {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(error) => return Err(self.fail(error)),
            }
            let read = tokio::time::timeout_at(self.deadline, self.connection.read(&mut self.buffer)).await;
            let lost = match read {
                Ok(Ok(0)) => None,
                Ok(Ok(_)) => {
                    match &mut self.reply {
                        Some(line) => line.push(&self.buffer),
                        None => self.decoder.push(&self.buffer),
                    }
                    continue;
                }
                Ok(Err(e)) => Some(e),
                Err(_) => {
                    let error = EngineError::new(
                        ErrorCode::Timeout,
                        format!(
                            "the guest did not report the end of the command {} s after its timeout of {} s; its \
                             outcome is unknown",
                            TIMEOUT_GRACE.as_secs(),
                            self.timeout.as_secs_f64()
                        ),
                    );
                    return Err(self.fail(error));
                }
            };
            let error = self.explain_loss(lost).await;
            return Err(self.fail(error));
        }
    }

    /// Returns a handle for standard input and signals.
    pub fn input(&self) -> ExecInput {
        ExecInput { connection: Arc::clone(&self.connection) }
    }

    /// Takes one event out of what was read.
    fn advance(&mut self) -> Result<Option<ExecEvent>, EngineError> {
        if let Some(mut buffer) = self.reply.take() {
            let Some(line) = buffer.take()? else {
                self.reply = Some(buffer);
                return Ok(None);
            };
            read_reply(&line)?;
            self.phase = Phase::Sent;
            self.decoder.push(&buffer.into_rest());
        }
        loop {
            let frame = self.decoder.next_guest().map_err(|e| {
                EngineError::new(
                    ErrorCode::OutcomeUnknown,
                    format!("the guest agent broke the protocol ({e}); the outcome of the command is unknown"),
                )
            })?;
            let Some(frame) = frame else { return Ok(None) };
            return Ok(Some(match frame {
                GuestFrame::Started(started) => {
                    self.phase = Phase::Running;
                    ExecEvent::Started { pid: started.pid }
                }
                GuestFrame::Stdout(bytes) => ExecEvent::Stdout(bytes.into()),
                GuestFrame::Stderr(bytes) => ExecEvent::Stderr(bytes.into()),
                GuestFrame::Exited(exited) => {
                    self.reusable = exited.kept;
                    let exit = exit(exited);
                    if !self.reusable {
                        self.connection.close();
                    }
                    self.phase = Phase::Ended(exit.clone());
                    ExecEvent::Exited(exit)
                }
                GuestFrame::StdinCredit(bytes) => {
                    self.connection.credit(bytes);
                    continue;
                }
                GuestFrame::Error(error) => return Err(self.refused(error)),
                // Frames of other operations, and of later agents.
                _ => continue,
            }));
        }
    }

    fn refused(&self, error: protocol::ErrorReply) -> EngineError {
        if matches!(self.phase, Phase::Running) {
            return EngineError::new(
                ErrorCode::OutcomeUnknown,
                format!("the guest agent lost the command ({}); its outcome is unknown", error.message),
            )
            .with_guest_code(error.code);
        }
        let (code, hint) = match error.code.as_str() {
            codes::INVALID_ARGUMENT => (ErrorCode::InvalidArgument, None),
            codes::INVALID_CWD => (ErrorCode::InvalidArgument, Some("pass a directory that exists in the guest")),
            codes::NOT_FOUND => (ErrorCode::NotStarted, Some("check the name, or install the program in the guest")),
            codes::LIMIT_EXCEEDED => (ErrorCode::LimitExceeded, Some("wait until other commands ended")),
            _ => (ErrorCode::NotStarted, None),
        };
        let mut refused = EngineError::new(code, error.message).with_guest_code(error.code);
        if let Some(hint) = hint {
            refused = refused.with_hint(hint);
        }
        if code == ErrorCode::LimitExceeded {
            refused = refused.retry_may_help();
        }
        refused
    }

    async fn explain_loss(&self, error: Option<io::Error>) -> EngineError {
        let error = error.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
        match self.phase {
            Phase::Connecting => self.machine.lost(not_reached(&error)).await,
            _ => {
                let unknown = EngineError::new(
                    ErrorCode::OutcomeUnknown,
                    format!("the connection to the guest was lost ({error}); the outcome of the command is unknown"),
                )
                .with_hint("look at what the command was to change before running it again");
                let died = self.machine.lost(unknown.clone()).await;
                if died.code() == unknown.code() {
                    return unknown;
                }
                died.while_doing("the command was running, and its outcome is unknown")
            }
        }
    }

    fn fail(&mut self, error: EngineError) -> EngineError {
        self.connection.close();
        self.phase = Phase::Failed(error.clone());
        error
    }
}

impl Drop for ExecSession {
    fn drop(&mut self) {
        if self.reusable
            && let Some(connection) = Arc::get_mut(&mut self.connection)
            && !*connection.fed.get_mut()
        {
            self.machine.keep(Arc::clone(&connection.stream));
        } else {
            // Handles for input may still exist, so the socket is shut down rather than left to its last owner.
            self.connection.close();
        }
    }
}

impl ExecInput {
    /// Writes to standard input, waiting while the guest does not read.
    ///
    /// # Errors
    /// `not_started` when the command has ended, `io` when the connection was lost.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), EngineError> {
        for chunk in bytes.chunks(protocol::DATA_CHUNK_BYTES) {
            let permits = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            self.connection.window.acquire_many(permits).await.map_err(|_| ended())?.forget();
            *lock(&self.connection.outstanding) += chunk.len();
            let mut frame = Vec::with_capacity(chunk.len() + 8);
            protocol::encode_stdin(chunk, &mut frame);
            self.send(&frame).await?;
        }
        Ok(())
    }

    /// Ends standard input.
    ///
    /// # Errors
    /// `not_started` when the command has ended, `io` when the connection was lost.
    pub async fn close(&self) -> Result<(), EngineError> {
        self.frame(&HostFrame::StdinEof).await
    }

    /// Sends a signal, by name (`SIGTERM` or `TERM`), to the command's process group.
    ///
    /// # Errors
    /// `invalid_argument` when no signal has that name, else as [`Self::close`].
    pub async fn signal(&self, name: &str) -> Result<(), EngineError> {
        if signal_number(name).is_none() {
            return Err(EngineError::new(ErrorCode::InvalidArgument, format!("no signal is called `{name}`"))
                .with_hint("pass a name such as SIGTERM"));
        }
        self.frame(&HostFrame::Signal(name.to_owned())).await
    }

    async fn frame(&self, frame: &HostFrame) -> Result<(), EngineError> {
        let mut bytes = Vec::new();
        frame
            .encode(&mut bytes)
            .map_err(|e| EngineError::new(ErrorCode::InvalidArgument, format!("does not fit into a frame: {e}")))?;
        self.send(&bytes).await
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), EngineError> {
        self.connection.fed.store(true, Ordering::Relaxed);
        self.connection.send(bytes).await.map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ended(),
            _ => EngineError::io("write to the command", &e),
        })
    }
}

impl Connection {
    /// Writes everything. A future dropped half-way leaves a cut frame, so the connection is then closed.
    async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        let mut whole = CloseUnlessDone { connection: self, done: false };
        let mut result = Ok(());
        while !bytes.is_empty() && result.is_ok() {
            match self.stream.try_write(bytes) {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => result = self.stream.writable().await,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => result = Err(e),
            }
        }
        // An error means that the other side has gone; what it said before can still be read.
        whole.done = true;
        result
    }

    /// Reads what is there into `buffer`, replacing what it held; 0 bytes are the end.
    async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            buffer.clear();
            buffer.reserve(READ_SIZE);
            match self.stream.try_read_buf(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.stream.readable().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn credit(&self, bytes: u32) {
        let mut outstanding = lock(&self.outstanding);
        let granted = (bytes as usize).min(*outstanding);
        *outstanding -= granted;
        self.window.add_permits(granted);
    }

    fn close(&self) {
        self.window.close();
        // It may be closed already, which is as well.
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Both);
    }
}

struct CloseUnlessDone<'a> {
    connection: &'a Connection,
    done: bool,
}

impl Drop for CloseUnlessDone<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.connection.close();
        }
    }
}

/// Reads the VM process's answer to `connect`.
pub(crate) fn read_reply(line: &[u8]) -> Result<crate::control::OkBody, EngineError> {
    match serde_json::from_slice(line) {
        Ok(Reply::Ok(body)) => Ok(body),
        Ok(Reply::Error(error)) => Err(error),
        Err(e) => {
            Err(EngineError::new(ErrorCode::Internal, format!("the VM process gave a reply that is not one: {e}")))
        }
    }
}

fn exit(exited: protocol::Exited) -> ExecExit {
    ExecExit {
        exit_code: exited.exit_code,
        signal: exited.signal,
        timed_out: exited.timed_out,
        duration: Duration::from_millis(exited.duration_ms),
        cpu: exited.cpu_us.map(Duration::from_micros),
        peak_memory_bytes: exited.peak_memory_bytes,
        oom_killed: exited.oom_killed,
        leftovers_killed: exited.leftovers_killed,
    }
}

fn not_reached(error: &io::Error) -> EngineError {
    EngineError::new(ErrorCode::NotStarted, format!("the guest could not be reached: {error}")).retry_may_help()
}

fn ended() -> EngineError {
    EngineError::new(ErrorCode::NotStarted, "the command has ended and reads no more input")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ExecRequest {
        ExecRequest {
            command: ExecCommand::Argv(vec!["true".to_owned()]),
            cwd: None,
            env: Vec::new(),
            timeout: Duration::from_secs(30),
            stdin: false,
        }
    }

    fn refused(change: impl FnOnce(&mut ExecRequest)) -> String {
        let mut request = request();
        change(&mut request);
        let error = request.open().unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        error.message().to_owned()
    }

    #[test]
    fn requests_that_no_guest_could_run_are_refused() {
        assert!(request().open().is_ok());
        assert_eq!(refused(|r| r.command = ExecCommand::Argv(vec![])), "the command is empty");
        assert_eq!(refused(|r| r.command = ExecCommand::Argv(vec![String::new()])), "the command is empty");
        assert_eq!(refused(|r| r.command = ExecCommand::Shell(" \n".into())), "the command is empty");
        assert_eq!(
            refused(|r| r.command = ExecCommand::Argv(vec!["echo".into(), "a\0b".into()])),
            "argument 1 of the command contains a NUL byte"
        );
        assert_eq!(refused(|r| r.command = ExecCommand::Shell("a\0b".into())), "the command contains a NUL byte");
        assert!(refused(|r| r.cwd = Some(String::new())).starts_with("the working directory"));
        assert_eq!(refused(|r| r.env = vec![("A=B".into(), "c".into())]), "`A=B` is not a usable environment variable");
        assert_eq!(refused(|r| r.timeout = Duration::ZERO), "the timeout must be positive");
    }

    #[test]
    fn a_tiny_timeout_is_not_no_timeout() {
        let mut request = request();
        request.timeout = Duration::from_nanos(1);
        let Op::Exec(exec) = request.open().unwrap().op else { panic!("not an exec") };
        assert_eq!(exec.timeout_ms, 1);
    }

    #[test]
    fn shell_codes_follow_the_shell() {
        let exit = |exit_code, signal: Option<&str>| {
            exit(protocol::Exited { exit_code, signal: signal.map(str::to_owned), ..Default::default() }).shell_code()
        };
        assert_eq!(exit(Some(3), None), 3);
        assert_eq!(exit(None, Some("SIGKILL")), 137);
        assert_eq!(exit(None, Some("SIGTERM")), 143);
        assert_eq!(exit(None, Some("SIGSYS")), 159);
    }

    /// A VM process and an agent: every request of a connection ends with the exit code that `codes` says, a client's
    /// number and the request's. Returns for each connection how many requests came over it.
    fn answer_clients(listener: &std::os::unix::net::UnixListener, keeps: &[&[bool]]) -> Vec<usize> {
        use std::io::{BufRead, BufReader, Read, Write};
        let mut asked = Vec::new();
        for keeps in keeps {
            let mut client = BufReader::new(listener.accept().unwrap().0);
            client.read_line(&mut String::new()).unwrap();
            client.get_mut().write_all(b"{\"ok\":{}}\n").unwrap();
            let mut decoder = FrameDecoder::new();
            let mut requests = 0;
            for &kept in *keeps {
                let frame = loop {
                    if let Some(frame) = decoder.next_host().unwrap() {
                        break frame;
                    }
                    let mut bytes = [0; 4096];
                    let count = client.read(&mut bytes).unwrap();
                    assert!(count > 0, "the client left");
                    decoder.push(&bytes[..count]);
                };
                assert!(matches!(frame, HostFrame::Open(Open { op: Op::Exec(_), .. })), "{frame:?}");
                requests += 1;
                let exited = protocol::Exited { exit_code: Some(requests), kept, ..Default::default() };
                let mut bytes = Vec::new();
                GuestFrame::Started(protocol::Started { pid: 7 }).encode(&mut bytes).unwrap();
                GuestFrame::Exited(exited).encode(&mut bytes).unwrap();
                client.get_mut().write_all(&bytes).unwrap();
            }
            asked.push(usize::try_from(requests).unwrap());
        }
        asked
    }

    #[tokio::test]
    async fn a_connection_that_the_agent_keeps_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("control.sock")).unwrap();
        // The first connection is used three times, and closed by the agent although it promised to keep it; the second
        // is not kept.
        let agent = std::thread::spawn(move || answer_clients(&listener, &[&[true, true, true], &[false], &[true]]));
        let (events, _peer) = UnixStream::pair().unwrap();
        let machine = crate::machine::tests::handle(dir.path(), events);
        let mut codes = Vec::new();
        for round in 0..5 {
            if round == 3 {
                // The agent has to be seen leaving.
                while let Some(stream) = machine.take_kept() {
                    machine.keep(stream);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            let mut session = machine.exec(request()).await.unwrap();
            assert_eq!(session.next().await.unwrap(), ExecEvent::Started { pid: 7 });
            let ExecEvent::Exited(exit) = session.next().await.unwrap() else { panic!("no end") };
            codes.push(exit.exit_code.unwrap());
        }
        assert_eq!(codes, [1, 2, 3, 1, 1]);
        assert_eq!(agent.join().unwrap(), [3, 1, 1]);
    }

    #[tokio::test]
    async fn a_connection_that_was_sent_more_than_a_request_is_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("control.sock")).unwrap();
        let agent = std::thread::spawn(move || answer_clients(&listener, &[&[true], &[true], &[true]]));
        let (events, _peer) = UnixStream::pair().unwrap();
        let machine = crate::machine::tests::handle(dir.path(), events);
        for round in 0..3 {
            let mut session = machine.exec(request()).await.unwrap();
            let input = session.input();
            while !matches!(session.next().await.unwrap(), ExecEvent::Exited(_)) {}
            match round {
                // A signal may still be on its way, and a handle may still send one.
                0 => drop(input.signal("TERM").await),
                1 => {
                    drop(session);
                    assert!(input.signal("TERM").await.is_err());
                    continue;
                }
                _ => {}
            }
            drop(input);
            drop(session);
            assert_eq!(machine.kept_count(), usize::from(round == 2));
        }
        assert_eq!(agent.join().unwrap(), [1, 1, 1]);
    }

    #[tokio::test]
    async fn a_guest_cannot_widen_the_input_window() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let connection = Connection {
            stream: Arc::new(ours),
            writing: AsyncMutex::new(()),
            fed: AtomicBool::new(false),
            window: Semaphore::new(10),
            outstanding: Mutex::new(0),
        };
        connection.credit(u32::MAX);
        assert_eq!(connection.window.available_permits(), 10);
        connection.window.acquire_many(4).await.unwrap().forget();
        *lock(&connection.outstanding) += 4;
        connection.credit(3);
        assert_eq!(connection.window.available_permits(), 9);
        connection.credit(u32::MAX);
        assert_eq!(connection.window.available_permits(), 10);
    }
}
