//! Threads for operations that block: files, and probes of services.
//!
//! A worker takes the connection over, serves it in blocking mode, and ends with it. Workers are few; an operation that
//! finds none free waits in its slot. The loop hears of a worker's end through an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pyro_agent_protocol::{FrameDecoder, GuestFrame, Op, codes};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{Shutdown, shutdown};

use crate::environment::error;
use crate::peer::{Fail, Peer};
use crate::{files, probe};

/// The most workers at once. Each may hold a few buffers of 64 KiB.
const MAX_WORKERS: usize = 16;
/// Of a worker. Only what is used becomes memory; directories are walked by recursion.
const STACK_BYTES: usize = 2 * 1024 * 1024;
/// How long workers may take to notice that the guest ends.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// Starts workers and counts them.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    count: AtomicUsize,
    ended: OwnedFd,
}

/// A worker that was started.
#[derive(Debug)]
pub struct Worker {
    fd: Arc<OwnedFd>,
    done: Arc<AtomicBool>,
}

impl Workers {
    /// Returns a starter.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(Running { count: AtomicUsize::new(0), ended }) })
    }

    /// Returns the descriptor that becomes readable when a worker has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.shared.ended.as_fd()
    }

    /// Makes [`ended`](Self::ended) tell of the next one.
    pub fn clear_ended(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.shared.ended, &mut count);
    }

    /// True when another worker may be started.
    pub fn has_room(&self) -> bool {
        self.shared.count.load(Ordering::Acquire) < MAX_WORKERS
    }

    /// Starts a worker that serves `op` on `fd`, of which `decoder` holds what was read already.
    ///
    /// # Errors
    /// When there is no memory or process left; the connection is closed then.
    pub fn start(&self, op: Op, fd: OwnedFd, decoder: FrameDecoder) -> io::Result<Worker> {
        fcntl_setfl(&fd, OFlags::empty())?;
        let fd = Arc::new(fd);
        let done = Arc::new(AtomicBool::new(false));
        let peer = Peer::new(Arc::clone(&fd), decoder);
        let end = End { running: Arc::clone(&self.shared), done: Arc::clone(&done) };
        self.shared.count.fetch_add(1, Ordering::AcqRel);
        std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            let end = end;
            serve(op, peer);
            drop(end);
        })?;
        Ok(Worker { fd, done })
    }

    /// Waits a moment for workers whose connections were closed.
    pub fn wait_for_all(&self) {
        let until = Instant::now() + STOP_WAIT;
        while self.shared.count.load(Ordering::Acquire) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Worker {
    /// True when it has ended.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Closes its connection, so that it ends at the next look.
    pub fn stop(&self) {
        let _ = shutdown(&self.fd, Shutdown::Both);
    }
}

/// Tells of a worker's end, however it ends.
struct End {
    running: Arc<Running>,
    done: Arc<AtomicBool>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        self.running.count.fetch_sub(1, Ordering::AcqRel);
        let _ = rustix::io::write(&self.running.ended, &1u64.to_ne_bytes());
    }
}

fn serve(op: Op, mut peer: Peer) {
    let result = match op {
        Op::FileStat(request) => files::stat(&request, &mut peer),
        Op::FileList(request) => files::list(&request, &mut peer),
        Op::FileRead(request) => files::read(&request, &mut peer),
        Op::FileApply(request) => files::apply(&request, &mut peer),
        Op::FileArchive(request) => files::archive(&request, &mut peer),
        Op::FileExtract(request) => files::extract(&request, &mut peer),
        Op::ServiceProbe(request) => probe::probe(&request.what),
        _ => Err(Fail::Reply(error(codes::INTERNAL, "no worker does this"))),
    };
    match result {
        Ok(done) => peer.finish(&GuestFrame::Done(done)),
        Err(Fail::Reply(reply)) => peer.finish(&GuestFrame::Error(reply)),
        Err(Fail::Gone) => {}
    }
}
