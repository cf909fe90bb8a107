//! All connections of one guest: who is who, whose turn it is, and what the poller watches.
//!
//! Everything runs on the thread that runs the device. The poller is edge triggered: a stream that
//! cannot be read now, for want of credit or of receive buffers, is remembered as readable and costs
//! nothing until the guest makes room. No descriptor is ever polled in a loop.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use vm_memory::bitmap::BitmapSlice;

use super::VsockConfig;
use super::chain::Buffers;
use super::connection::{Connection, HostWrite, Phase, Ports};
use super::handle::{Acceptor, Command, Completion, ConnectOutcome, Shared};
use super::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use super::stats::Counters;

/// First of the ports that the host's own connections use; the guest's listeners and ours are below.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;
/// Last of them.
pub(super) const LAST_HOST_PORT: u32 = (1 << 31) - 1;

/// Most resets kept for a guest that takes none. Each answers one packet of the guest.
const MAX_RESETS: usize = 1024;

/// Events taken from the poller at once, and how often in a row.
const EVENT_BATCH: usize = 64;
const EVENT_ROUNDS: usize = 16;

const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

pub(super) struct Muxer {
    pub(super) config: VsockConfig,
    pub(super) shared: Arc<Shared>,
    poller: OwnedFd,
    timer: OwnedFd,
    timer_at: Option<Instant>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, u32>,
    open: usize,
    guest_opened: usize,
    ready: VecDeque<u32>,
    resets: VecDeque<Ports>,
    listeners: HashMap<u32, Acceptor>,
    pub(super) next_host_port: u32,
}

#[derive(Default)]
struct Slot {
    /// Tells events of an earlier user of the slot from those of the present one.
    generation: u32,
    connection: Option<Connection>,
}

impl Muxer {
    pub(super) fn new(config: VsockConfig, shared: Arc<Shared>) -> io::Result<Muxer> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&poller, shared.wake_fd(), epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        epoll::add(&poller, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        Ok(Muxer {
            config,
            shared,
            poller,
            timer,
            timer_at: None,
            slots: Vec::new(),
            free: Vec::new(),
            by_ports: HashMap::new(),
            open: 0,
            guest_opened: 0,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            listeners: HashMap::new(),
            next_host_port: FIRST_HOST_PORT,
        })
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.poller.as_raw_fd()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Returns the connections there are, draining ones included.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Returns the bytes held for hosts that do not read.
    #[cfg(test)]
    pub(super) fn buffered_bytes(&self) -> usize {
        self.slots.iter().filter_map(|slot| slot.connection.as_ref()).map(Connection::unsent_len).sum()
    }

    // --- the host's side ---------------------------------------------------------------------

    /// Takes all that the poller, the handles and the clock have to say. Returns whether it was anything.
    pub(super) fn take_host_events(&mut self) -> bool {
        let mut any = false;
        for _ in 0..EVENT_ROUNDS {
            let mut events =
                [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; EVENT_BATCH];
            let count = match epoll::wait(&self.poller, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "vsock poller failed");
                    return any;
                }
            };
            for event in events.iter().take(count) {
                any = true;
                match event.data.u64() {
                    WAKE => self.run_commands(),
                    TIMER => self.run_timer(),
                    token => self.stream_event(token, event.flags),
                }
            }
            if count < EVENT_BATCH {
                break;
            }
        }
        any
    }

    fn run_commands(&mut self) {
        for command in self.shared.take() {
            match command {
                Command::Connect { port, stream, timeout, completion } => {
                    self.connect(port, stream, timeout, completion)
                }
                Command::Listen { port, acceptor } => {
                    self.listeners.insert(port, acceptor);
                }
                Command::Unlisten { port } => {
                    self.listeners.remove(&port);
                }
            }
        }
    }

    fn connect(&mut self, guest_port: u32, stream: UnixStream, timeout: Option<Duration>, completion: Completion) {
        if self.open >= self.config.max_connections {
            self.counters().connects_failed.bump();
            completion(ConnectOutcome::LimitReached, &stream);
            return;
        }
        let ports = self.allocate_port(guest_port);
        let mut connection = Connection::new(ports, stream, Phase::Connecting(completion), self.config.buf_alloc);
        let deadline = connection.set_deadline(timeout.unwrap_or(self.config.connect_timeout));
        let slot = self.insert(connection);
        self.by_ports.insert(ports, slot);
        self.arm_timer(deadline);
        self.enqueue(slot);
    }

    /// Takes the next host port. Going round the whole range keeps a port that a guest may still
    /// remember from being used again soon.
    fn allocate_port(&mut self, guest: u32) -> Ports {
        loop {
            let ports = Ports { host: self.next_host_port, guest };
            self.next_host_port =
                if self.next_host_port >= LAST_HOST_PORT { FIRST_HOST_PORT } else { self.next_host_port + 1 };
            // Ends: there are far more ports than connections.
            if !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn stream_event(&mut self, token: u64, flags: epoll::EventFlags) {
        let Some(slot) = self.slot_of(token) else {
            return;
        };
        let Some(connection) = self.connection(slot) else {
            return;
        };
        if flags.intersects(
            epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR,
        ) {
            connection.readable = true;
        }
        if flags.contains(epoll::EventFlags::RDHUP) {
            connection.ending = true;
        }
        if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            connection.host_hung_up();
        }
        if connection.has_unsent() {
            connection.flush();
        }
        self.after_host_write(slot);
        self.watch_linger(slot);
        self.enqueue(slot);
    }

    /// Keeps the poller's interest and the life of a draining connection in line with its buffer.
    fn after_host_write(&mut self, slot: u32) {
        let Some(connection) = self.connection(slot) else {
            return;
        };
        if matches!(connection.phase, Phase::Draining) && !connection.has_unsent() {
            self.remove(slot);
            return;
        }
        let wanted = connection.has_unsent();
        if wanted != connection.polls_writable {
            connection.polls_writable = wanted;
            self.poll(slot, false);
        }
    }

    /// Gives a guest that takes nothing from a departed host a last deadline.
    fn watch_linger(&mut self, slot: u32) {
        let linger = self.config.linger;
        let Some(connection) = self.connection(slot) else {
            return;
        };
        if connection.lingers() && connection.may_read() && connection.send.available() == 0 {
            let deadline = connection.set_deadline(linger);
            self.arm_timer(deadline);
        }
    }

    /// Lets the timer expire after `wait` at the latest.
    pub(super) fn wake_after(&mut self, wait: Duration) {
        self.arm_timer(Instant::now().checked_add(wait));
    }

    fn arm_timer(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if self.timer_at.is_some_and(|at| at <= deadline) {
            return;
        }
        // Never zero, which would disarm the timer.
        let wait = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
        let it_value =
            Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::time::timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval, it_value },
        ) {
            Ok(_) => self.timer_at = Some(deadline),
            Err(error) => tracing::error!(%error, "vsock timer failed"),
        }
    }

    fn run_timer(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        self.timer_at = None;
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for (slot, entry) in (0u32..).zip(&self.slots) {
            match entry.connection.as_ref().and_then(|c| c.deadline) {
                Some(at) if at <= now => due.push(slot),
                Some(at) => next = Some(next.map_or(at, |n| n.min(at))),
                None => {}
            }
        }
        for slot in due {
            let Some(connection) = self.connection(slot) else {
                continue;
            };
            if matches!(connection.phase, Phase::Connecting(_)) {
                // A guest that answers late must not believe in the connection.
                let asked = !connection.greet;
                let ports = connection.ports;
                self.fail_connect(slot, ConnectOutcome::TimedOut);
                if asked {
                    self.push_reset(ports);
                }
            } else {
                self.kill(slot);
            }
        }
        self.arm_timer(next);
    }

    // --- the guest's side --------------------------------------------------------------------

    /// Handles one packet of the guest, whose payload, if any, follows the header in `buffers`.
    pub(super) fn guest_packet<B: BitmapSlice>(&mut self, header: &Header, buffers: &Buffers<'_, B>) {
        self.counters().tx_packets.bump();
        if header.src_cid != self.config.guest_cid || header.dst_cid != HOST_CID {
            self.counters().dropped_packets.bump();
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let op = if header.kind == TYPE_STREAM { Op::from_wire(header.op) } else { None };
        let payload_fits = header.len as usize <= buffers.len().saturating_sub(HEADER_LEN);
        let Some(&slot) = self.by_ports.get(&ports) else {
            match op {
                Some(Op::Request) => self.accept(ports, header),
                // A reset for something unknown ends the matter; answering could go on for ever.
                Some(Op::Reset) => {}
                _ if header.op == Op::Reset.to_wire() => {}
                _ => self.push_reset(ports),
            }
            return;
        };
        let Some(connection) = self.connection(slot) else {
            return;
        };
        let credit = connection.send.update(header.buf_alloc, header.fwd_cnt);
        let connecting = matches!(connection.phase, Phase::Connecting(_));
        match op {
            Some(Op::Reset) if connecting => self.fail_connect(slot, ConnectOutcome::Refused),
            Some(Op::Reset) => self.drain(slot),
            _ if credit.is_err() => self.violation(slot),
            Some(Op::Response) if connecting && !connection.greet => self.establish(slot),
            Some(Op::Shutdown) if !connecting => {
                if connection.guest_shut_down(header.flags) {
                    self.push_reset(ports);
                    self.drain(slot);
                } else {
                    self.enqueue(slot);
                }
            }
            Some(Op::Data) if !connecting && payload_fits && !connection.guest_finished() => {
                self.guest_data(slot, header.len, buffers)
            }
            Some(Op::CreditUpdate) if !connecting => self.enqueue(slot),
            Some(Op::CreditRequest) if !connecting => {
                connection.owes_credit = true;
                self.enqueue(slot);
            }
            _ => self.violation(slot),
        }
    }

    fn guest_data<B: BitmapSlice>(&mut self, slot: u32, len: u32, buffers: &Buffers<'_, B>) {
        let Some(connection) = self.connection(slot) else {
            return;
        };
        if connection.receive.receive(len).is_err() {
            self.violation(slot);
            return;
        }
        if len > 0 {
            let mut payload = Vec::with_capacity(4);
            buffers.range(HEADER_LEN, len as usize, &mut payload);
            if connection.deliver(&payload, len) == HostWrite::Deaf {
                connection.readable = true;
            }
            self.counters().tx_bytes.add(len.into());
            self.after_host_write(slot);
        }
        self.enqueue(slot);
    }

    /// A packet that makes no sense in the state of its connection.
    fn violation(&mut self, slot: u32) {
        self.counters().protocol_errors.bump();
        if self.connection(slot).is_some_and(|c| matches!(c.phase, Phase::Connecting(_))) {
            let ports = self.connection(slot).map(|c| c.ports);
            self.fail_connect(slot, ConnectOutcome::Reset);
            if let Some(ports) = ports {
                self.push_reset(ports);
            }
        } else {
            self.kill(slot);
        }
    }

    fn accept(&mut self, ports: Ports, header: &Header) {
        let room = self.open < self.config.max_connections && self.guest_opened < self.config.max_guest_connections;
        let Some(acceptor) = self.listeners.get_mut(&ports.host).filter(|_| room) else {
            self.counters().guest_connects_refused.bump();
            self.push_reset(ports);
            return;
        };
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!(%error, port = ports.host, "no socket pair for a guest connection");
                self.counters().guest_connects_refused.bump();
                self.push_reset(ports);
                return;
            }
        };
        acceptor(theirs);
        let mut connection = Connection::new(ports, ours, Phase::Established, self.config.buf_alloc);
        connection.guest_opened = true;
        connection.established = true;
        // The first packet carries the guest's buffer size; nothing was sent, so nothing can be claimed.
        let _ = connection.send.update(header.buf_alloc, 0);
        self.guest_opened += 1;
        let slot = self.insert(connection);
        self.by_ports.insert(ports, slot);
        self.counters().connections_opened.bump();
        self.start_polling(slot);
    }

    fn establish(&mut self, slot: u32) {
        let Some(connection) = self.connection(slot) else {
            return;
        };
        connection.deadline = None;
        connection.established = true;
        let Phase::Connecting(completion) = std::mem::replace(&mut connection.phase, Phase::Established) else {
            return;
        };
        completion(ConnectOutcome::Connected, &connection.stream);
        self.counters().connections_opened.bump();
        self.start_polling(slot);
    }

    fn start_polling(&mut self, slot: u32) {
        if self.poll(slot, true) {
            self.enqueue(slot);
        } else {
            self.kill(slot);
        }
    }

    // --- the ready list, used by the receive queue -------------------------------------------

    /// Returns the next reset the guest has to get.
    pub(super) fn next_reset(&self) -> Option<Ports> {
        self.resets.front().copied()
    }

    /// Forgets that reset: the guest has it.
    pub(super) fn reset_sent(&mut self) {
        self.resets.pop_front();
        self.counters().resets_sent.bump();
    }

    /// Returns the connection whose turn it is.
    pub(super) fn next_ready(&self) -> Option<u32> {
        self.ready.front().copied()
    }

    /// Ends the turn of the first connection; it queues again behind the others if it has more.
    pub(super) fn turn_over(&mut self) {
        if let Some(slot) = self.ready.pop_front() {
            if let Some(connection) = self.connection(slot) {
                connection.queued = false;
                if connection.may_read() && connection.send.available() == 0 {
                    self.counters().credit_starved.bump();
                }
            }
            self.watch_linger(slot);
            self.enqueue(slot);
        }
    }

    /// Starts the clock for the guest's answer to a complete shutdown.
    pub(super) fn await_guest_end(&mut self, slot: u32) {
        let timeout = self.config.shutdown_timeout;
        if let Some(connection) = self.connection(slot) {
            connection.deadline = None;
            let deadline = connection.set_deadline(timeout);
            self.arm_timer(deadline);
        }
    }

    pub(super) fn connection(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.connection.as_mut()
    }

    fn enqueue(&mut self, slot: u32) {
        let Some(connection) = self.connection(slot) else {
            return;
        };
        if !connection.queued && connection.has_work() {
            connection.queued = true;
            self.ready.push_back(slot);
        }
    }

    fn push_reset(&mut self, ports: Ports) {
        if self.resets.len() >= MAX_RESETS {
            self.counters().dropped_resets.bump();
        } else {
            self.resets.push_back(ports);
        }
    }

    // --- ends --------------------------------------------------------------------------------

    fn fail_connect(&mut self, slot: u32, outcome: ConnectOutcome) {
        let Some(mut connection) = self.remove(slot) else {
            return;
        };
        self.counters().connects_failed.bump();
        if let Phase::Connecting(completion) = std::mem::replace(&mut connection.phase, Phase::Draining) {
            completion(outcome, &connection.stream);
        }
    }

    /// Ends a connection at once and tells the guest.
    fn kill(&mut self, slot: u32) {
        if let Some(connection) = self.remove(slot)
            && !matches!(connection.phase, Phase::Draining)
        {
            self.push_reset(connection.ports);
        }
    }

    /// The guest's side is over; the host still gets what the guest had sent.
    fn drain(&mut self, slot: u32) {
        let Some(connection) = self.connection(slot) else {
            return;
        };
        connection.phase = Phase::Draining;
        connection.deadline = None;
        let ports = connection.ports;
        let done = !connection.has_unsent();
        self.by_ports.remove(&ports);
        if done {
            self.remove(slot);
        }
    }

    /// Forgets everything about the guest, which has been reset. Bytes it had sent still reach the host.
    pub(super) fn reset(&mut self) {
        self.resets.clear();
        self.ready.clear();
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        for slot in 0..slots {
            match self.connection(slot) {
                Some(connection) => {
                    connection.queued = false;
                    match connection.phase {
                        Phase::Connecting(_) => self.fail_connect(slot, ConnectOutcome::Reset),
                        Phase::Established => self.drain(slot),
                        Phase::Draining => {}
                    }
                }
                None => continue,
            }
        }
    }

    fn insert(&mut self, connection: Connection) -> u32 {
        self.open += 1;
        if let Some(slot) = self.free.pop() {
            if let Some(entry) = self.slots.get_mut(slot as usize) {
                entry.connection = Some(connection);
            }
            return slot;
        }
        self.slots.push(Slot { generation: 0, connection: Some(connection) });
        // Bounded by `max_connections`.
        u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
    }

    fn remove(&mut self, slot: u32) -> Option<Connection> {
        let entry = self.slots.get_mut(slot as usize)?;
        let connection = entry.connection.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
        self.open -= 1;
        if connection.guest_opened {
            self.guest_opened -= 1;
        }
        if !matches!(connection.phase, Phase::Draining) {
            self.by_ports.remove(&connection.ports);
        }
        if connection.queued {
            self.ready.retain(|&queued| queued != slot);
        }
        if connection.established {
            self.counters().connections_closed.bump();
            // Closing is not enough while a duplicate of the descriptor lives elsewhere.
            let _ = epoll::delete(&self.poller, &connection.stream);
        }
        Some(connection)
    }

    /// Registers a stream with the poller or changes what is watched. False when that failed.
    fn poll(&mut self, slot: u32, add: bool) -> bool {
        let Some(entry) = self.slots.get(slot as usize) else {
            return false;
        };
        let Some(connection) = entry.connection.as_ref() else {
            return false;
        };
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        if connection.polls_writable {
            flags |= epoll::EventFlags::OUT;
        }
        let token = epoll::EventData::new_u64(u64::from(entry.generation) << 32 | u64::from(slot));
        let result = if add {
            epoll::add(&self.poller, &connection.stream, token, flags)
        } else {
            epoll::modify(&self.poller, &connection.stream, token, flags)
        };
        if let Err(error) = result {
            tracing::warn!(%error, "vsock poller refused a stream");
            return false;
        }
        true
    }

    fn slot_of(&self, token: u64) -> Option<u32> {
        let slot = token as u32;
        let entry = self.slots.get(slot as usize)?;
        (u64::from(entry.generation) == token >> 32).then_some(slot)
    }

    /// Returns a header of `op` to the guest, with no credit fields.
    pub(super) fn header(&self, ports: Ports, op: Op) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.config.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            op: op.to_wire(),
            ..Header::default()
        }
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        self.shared.close();
        for slot in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            if self.connection(slot).is_some_and(|c| matches!(c.phase, Phase::Connecting(_))) {
                self.fail_connect(slot, ConnectOutcome::Reset);
            }
        }
    }
}
