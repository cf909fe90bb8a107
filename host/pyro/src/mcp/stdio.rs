//! The standard streams as a server needs them: fast, and its own.
//!
//! Hosts start a server over pipes (Codex, Python) or over Unix socket pairs (Node, Bun). Both are read and written from
//! the reactor here, without a thread hop per message; anything else (a file, a terminal) goes through blocking calls.
//!
//! [`claim`] takes both streams away from the rest of the process: descriptor 0 becomes `/dev/null` and descriptor 1
//! becomes standard error, so that neither a stray print nor a child can touch the protocol.
//!
//! A pipe is opened anew, so that non-blocking mode stays ours and does not reach a parent that shares the descriptor. A
//! socket cannot be opened anew: there, every single call asks not to block.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::AsyncReadExt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a full terminal is left alone; nobody measures the latency of a terminal.
const BLOCKED_TERMINAL_PAUSE: Duration = Duration::from_millis(5);

/// Takes standard input and output for the protocol. Call once, inside a tokio runtime.
///
/// # Errors
/// When a stream is closed or cannot be duplicated.
pub(crate) fn claim() -> io::Result<(Input, Output)> {
    // Above 2, so that none of the standard numbers is ever ours.
    let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok((Input::new(input)?, Output::new(output)?))
}

/// What a descriptor is, as far as reading and writing it goes.
enum Kind {
    Socket(OwnedFd),
    /// Opened anew and non-blocking.
    Pipe(OwnedFd),
    Other(OwnedFd),
}

fn kind_of(fd: OwnedFd, access: OFlags) -> io::Result<Kind> {
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::Socket => Ok(Kind::Socket(fd)),
        FileType::Fifo => {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            // Without /proc the pipe still works, only slower.
            match rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
                Ok(own) => Ok(Kind::Pipe(own)),
                Err(_) => Ok(Kind::Other(fd)),
            }
        }
        _ => Ok(Kind::Other(fd)),
    }
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open and always names the same one; the `AsyncFd` owns it, gives no
    // `&mut` to it here, and is dropped with its `Input` or `Sink`.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|error| error.into_parts().1)
}

/// The client's messages.
pub(crate) enum Input {
    Socket(AsyncFd<OwnedFd>),
    Pipe(AsyncFd<OwnedFd>),
    Blocking(tokio::fs::File),
}

impl Input {
    /// Takes a descriptor to read from.
    ///
    /// # Errors
    /// When it cannot be looked at or made non-blocking.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Input> {
        Ok(match kind_of(fd, OFlags::RDONLY)? {
            Kind::Socket(fd) => Input::Socket(register(fd, Interest::READABLE)?),
            Kind::Pipe(fd) => Input::Pipe(register(fd, Interest::READABLE)?),
            Kind::Other(fd) => Input::Blocking(tokio::fs::File::from_std(File::from(fd))),
        })
    }

    /// Reads what is there, at least a byte; 0 at the end. Nothing is lost when the future is dropped.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::Socket(fd) => {
                read_ready(fd, buffer, |fd, buffer| rustix::net::recv(fd, buffer, RecvFlags::DONTWAIT).map(|(n, _)| n))
                    .await
            }
            Input::Pipe(fd) => read_ready(fd, buffer, |fd, buffer| rustix::io::read(fd, buffer)).await,
            Input::Blocking(file) => file.read(buffer).await,
        }
    }

    /// Tells whether the client has closed its end, though bytes of it may still be unread.
    pub(crate) fn is_hung_up(&self) -> bool {
        let (Input::Socket(fd) | Input::Pipe(fd)) = self else { return false };
        let mut poll = [PollFd::new(fd, PollFlags::RDHUP)];
        rustix::event::poll(&mut poll, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

async fn read_ready(
    fd: &AsyncFd<OwnedFd>,
    buffer: &mut [u8],
    read: fn(BorrowedFd<'_>, &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<usize> {
    loop {
        let mut guard = fd.readable().await?;
        match read(guard.get_inner().as_fd(), buffer) {
            Ok(n) => {
                // A short read emptied the stream. Saying so spares the next read a call that finds nothing.
                if n > 0 && n < buffer.len() {
                    guard.clear_ready();
                }
                return Ok(n);
            }
            Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
            Err(rustix::io::Errno::INTR) => {}
            // The client closed a socket that still had bytes of ours.
            Err(rustix::io::Errno::CONNRESET) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The server's messages. Messages leave in the order of the calls of [`Output::send`], whichever of the returned
/// futures runs first.
#[derive(Clone)]
pub(crate) struct Output {
    shared: Arc<Shared>,
}

struct Shared {
    sink: Sink,
    line: Mutex<Waiting>,
    /// Held by the one future that waits for the stream.
    flusher: tokio::sync::Mutex<()>,
    changed: tokio::sync::Notify,
}

/// What waits to be written.
#[derive(Default)]
struct Waiting {
    unsent: VecDeque<u8>,
    /// The stream takes nothing any more.
    broken: bool,
}

enum Sink {
    Socket(AsyncFd<OwnedFd>),
    Pipe(AsyncFd<OwnedFd>),
    Blocking(OwnedFd),
}

impl Output {
    /// Takes a descriptor to write to.
    ///
    /// # Errors
    /// When it cannot be looked at or made non-blocking.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Output> {
        let sink = match kind_of(fd, OFlags::WRONLY)? {
            Kind::Socket(fd) => Sink::Socket(register(fd, Interest::WRITABLE)?),
            Kind::Pipe(fd) => Sink::Pipe(register(fd, Interest::WRITABLE)?),
            Kind::Other(fd) => Sink::Blocking(fd),
        };
        Ok(Output {
            shared: Arc::new(Shared {
                sink,
                line: Mutex::default(),
                flusher: tokio::sync::Mutex::default(),
                changed: tokio::sync::Notify::new(),
            }),
        })
    }

    /// Puts a message in line and writes as much as the stream takes now. The future ends when the line is empty.
    pub(crate) fn send(&self, message: &[u8]) -> impl Future<Output = io::Result<()>> + Send + use<> {
        let now = {
            let mut line = self.shared.line();
            if line.broken {
                Err(io::ErrorKind::BrokenPipe.into())
            } else if line.unsent.is_empty() {
                self.shared.sink.write(message).map(|written| {
                    line.unsent.extend(message.get(written..).unwrap_or_default());
                    line.unsent.is_empty()
                })
            } else {
                line.unsent.extend(message);
                Ok(false)
            }
        };
        if now.is_err() {
            self.shared.give_up();
        }
        let shared = self.shared.clone();
        async move {
            if now? {
                return Ok(());
            }
            shared.flush().await
        }
    }

    /// Writes everything that is in line.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        self.shared.flush().await
    }

    /// Returns how many bytes are in line; `None` when nobody will ever read them.
    pub(crate) fn unsent(&self) -> Option<usize> {
        let line = self.shared.line();
        (!line.broken).then_some(line.unsent.len())
    }

    /// Waits until [`unsent`](Self::unsent) changes. What changes after the call is not missed.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.shared.changed.notified()
    }
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, Waiting> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reader has left, or the stream is of no use.
    fn give_up(&self) {
        *self.line() = Waiting { unsent: VecDeque::new(), broken: true };
        self.changed.notify_waiters();
    }

    async fn flush(&self) -> io::Result<()> {
        let _turn = self.flusher.lock().await;
        let done = self.write_all().await;
        if done.is_err() {
            self.give_up();
        }
        done
    }

    async fn write_all(&self) -> io::Result<()> {
        loop {
            {
                let mut line = self.line();
                if line.broken {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                while !line.unsent.is_empty() {
                    let written = self.sink.write(line.unsent.as_slices().0)?;
                    if written == 0 {
                        break;
                    }
                    line.unsent.drain(..written);
                }
                self.changed.notify_waiters();
                if line.unsent.is_empty() {
                    return Ok(());
                }
            }
            self.sink.writable().await?;
        }
    }
}

impl Sink {
    /// Writes what the stream takes now; 0 when that is nothing.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Sink::Socket(fd) => rustix::net::send(fd.get_ref(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                Sink::Pipe(fd) => rustix::io::write(fd.get_ref(), bytes),
                Sink::Blocking(fd) => rustix::io::write(fd, bytes),
            };
            match result {
                Ok(written) => return Ok(written),
                Err(rustix::io::Errno::AGAIN) => return Ok(0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until the stream may take more.
    async fn writable(&self) -> io::Result<()> {
        match self {
            Sink::Socket(fd) | Sink::Pipe(fd) => {
                let mut guard = fd.writable().await?;
                // Readiness may be old news: ask the kernel, and wait for the next edge when it disagrees.
                let mut poll = [PollFd::new(fd, PollFlags::OUT)];
                if rustix::event::poll(&mut poll, Some(&Timespec::default()))? == 0 {
                    guard.clear_ready();
                }
                Ok(())
            }
            Sink::Blocking(_) => {
                // Only a terminal that somebody else made non-blocking comes here.
                tokio::time::sleep(BLOCKED_TERMINAL_PAUSE).await;
                Ok(())
            }
        }
    }
}
