//! The host's door to the device: requests from any thread, carried out by the device's thread.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::stats::{Counters, VsockStats};

/// How a connect from the host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectOutcome {
    /// The guest accepted; bytes are relayed from now on.
    Connected,
    /// The guest has no listener on the port.
    Refused,
    /// The guest did not answer in time.
    TimedOut,
    /// The device was reset or has gone.
    Reset,
    /// The device has all the connections it may have.
    LimitReached,
}

impl fmt::Display for ConnectOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectOutcome::Connected => "connected",
            ConnectOutcome::Refused => "refused by the guest",
            ConnectOutcome::TimedOut => "no answer from the guest in time",
            ConnectOutcome::Reset => "the vsock device was reset or has ended",
            ConnectOutcome::LimitReached => "too many vsock connections",
        })
    }
}

/// Told how a connect ended, before the first byte is relayed. It runs on the device's thread and
/// must not wait. The stream is lent so that an answer line can be written ahead of the guest's
/// bytes; after any outcome but `Connected` the device closes it.
pub type Completion = Box<dyn FnOnce(ConnectOutcome, &UnixStream) + Send>;

/// Takes the host's end of a connection that the guest opened. It runs on the device's thread and
/// must not wait.
pub type Acceptor = Box<dyn FnMut(UnixStream) + Send>;

pub(super) enum Command {
    Connect { port: u32, stream: UnixStream, timeout: Option<Duration>, completion: Completion },
    Listen { port: u32, acceptor: Acceptor },
    Unlisten { port: u32 },
}

/// A handle to a running device. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct VsockHandle {
    shared: Arc<Shared>,
}

impl VsockHandle {
    pub(super) fn new(shared: Arc<Shared>) -> VsockHandle {
        VsockHandle { shared }
    }

    /// Connects `stream` to `port` of the guest and relays bytes both ways until both directions
    /// have ended, with the device's usual time limit for the guest's answer.
    ///
    /// Half-closes pass through. When the other end of `stream` is closed as a whole, bytes still
    /// under way to the guest are delivered for as long as the guest keeps taking them.
    pub fn connect(
        &self,
        port: u32,
        stream: UnixStream,
        completion: impl FnOnce(ConnectOutcome, &UnixStream) + Send + 'static,
    ) {
        self.shared.push(Command::Connect { port, stream, timeout: None, completion: Box::new(completion) });
    }

    /// As [`Self::connect`], with a time limit of its own.
    pub fn connect_within(
        &self,
        timeout: Duration,
        port: u32,
        stream: UnixStream,
        completion: impl FnOnce(ConnectOutcome, &UnixStream) + Send + 'static,
    ) {
        self.shared.push(Command::Connect { port, stream, timeout: Some(timeout), completion: Box::new(completion) });
    }

    /// Opens a connection to `port` of the guest and waits for the outcome. Returns the host's end.
    pub fn connect_wait(&self, port: u32) -> Result<UnixStream, ConnectError> {
        let (ours, theirs) = UnixStream::pair().map_err(ConnectError::Pair)?;
        let (sender, outcome) = mpsc::sync_channel(1);
        self.connect(port, theirs, move |outcome, _| {
            let _ = sender.send(outcome);
        });
        match outcome.recv() {
            Ok(ConnectOutcome::Connected) => Ok(ours),
            Ok(outcome) => Err(ConnectError::Failed(outcome)),
            Err(_) => Err(ConnectError::Failed(ConnectOutcome::Reset)),
        }
    }

    /// Accepts the guest's connections to `port` of the host; without a listener they are refused.
    /// Replaces an earlier listener on the port.
    pub fn listen(&self, port: u32, acceptor: impl FnMut(UnixStream) + Send + 'static) {
        self.shared.push(Command::Listen { port, acceptor: Box::new(acceptor) });
    }

    /// Refuses further connections to `port`. Open ones stay.
    pub fn unlisten(&self, port: u32) {
        self.shared.push(Command::Unlisten { port });
    }

    /// Returns the device's counters.
    pub fn stats(&self) -> VsockStats {
        self.shared.counters.snapshot()
    }
}

impl fmt::Debug for VsockHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockHandle").finish_non_exhaustive()
    }
}

/// Why [`VsockHandle::connect_wait`] gave no stream.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No socket pair could be made.
    #[error("cannot make a socket pair for a vsock connection: {0}")]
    Pair(#[source] std::io::Error),
    /// The connection was not made.
    #[error("vsock connect failed: {0}")]
    Failed(ConnectOutcome),
}

/// What the handles and the device share.
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    wake: OwnedFd,
    pub(super) counters: Counters,
}

#[derive(Default)]
struct Inbox {
    commands: VecDeque<Command>,
    closed: bool,
}

impl Shared {
    pub(super) fn new() -> std::io::Result<Shared> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Shared { inbox: Mutex::default(), wake, counters: Counters::default() })
    }

    /// Returns the descriptor that becomes readable when commands wait.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn push(&self, command: Command) {
        let mut inbox = self.lock();
        if inbox.closed {
            drop(inbox);
            abandon(command);
            return;
        }
        let first = inbox.commands.is_empty();
        inbox.commands.push_back(command);
        drop(inbox);
        // Commands behind an unhandled one are found with it.
        if first {
            self.wake();
        }
    }

    /// Makes the poller report.
    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then the descriptor is readable anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes all waiting commands.
    pub(super) fn take(&self) -> VecDeque<Command> {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        std::mem::take(&mut self.lock().commands)
    }

    /// Answers this and every later command with "reset": the device has gone.
    pub(super) fn close(&self) {
        let commands = {
            let mut inbox = self.lock();
            inbox.closed = true;
            std::mem::take(&mut inbox.commands)
        };
        commands.into_iter().for_each(abandon);
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn abandon(command: Command) {
    if let Command::Connect { stream, completion, .. } = command {
        completion(ConnectOutcome::Reset, &stream);
    }
}
