//! The VM process: one per machine, started by [`Engine`](crate::Engine) as `pyro vmm --run-dir DIR`.
//!
//! ```text
//!   maker ──(stdin: channel)──┐        ┌── vsock device ── engine (QEMU child, or KVM)
//!                             ▼        │        ▲
//!   clients ─(control.sock)─▶ loop ────┘        └── guest agent
//!                             ▲
//!   expiry, boot limit, console, end of the engine
//! ```
//!
//! One thread runs the loop and owns all state; only the vsock device and the first conversation with the agent have
//! threads of their own. The process ends when its machine does: on request, when it expires, when the last process
//! that holds an owned machine is gone, when the guest or the engine's process ends. On every one of those ways it
//! removes its run directory. When it is killed itself, the engine's process dies with it, and the next
//! [`Engine`](crate::Engine) that looks at the run directory removes it.
//!
//! What the process is given: standard input is the channel to its maker, standard output is the open file that holds
//! the directory's lock, standard error is the log. Deliberately absent: an async runtime, and anything that knows what
//! a command or a tool is.

mod backend;
pub(crate) mod cgroup;
mod config;
mod console;
mod kvm;
mod ports;
mod qemu;
mod ready;
mod server;
mod tsc;

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::ExitCode,
    sync::Mutex,
    time::Instant,
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock},
    io::{FdFlags, fcntl_dupfd_cloexec},
};

pub(crate) use config::MachineConfig;

use crate::{
    control::{Event, line},
    environments,
    error::{EngineError, ErrorCode},
};

/// Bytes written to the log. The process logs a handful of lines; a fault that repeats must not fill the disk.
const LOG_LIMIT: usize = 256 * 1024;

/// Runs the VM process; returns when its machine has ended and its run directory is removed.
///
/// Call it on the program's first thread before any other thread is started, with nothing else on the command line. The
/// exit code is 0 when a machine ran, whatever its end, and 1 when none could be started.
pub fn main(run_dir: &Path) -> ExitCode {
    init_log();
    // The process moves into the directory, so a relative name would lose its meaning.
    let run_dir = &std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let inherited = match Inherited::take() {
        Ok(inherited) => inherited,
        Err(error) => {
            tracing::error!(%error, "not started by an engine");
            return ExitCode::FAILURE;
        }
    };
    let mut channel = inherited.channel;
    match run(run_dir, &mut channel, &inherited.lock) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the machine was not started");
            remove(run_dir);
            let _ = channel.write_all(&line(&Event::Ended { error }));
            ExitCode::FAILURE
        }
    }
}

fn run(run_dir: &Path, channel: &mut UnixStream, lock: &File) -> Result<(), EngineError> {
    let started = Instant::now();
    // A session of its own: no terminal's signal reaches it. It fails for a process that leads one already.
    let _ = rustix::process::setsid();
    check_lock(run_dir, lock)?;
    std::env::set_current_dir(run_dir)
        .map_err(|e| EngineError::io(format_args!("enter `{}`", run_dir.display()), &e))?;
    let config = MachineConfig::read(run_dir)?;
    let _leases = environments::hold(&config.leases)
        .map_err(|e| EngineError::io(format_args!("hold environment `{}`", config.spec.environment), &e))?;
    let spawn_ms = monotonic_ns().saturating_sub(config.spawned_at_ns) as f64 / 1e6;
    // The process runs in the directory, so a path of any length works.
    let listener =
        UnixListener::bind("control.sock").map_err(|e| EngineError::io("listen on the control socket", &e))?;
    let channel = channel.try_clone().map_err(|e| EngineError::io("use the channel to the maker", &e))?;
    let cgroup = cgroup::OwnCgroup::enter(&config.id)
        .inspect_err(|error| tracing::info!(%error, "the machine stays in its caller's control group"))
        .ok();
    server::Server::start(config, run_dir, channel, listener, started, spawn_ms, cgroup)?.run();
    Ok(())
}

/// What the process was started with.
struct Inherited {
    channel: UnixStream,
    lock: File,
}

impl Inherited {
    /// Moves the inherited descriptors where no child gets them, and closes all others to children.
    fn take() -> std::io::Result<Self> {
        let channel = fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
        let lock = fcntl_dupfd_cloexec(std::io::stdout(), 3)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        close_to_children()?;
        Ok(Self { channel: socket(channel)?, lock: File::from(lock) })
    }
}

/// Checks that standard input was a socket.
fn socket(fd: OwnedFd) -> std::io::Result<UnixStream> {
    rustix::net::sockopt::socket_type(fd.as_fd())?;
    Ok(UnixStream::from(fd))
}

/// Marks every descriptor but the standard three as closed on exec; the parent's parent may have left some open.
fn close_to_children() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if fd < 3 {
            continue;
        }
        // SAFETY: the number was just listed as an open descriptor of this process, which has one thread; the borrow
        // ends before the next statement. The descriptor of the listing itself is closed on exec already.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Checks that the file on standard output holds the lock of the run directory: without it, others would take the
/// directory of a live machine for a leftover.
fn check_lock(run_dir: &Path, lock: &File) -> Result<(), EngineError> {
    use std::os::unix::fs::MetadataExt;
    let failed = |e: &std::io::Error| EngineError::io(format_args!("check the lock of `{}`", run_dir.display()), e);
    let here = lock.metadata().map_err(|e| failed(&e))?;
    let there = std::fs::metadata(run_dir.join("lock")).map_err(|e| failed(&e))?;
    if (here.dev(), here.ino()) != (there.dev(), there.ino())
        || flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()
    {
        return Err(EngineError::new(
            ErrorCode::Internal,
            format!("the lock of `{}` was not handed over", run_dir.display()),
        ));
    }
    Ok(())
}

/// Removes the run directory.
fn remove(run_dir: &Path) {
    if let Err(e) = std::fs::remove_dir_all(run_dir)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %run_dir.display(), error = %e, "the run directory cannot be removed");
    }
}

pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000) + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Logs to standard error, which is `vmm.log`, up to a limit.
fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PYRO_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Mutex::new(Bounded { out: std::io::stderr(), room: LOG_LIMIT }))
        .try_init();
}

/// Passes bytes on until its room is used up, then swallows them.
struct Bounded<W> {
    out: W,
    room: usize,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let fits = bytes.get(..bytes.len().min(self.room)).unwrap_or_default();
        self.room -= fits.len();
        self.out.write_all(fits)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded() {
        let mut out = Vec::new();
        let mut log = Bounded { out: &mut out, room: 10 };
        for _ in 0..5 {
            assert_eq!(log.write(b"1234567").unwrap(), 7);
        }
        assert_eq!(out, b"1234567123");
    }

    #[test]
    fn a_foreign_lock_is_refused() {
        let run = tempfile::tempdir().unwrap();
        let ours = crate::run_dir::RunDir::create(run.path(), None).unwrap();
        let other = crate::run_dir::RunDir::create(run.path(), None).unwrap();
        assert!(check_lock(&ours.path, &ours.lock).is_ok());
        assert!(check_lock(&ours.path, &other.lock).is_err());
        // A second open file of the same lock does not hold it.
        let again = File::open(ours.path.join("lock")).unwrap();
        assert!(check_lock(&ours.path, &again).is_err());
    }
}
