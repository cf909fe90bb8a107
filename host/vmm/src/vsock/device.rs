//! The device: virtqueues on one side, the muxer on the other.

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::Queue;
use vm_memory::GuestMemory;
use vm_memory::bitmap::{BS, BitmapSlice};

use super::VsockConfig;
use super::chain::{self, Buffers, Direction, MAX_GATHER};
use super::connection::{Connection, Phase};
use super::handle::{Shared, VsockHandle};
use super::muxer::{FIRST_HOST_PORT, LAST_HOST_PORT, Muxer};
use super::packet::{HEADER_LEN, Header, Op};
use super::ring::{Ring, VsockQueue, VsockRingError};
use super::stats::VsockStats;

/// Chains taken from the tx queue before the rx queue gets a turn.
const TX_BATCH: usize = 128;

/// Batches per call. A guest that keeps its tx queue full must not keep the thread from the host's events.
const TX_ROUNDS: usize = 8;

/// Turns per call, for the same reason: a guest may offer credit and buffers without end.
const RX_TURNS: usize = 256;

/// Bytes one connection may read per turn.
const TURN_BYTES: usize = 64 * 1024;

/// The one event there is: the transport was reset, all connections are gone (virtio 1.2, section 5.10.6.7).
const EVENT_TRANSPORT_RESET: [u8; 4] = [0; 4];

/// Version of [`VsockState`].
const STATE_VERSION: u32 = 1;

/// A virtio socket device of one guest.
pub struct VsockDevice {
    muxer: Muxer,
    /// The tx queue was left with chains in it.
    tx_backlog: bool,
    event: EventPhase,
}

/// Where a transport reset stands. Packets must not overtake it: a guest that handles the event
/// after a new connection would drop that connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventPhase {
    /// No event under way.
    Idle,
    /// The event waits for a buffer of the event queue.
    Pending,
    /// The guest has it, but has not given the buffer back: the available index then was this.
    Unacknowledged(u16),
}

/// The device's virtqueues, lent by the transport for one call.
pub struct VsockQueues<'q> {
    /// Queue 0, to the guest.
    pub rx: &'q mut Queue,
    /// Queue 1, from the guest.
    pub tx: &'q mut Queue,
    /// Queue 2, events. `None` when someone else serves it, as QEMU does for vhost-user devices.
    pub event: Option<&'q mut Queue>,
}

/// Which queues the guest must be notified of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct VsockNotify {
    /// Queue 0.
    pub rx: bool,
    /// Queue 1.
    pub tx: bool,
    /// Queue 2.
    pub event: bool,
}

impl VsockNotify {
    /// Returns whether any queue is named: all that matters to a transport with one interrupt.
    pub fn any(self) -> bool {
        self.rx || self.tx || self.event
    }
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The context id is reserved or too large.
    #[error("guest context id {0} is not between 3 and 4294967294")]
    InvalidCid(u64),
    /// The host refused a descriptor.
    #[error("cannot set up the vsock poller: {0}")]
    Poller(#[source] io::Error),
    /// A saved state of another version.
    #[error("saved vsock state has version {found}, expected {expected}")]
    StateVersion {
        /// Version in the saved state.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// A saved state whose values cannot be.
    #[error("saved vsock state is damaged: {0}")]
    StateDamaged(&'static str),
}

/// What survives in a snapshot. Connections do not: the guest is told so when it goes on.
/// Queues and features are the transport's to save.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// Version of this structure.
    pub version: u32,
    /// Context id of the guest.
    pub guest_cid: u64,
    /// The host port of the next connection, so that no port is used that the guest remembers.
    pub next_host_port: u32,
}

impl VsockDevice {
    /// Makes a device, and the handle to it.
    pub fn new(config: VsockConfig) -> Result<(VsockDevice, VsockHandle), VsockError> {
        if !(3..u64::from(u32::MAX)).contains(&config.guest_cid) {
            return Err(VsockError::InvalidCid(config.guest_cid));
        }
        let shared = Arc::new(Shared::new().map_err(VsockError::Poller)?);
        let muxer = Muxer::new(config, shared.clone()).map_err(VsockError::Poller)?;
        let device = VsockDevice { muxer, tx_backlog: false, event: EventPhase::Idle };
        Ok((device, VsockHandle::new(shared)))
    }

    /// Makes the device of a restored guest, which is told that its connections are gone.
    pub fn restore(mut config: VsockConfig, state: &VsockState) -> Result<(VsockDevice, VsockHandle), VsockError> {
        if state.version != STATE_VERSION {
            return Err(VsockError::StateVersion { found: state.version, expected: STATE_VERSION });
        }
        if !(FIRST_HOST_PORT..=LAST_HOST_PORT).contains(&state.next_host_port) {
            return Err(VsockError::StateDamaged("next host port out of range"));
        }
        config.guest_cid = state.guest_cid;
        let (mut device, handle) = VsockDevice::new(config)?;
        device.muxer.next_host_port = state.next_host_port;
        device.event = EventPhase::Pending;
        Ok((device, handle))
    }

    /// Returns what a snapshot has to keep.
    pub fn save(&self) -> VsockState {
        VsockState {
            version: STATE_VERSION,
            guest_cid: self.muxer.config.guest_cid,
            next_host_port: self.muxer.next_host_port,
        }
    }

    /// Returns the feature bits the device offers.
    ///
    /// Indirect descriptors are not among them: they spare ring slots, of which there are plenty, for
    /// an allocation in the guest per packet.
    pub fn features() -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// Reads the configuration space, which holds the guest's context id. Bytes past its end are zero.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.muxer.config.guest_cid.to_le_bytes();
        let rest = usize::try_from(offset).ok().and_then(|at| space.get(at..)).unwrap_or_default();
        let count = rest.len().min(data.len());
        let (held, beyond) = data.split_at_mut(count);
        held.copy_from_slice(rest.get(..count).unwrap_or_default());
        beyond.fill(0);
    }

    /// Returns the descriptor that is readable when [`Self::handle_host_events`] has something to do.
    pub fn as_raw_fd(&self) -> RawFd {
        self.muxer.as_raw_fd()
    }

    /// Makes the poller report after `wait` at the latest, for a transport that has to look again.
    pub fn wake_after(&mut self, wait: Duration) {
        self.muxer.wake_after(wait);
    }

    /// Returns the device's counters.
    pub fn stats(&self) -> VsockStats {
        self.muxer.counters().snapshot()
    }

    /// Returns the connections there are, those included whose guest side has ended.
    pub fn open_connections(&self) -> usize {
        self.muxer.open()
    }

    /// Returns the bytes held for hosts that do not read.
    #[cfg(test)]
    pub(super) fn buffered_bytes(&self) -> usize {
        self.muxer.buffered_bytes()
    }

    /// Forgets the guest's state: the driver has reset the device. Listeners and the handles stay.
    pub fn reset(&mut self) {
        self.muxer.reset();
        self.tx_backlog = false;
        self.event = EventPhase::Idle;
    }

    /// Drops all connections and tells the guest so, as a snapshot of a guest that goes on needs.
    pub fn reset_transport(&mut self) {
        self.muxer.reset();
        self.event = EventPhase::Pending;
    }

    /// Takes the host's requests while the guest's queues are not set up; connects wait for them or
    /// time out. A transport calls this instead of [`Self::handle_host_events`], and
    /// [`Self::handle_rx_kick`] once the queues are there.
    pub fn take_host_events(&mut self) {
        if self.muxer.take_host_events() {
            self.muxer.counters().host_wakeups.bump();
        }
    }

    /// Serves the host's side: new connects, bytes to relay, timers.
    pub fn handle_host_events<M: GuestMemory>(
        &mut self,
        mem: &M,
        queues: VsockQueues<'_>,
    ) -> Result<VsockNotify, VsockRingError> {
        self.take_host_events();
        self.serve(mem, queues, false)
    }

    /// Serves packets of the guest: call it when the driver kicks queue 1.
    pub fn handle_tx_kick<M: GuestMemory>(
        &mut self,
        mem: &M,
        queues: VsockQueues<'_>,
    ) -> Result<VsockNotify, VsockRingError> {
        self.serve(mem, queues, true)
    }

    /// Goes on after receive buffers ran out: call it when the driver kicks queue 0.
    pub fn handle_rx_kick<M: GuestMemory>(
        &mut self,
        mem: &M,
        queues: VsockQueues<'_>,
    ) -> Result<VsockNotify, VsockRingError> {
        self.serve(mem, queues, false)
    }

    /// Takes the guest's acknowledgement of an event: call it when the driver kicks queue 2.
    pub fn handle_event_kick<M: GuestMemory>(
        &mut self,
        mem: &M,
        queues: VsockQueues<'_>,
    ) -> Result<VsockNotify, VsockRingError> {
        self.serve(mem, queues, false)
    }

    fn serve<M: GuestMemory>(
        &mut self,
        mem: &M,
        queues: VsockQueues<'_>,
        tx: bool,
    ) -> Result<VsockNotify, VsockRingError> {
        let mut notify = VsockNotify::default();
        if let Some(event) = queues.event
            && self.event != EventPhase::Idle
        {
            notify.event = self.serve_event(mem, event)?;
        }
        let mut rx = Ring::open(mem, queues.rx, VsockQueue::Rx)?;
        if (tx || self.tx_backlog)
            && let Some(mut ring) = Ring::open(mem, queues.tx, VsockQueue::Tx)?
        {
            self.tx_backlog = true;
            for _ in 0..TX_ROUNDS {
                self.tx_backlog = self.serve_tx(&mut ring)?;
                if !self.tx_backlog {
                    break;
                }
                if let Some(rx) = rx.as_mut() {
                    self.serve_rx(rx)?;
                }
            }
            notify.tx = ring.notify()?;
            if self.tx_backlog {
                // Comes back by the poller, after what waits there.
                self.muxer.shared.wake();
            }
        }
        if let Some(mut rx) = rx {
            self.serve_rx(&mut rx)?;
            notify.rx = rx.notify()?;
        }
        if notify.any() {
            self.muxer.counters().notifications.bump();
        }
        Ok(notify)
    }

    /// Takes a batch of packets from the guest. Returns whether there may be more.
    fn serve_tx<M: GuestMemory>(&mut self, ring: &mut Ring<'_, '_, M>) -> Result<bool, VsockRingError> {
        ring.disarm()?;
        for _ in 0..TX_BATCH {
            let Some(chain) = ring.pop()? else {
                if ring.arm()? {
                    continue;
                }
                return Ok(false);
            };
            let head = chain.head_index();
            let mut wire = [0u8; HEADER_LEN];
            match chain::collect(ring.mem, chain, Direction::FromGuest) {
                Ok(buffers) if buffers.read_start(&mut wire) => {
                    self.muxer.guest_packet(&Header::decode(&wire), &buffers)
                }
                _ => self.muxer.counters().dropped_packets.bump(),
            }
            ring.finish(head, 0)?;
        }
        Ok(true)
    }

    /// Gives the guest all it has credit and buffers for.
    fn serve_rx<M: GuestMemory>(&mut self, ring: &mut Ring<'_, '_, M>) -> Result<(), VsockRingError> {
        if self.event != EventPhase::Idle || (self.muxer.next_reset().is_none() && self.muxer.next_ready().is_none()) {
            return Ok(());
        }
        ring.disarm()?;
        for _ in 0..RX_TURNS {
            let starved = if let Some(ports) = self.muxer.next_reset() {
                let header = self.muxer.header(ports, Op::Reset);
                let sent = self.send_header(ring, header)?;
                if sent {
                    self.muxer.reset_sent();
                }
                !sent
            } else if let Some(slot) = self.muxer.next_ready() {
                let finished = self.turn(slot, ring)?;
                if finished {
                    self.muxer.turn_over();
                }
                !finished
            } else {
                return Ok(());
            };
            if starved {
                self.muxer.counters().rx_starved.bump();
                if !ring.arm()? {
                    return Ok(());
                }
            }
        }
        // Comes back by the poller, after what waits there.
        self.muxer.shared.wake();
        Ok(())
    }

    /// Gives one connection its turn. Returns false when receive buffers ran out before its end.
    fn turn<M: GuestMemory>(&mut self, slot: u32, ring: &mut Ring<'_, '_, M>) -> Result<bool, VsockRingError> {
        let Some(connection) = self.muxer.connection(slot) else {
            return Ok(true);
        };
        if connection.greet {
            let op = if matches!(connection.phase, Phase::Connecting(_)) { Op::Request } else { Op::Response };
            if !self.send_control(slot, ring, op, 0)? {
                return Ok(false);
            }
            if let Some(connection) = self.muxer.connection(slot) {
                connection.greet = false;
            }
        }
        let mut budget = TURN_BYTES;
        while budget > 0 {
            match self.pump(slot, ring)? {
                Pump::Sent(count) => budget = budget.saturating_sub(count),
                Pump::Nothing => break,
                Pump::Starved => return Ok(false),
            }
        }
        let Some(connection) = self.muxer.connection(slot) else {
            return Ok(true);
        };
        if let Some(flags) = connection.shutdown_to_tell() {
            if !self.send_control(slot, ring, Op::Shutdown, flags)? {
                return Ok(false);
            }
            if self.muxer.connection(slot).is_some_and(|c| c.told_shutdown(flags)) {
                self.muxer.await_guest_end(slot);
            }
        }
        let Some(connection) = self.muxer.connection(slot) else {
            return Ok(true);
        };
        if connection.credit_due() {
            return self.send_control(slot, ring, Op::CreditUpdate, 0);
        }
        Ok(true)
    }

    /// Moves bytes of one host stream into one or more receive buffers with a single read.
    fn pump<M: GuestMemory>(&mut self, slot: u32, ring: &mut Ring<'_, '_, M>) -> Result<Pump, VsockRingError> {
        let Some(connection) = self.muxer.connection(slot) else {
            return Ok(Pump::Nothing);
        };
        if !connection.may_read() {
            return Ok(Pump::Nothing);
        }
        let credit = connection.send.available() as usize;
        let wanted = connection.gather;
        if credit == 0 {
            return Ok(Pump::Nothing);
        }
        let mut chains = Vec::with_capacity(wanted);
        let mut pieces = Vec::with_capacity(wanted * 2);
        let mut room = 0usize;
        while chains.len() < wanted && room < credit {
            let Some((head, buffers)) = self.take_buffer(ring, HEADER_LEN + 1, chains.is_empty())? else {
                break;
            };
            let capacity = (buffers.len() - HEADER_LEN).min(credit - room);
            buffers.range(HEADER_LEN, capacity, &mut pieces);
            room += capacity;
            chains.push((head, buffers, capacity));
        }
        if chains.is_empty() {
            return Ok(Pump::Starved);
        }
        let Some(connection) = self.muxer.connection(slot) else {
            return Ok(Pump::Nothing);
        };
        let received = match chain::receive(connection.stream.as_fd(), &pieces) {
            Ok(received) if received.len > 0 => received,
            other => {
                ring.put_back(chains.len());
                match other {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.readable = false,
                    Err(_) => {
                        connection.host_hung_up();
                        connection.host_ended();
                    }
                    Ok(_) => connection.host_ended(),
                }
                return Ok(Pump::Nothing);
            }
        };
        // The end of the stream is found by reading, so a stream that ends is never taken for empty.
        if received.drained && !connection.ending {
            connection.readable = false;
        }
        connection.progressed();
        let mut left = received.len;
        let mut used = 0usize;
        for (head, buffers, capacity) in &chains {
            if left == 0 {
                break;
            }
            let count = left.min(*capacity);
            self.finish_packet(slot, ring, *head, buffers, Op::Data, 0, count)?;
            self.muxer.counters().rx_bytes.add(count as u64);
            left -= count;
            used += 1;
        }
        ring.put_back(chains.len() - used);
        if let Some(connection) = self.muxer.connection(slot) {
            connection.gather = if received.len == room { (used * 4).min(MAX_GATHER) } else { used.max(1) };
        }
        Ok(Pump::Sent(received.len))
    }

    /// Sends a packet without payload. Returns false when there is no receive buffer.
    fn send_control<M: GuestMemory>(
        &mut self,
        slot: u32,
        ring: &mut Ring<'_, '_, M>,
        op: Op,
        flags: u32,
    ) -> Result<bool, VsockRingError> {
        let Some((head, buffers)) = self.take_buffer(ring, HEADER_LEN, true)? else {
            return Ok(false);
        };
        self.finish_packet(slot, ring, head, &buffers, op, flags, 0)?;
        Ok(true)
    }

    /// Puts the header of a connection's packet in front of `len` payload bytes and hands it over.
    #[expect(clippy::too_many_arguments, reason = "one packet has this many parts")]
    fn finish_packet<M: GuestMemory, B: BitmapSlice>(
        &mut self,
        slot: u32,
        ring: &mut Ring<'_, '_, M>,
        head: u16,
        buffers: &Buffers<'_, B>,
        op: Op,
        flags: u32,
        len: usize,
    ) -> Result<(), VsockRingError> {
        let Some(ports) = self.muxer.connection(slot).map(|c: &mut Connection| c.ports) else {
            return ring.finish(head, 0);
        };
        let mut header = self.muxer.header(ports, op);
        // Bounded by the credit, which is 32 bits wide.
        header.len = u32::try_from(len).unwrap_or(u32::MAX);
        header.flags = flags;
        if let Some(connection) = self.muxer.connection(slot) {
            connection.send.sent(header.len);
            connection.owes_credit = false;
            (header.buf_alloc, header.fwd_cnt) = connection.receive.tell();
        }
        buffers.write_start(&header.encode());
        self.muxer.counters().rx_packets.bump();
        ring.finish(head, HEADER_LEN + len)
    }

    /// Sends a packet that belongs to no connection. Returns false when there is no receive buffer.
    fn send_header<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, '_, M>,
        header: Header,
    ) -> Result<bool, VsockRingError> {
        let Some((head, buffers)) = self.take_buffer(ring, HEADER_LEN, true)? else {
            return Ok(false);
        };
        buffers.write_start(&header.encode());
        self.muxer.counters().rx_packets.bump();
        ring.finish(head, HEADER_LEN)?;
        Ok(true)
    }

    /// Takes a receive buffer of at least `least` bytes. Useless ones go back to the guest, but only
    /// while `discard` allows it: behind buffers that may be put back, nothing can be finished.
    #[expect(clippy::type_complexity, reason = "a named alias would need the same parameters")]
    fn take_buffer<'m, M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'m, '_, M>,
        least: usize,
        discard: bool,
    ) -> Result<Option<(u16, Buffers<'m, BS<'m, M::Bitmap>>)>, VsockRingError> {
        while let Some(chain) = ring.pop()? {
            let head = chain.head_index();
            match chain::collect(ring.mem, chain, Direction::ToGuest) {
                Ok(buffers) if buffers.len() >= least => return Ok(Some((head, buffers))),
                _ if !discard => {
                    ring.put_back(1);
                    return Ok(None);
                }
                _ => {
                    self.muxer.counters().bad_rx_buffers.bump();
                    ring.finish(head, 0)?;
                }
            }
        }
        Ok(None)
    }

    /// Delivers a transport reset, or looks for its acknowledgement.
    fn serve_event<M: GuestMemory>(&mut self, mem: &M, queue: &mut Queue) -> Result<bool, VsockRingError> {
        let Some(mut ring) = Ring::open(mem, queue, VsockQueue::Event)? else {
            return Ok(false);
        };
        match self.event {
            EventPhase::Idle => {}
            EventPhase::Unacknowledged(index) => {
                if ring.avail_index()? != index {
                    self.event = EventPhase::Idle;
                }
            }
            EventPhase::Pending => {
                // Before the guest can see the event, so that its answer kicks for certain.
                ring.arm_behind_all()?;
                let index = ring.avail_index()?;
                if let Some((head, buffers)) = self.take_buffer(&mut ring, EVENT_TRANSPORT_RESET.len(), true)? {
                    buffers.write_start(&EVENT_TRANSPORT_RESET);
                    ring.finish(head, EVENT_TRANSPORT_RESET.len())?;
                    self.event = EventPhase::Unacknowledged(index);
                }
            }
        }
        ring.notify()
    }
}

enum Pump {
    Sent(usize),
    Nothing,
    Starved,
}
