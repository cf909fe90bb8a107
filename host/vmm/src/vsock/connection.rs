//! One connection: a host stream on one side, credit and shutdown state of the guest on the other.
//!
//! ```text
//!                 RESPONSE                    both directions ended, or RST
//!   Connecting ───────────────▶ Established ───────────────────────────────▶ Draining ──▶ gone
//!       │ RST, deadline                │ RST from us                            │ host stream flushed
//!       └──────────▶ gone ◀────────────┘                                        ▼ or closed
//! ```
//!
//! A draining connection is unknown to the guest already; it lives until the host has read what the
//! guest had sent.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::chain;
use super::credit::{ReceiveCredit, SendCredit};
use super::handle::Completion;
use super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// A drained buffer above this size is given back to the allocator.
const KEEP_BUFFER: usize = 16 * 1024;

/// The two ports that name a connection of this guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

pub(super) enum Phase {
    /// We asked; the guest has not answered.
    Connecting(Completion),
    /// Bytes flow.
    Established,
    /// Only the host's side is left, or nothing.
    Draining,
}

pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) stream: UnixStream,
    pub(super) phase: Phase,
    pub(super) guest_opened: bool,
    pub(super) send: SendCredit,
    pub(super) receive: ReceiveCredit,
    /// A REQUEST or RESPONSE that the guest has not got yet.
    pub(super) greet: bool,
    /// The guest wants, or should get, a credit update.
    pub(super) owes_credit: bool,
    /// The host stream may have bytes for the guest.
    pub(super) readable: bool,
    /// Waits in the muxer's ready list.
    pub(super) queued: bool,
    /// How many chains to gather for the next read: grows while the host has more than fits.
    pub(super) gather: usize,
    /// When the muxer has to look at the connection although nothing happened.
    pub(super) deadline: Option<Instant>,
    /// The poller reports when the host stream takes bytes again.
    pub(super) polls_writable: bool,
    /// The host stream was reported to end behind the bytes it holds.
    pub(super) ending: bool,
    /// The guest has accepted, or we have: the host stream carries the guest's bytes.
    pub(super) established: bool,
    /// Bytes from the guest that the host stream did not take yet. At most our receive buffer.
    unsent: VecDeque<u8>,
    /// The host sends no more.
    host_finished: bool,
    /// The host reads no more.
    host_deaf: bool,
    guest_shutdown: u32,
    told_shutdown: u32,
}

/// What became of the host stream in a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostWrite {
    /// All was taken, now or into the buffer.
    Kept,
    /// The host reads no more; the bytes were dropped.
    Deaf,
}

impl Connection {
    pub(super) fn new(ports: Ports, stream: UnixStream, phase: Phase, buf_alloc: u32) -> Connection {
        Connection {
            ports,
            stream,
            phase,
            guest_opened: false,
            send: SendCredit::default(),
            receive: ReceiveCredit::new(buf_alloc),
            greet: true,
            owes_credit: false,
            readable: false,
            queued: false,
            gather: 1,
            deadline: None,
            polls_writable: false,
            ending: false,
            established: false,
            unsent: VecDeque::new(),
            host_finished: false,
            host_deaf: false,
            guest_shutdown: 0,
            told_shutdown: 0,
        }
    }

    /// Returns whether bytes of the host may be read for the guest now, credit aside.
    pub(super) fn may_read(&self) -> bool {
        self.readable
            && !self.host_finished
            && matches!(self.phase, Phase::Established)
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Returns whether the guest has to be sent something, if a receive buffer is there.
    pub(super) fn has_work(&self) -> bool {
        if matches!(self.phase, Phase::Draining) {
            return false;
        }
        self.greet
            || (matches!(self.phase, Phase::Established)
                && ((self.may_read() && self.send.available() > 0)
                    || self.shutdown_to_tell().is_some()
                    || self.credit_due()))
    }

    /// Returns whether the guest asked for, or should get, a credit update.
    pub(super) fn credit_due(&self) -> bool {
        self.owes_credit || self.receive.update_due(self.send.peer_alloc())
    }

    /// Returns the shutdown flags the guest should know and does not.
    pub(super) fn shutdown_to_tell(&self) -> Option<u32> {
        let mut flags = self.told_shutdown;
        if self.host_finished {
            flags |= SHUTDOWN_SEND;
            // When the guest will send nothing either, it may forget the connection.
            if self.guest_shutdown & SHUTDOWN_SEND != 0 {
                flags |= SHUTDOWN_RECEIVE;
            }
        }
        if self.host_deaf {
            flags |= SHUTDOWN_RECEIVE;
        }
        (flags != self.told_shutdown).then_some(flags)
    }

    /// Remembers that the guest was told `flags`. Returns whether that ends the connection for us.
    pub(super) fn told_shutdown(&mut self, flags: u32) -> bool {
        self.told_shutdown = flags;
        flags == SHUTDOWN_BOTH
    }

    /// The host stream has ended: nothing more to read.
    pub(super) fn host_ended(&mut self) {
        self.host_finished = true;
        self.readable = false;
    }

    /// The host has closed its end: it will read nothing any more.
    pub(super) fn host_hung_up(&mut self) {
        self.host_deaf = true;
        self.ending = true;
        self.drop_unsent();
        // Bytes the guest refuses are never read, so nothing else would find the stream's end.
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.host_ended();
        }
    }

    /// Notes that the guest took bytes: a host that has gone may wait on.
    pub(super) fn progressed(&mut self) {
        if self.told_shutdown != SHUTDOWN_BOTH {
            self.deadline = None;
        }
    }

    /// Returns whether the host is gone while bytes of it may still wait.
    pub(super) fn lingers(&self) -> bool {
        self.host_deaf && !self.host_finished
    }

    /// Sets the deadline, `after` from now, unless one is set.
    pub(super) fn set_deadline(&mut self, after: Duration) -> Option<Instant> {
        if self.deadline.is_none() {
            self.deadline = Instant::now().checked_add(after);
            return self.deadline;
        }
        None
    }

    /// Takes the flags of a SHUTDOWN packet. Returns whether both directions have ended.
    pub(super) fn guest_shut_down(&mut self, flags: u32) -> bool {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 && flags & SHUTDOWN_RECEIVE != 0 {
            // The host's writers must learn that nobody takes their bytes.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.end_writing_if_flushed();
        self.guest_shutdown == SHUTDOWN_BOTH
    }

    /// Returns whether the guest has said that it sends no more.
    pub(super) fn guest_finished(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_SEND != 0
    }

    /// Returns whether bytes of the guest wait for the host.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Returns how many bytes of the guest wait for the host.
    #[cfg(test)]
    pub(super) fn unsent_len(&self) -> usize {
        self.unsent.len()
    }

    /// Hands `len` received bytes of guest memory to the host, or keeps what it does not take.
    /// The caller has counted them in `receive`, which bounds what is kept.
    pub(super) fn deliver<B: BitmapSlice>(&mut self, from: &[VolatileSlice<'_, B>], len: u32) -> HostWrite {
        if self.host_deaf {
            self.receive.forward(len);
            return HostWrite::Deaf;
        }
        let mut taken = 0usize;
        if self.unsent.is_empty() {
            match chain::send(self.stream.as_fd(), from) {
                Ok(count) => taken = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.receive.forward(len);
                    self.host_hung_up();
                    return HostWrite::Deaf;
                }
            }
        }
        self.receive.forward(u32::try_from(taken).unwrap_or(len));
        self.keep(from, taken);
        HostWrite::Kept
    }

    /// Appends guest memory, but for its first `skip` bytes, to what the host has to get.
    fn keep<B: BitmapSlice>(&mut self, from: &[VolatileSlice<'_, B>], skip: usize) {
        let mut skip = skip;
        let mut copy = [0u8; 4096];
        for slice in from {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let mut at = skip;
            skip = 0;
            while let Ok(rest) = slice.offset(at)
                && !rest.is_empty()
            {
                let count = rest.copy_to(&mut copy);
                self.unsent.extend(copy.get(..count).unwrap_or_default());
                at += count;
            }
        }
    }

    /// Writes kept bytes to the host for as long as it takes them.
    pub(super) fn flush(&mut self) -> HostWrite {
        while !self.unsent.is_empty() {
            let (head, tail) = self.unsent.as_slices();
            let part = if head.is_empty() { tail } else { head };
            match rustix::net::send(
                &self.stream,
                part,
                rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
            ) {
                Ok(count) => {
                    self.unsent.drain(..count.min(self.unsent.len()));
                    self.receive.forward(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return HostWrite::Kept,
                Err(_) => {
                    self.host_hung_up();
                    return HostWrite::Deaf;
                }
            }
        }
        if self.unsent.capacity() > KEEP_BUFFER {
            self.unsent = VecDeque::new();
        }
        self.end_writing_if_flushed();
        HostWrite::Kept
    }

    fn end_writing_if_flushed(&mut self) {
        if self.unsent.is_empty() && self.guest_finished() {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    fn drop_unsent(&mut self) {
        let len = self.unsent.len();
        self.unsent = VecDeque::new();
        self.receive.forward(u32::try_from(len).unwrap_or(u32::MAX));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A duplicate of the descriptor may live elsewhere; its holder must see the end as well. A
        // connection that was never made is only closed: its stream may have other uses.
        if self.established {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}
