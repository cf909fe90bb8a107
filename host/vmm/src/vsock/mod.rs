//! The virtio socket device: byte streams between the host and one guest.
//!
//! It knows nothing of its transport. A transport owns the guest's memory and the three virtqueues,
//! lends them to the device call by call, and tells it of kicks; the vhost-user backend does so for
//! QEMU and the virtio-mmio transport for KVM. On the host's side a connection is a Unix stream
//! socket that any thread hands in through a [`VsockHandle`].
//!
//! ```text
//!   any thread ── VsockHandle ──▶ inbox ─┐
//!                                        ├─▶ poller (one fd) ─▶ handle_host_events ─▶ rx queue ─▶ guest
//!   host streams ────────────────────────┘
//!   guest ─▶ tx queue ─▶ handle_tx_kick ─▶ host streams
//! ```
//!
//! Rules the code keeps:
//!
//! - The tx queue is always consumed. What a slow host reader does not take waits in a buffer that
//!   the advertised credit bounds, so one stream never holds up another.
//! - The host's bytes are read straight into the guest's buffers, and only when there is both
//!   credit and a buffer. Otherwise they stay in the socket.
//! - Every header is copied from the guest once. Everything the guest can make grow has a limit.
//! - A packet that breaks the protocol costs the guest that connection; a broken ring costs it the
//!   device until the driver resets it. Nothing a guest does ends the process.
//!
//! Deliberately absent: datagrams and SEQPACKET, sockets in the file system, and threads. The
//! device runs on whichever one thread calls it.

mod chain;
mod connection;
mod credit;
mod device;
mod handle;
mod muxer;
mod packet;
mod ring;
mod stats;
#[cfg(test)]
pub(crate) mod tests;

pub use device::{VsockDevice, VsockError, VsockNotify, VsockQueues, VsockState};
pub use handle::{Acceptor, Completion, ConnectError, ConnectOutcome, VsockHandle};
pub use packet::{HEADER_LEN, HOST_CID, Header, Op};
pub use ring::{VsockQueue, VsockRingError};
pub use stats::VsockStats;

use std::time::Duration;

/// How many queues the device has: rx, tx, event.
pub const QUEUE_COUNT: usize = 3;

/// Largest size of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// What a device is made with. [`VsockConfig::new`] gives the usual values.
#[derive(Clone, Debug)]
pub struct VsockConfig {
    /// Context id of the guest: 3 and above, below 2^32 - 1.
    pub guest_cid: u64,
    /// Receive buffer advertised to the guest per connection, in bytes: what the device may have to
    /// hold for a host that does not read.
    pub buf_alloc: u32,
    /// How long the guest may take to answer a connect.
    pub connect_timeout: Duration,
    /// How long the guest may take to agree to the end of a connection.
    pub shutdown_timeout: Duration,
    /// How long bytes of a host that has closed its stream wait for a guest that takes none.
    pub linger: Duration,
    /// Most connections at once.
    pub max_connections: usize,
    /// Most of them that the guest may have opened.
    pub max_guest_connections: usize,
}

impl VsockConfig {
    /// Returns the usual configuration for a guest with context id `guest_cid`.
    pub fn new(guest_cid: u64) -> VsockConfig {
        VsockConfig {
            guest_cid,
            buf_alloc: 256 * 1024,
            connect_timeout: Duration::from_secs(2),
            shutdown_timeout: Duration::from_secs(2),
            linger: Duration::from_millis(100),
            max_connections: 1023,
            max_guest_connections: 127,
        }
    }
}
