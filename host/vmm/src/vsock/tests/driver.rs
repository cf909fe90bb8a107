//! A small virtio driver: it lays out rings in guest memory, posts buffers and reads used rings.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::vsock::muxer::FIRST_HOST_PORT;
use crate::vsock::{
    ConnectOutcome, HEADER_LEN, HOST_CID, Header, Op, VsockConfig, VsockDevice, VsockHandle, VsockNotify, VsockQueues,
    VsockRingError,
};

pub const CID: u64 = 42;
pub const RING_SIZE: u16 = 64;
const MEMORY: usize = 16 << 20;
/// Where buffers start; rings are below.
const HEAP: u64 = 0x10_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A packet as the guest sends or gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub header: Header,
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn op(&self) -> Op {
        Op::from_wire(self.header.op).expect("the device sends known operations")
    }
}

/// How a packet is cut into descriptors.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Header and payload in one, as Linux 6.3 and later do.
    One,
    /// One for the header, one for the payload, as earlier Linux did.
    Two,
    /// Pieces of this many bytes, the header cut as well.
    Pieces(usize),
}

/// The descriptors of a chain: number, address and length of each.
pub type Chain = Vec<(u16, u64, u32)>;

/// The driver's half of one ring.
pub struct DriverRing {
    /// Address of the descriptors; the available ring is 0x2000 behind, the used ring 0x4000.
    pub base: u64,
    free: Vec<u16>,
    avail: u16,
    used: u16,
    /// Chains the device has: head to descriptors and their memory.
    pub flying: HashMap<u16, Chain>,
    /// A fixed piece of memory per descriptor.
    heap: u64,
}

impl DriverRing {
    pub fn new(index: u64) -> DriverRing {
        DriverRing {
            base: index * 0x1_0000,
            free: (0..RING_SIZE).rev().collect(),
            avail: 0,
            used: 0,
            flying: HashMap::new(),
            heap: HEAP + index * 0x40_0000,
        }
    }

    fn queue(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(RING_SIZE).unwrap();
        queue.set_desc_table_address(Some(self.base as u32), None);
        queue.set_avail_ring_address(Some(self.base as u32 + 0x2000), None);
        queue.set_used_ring_address(Some(self.base as u32 + 0x4000), None);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    /// Returns the memory of the next chain of one descriptor.
    pub fn next_address(&self) -> Option<u64> {
        self.free.last().map(|&id| self.heap + u64::from(id) * 0x1_0000)
    }

    /// Posts one chain of buffers with these lengths and returns their memory.
    pub fn post(&mut self, mem: &GuestMemoryMmap, lens: &[u32], writable: bool) -> Option<Vec<u64>> {
        if lens.is_empty() || self.free.len() < lens.len() {
            return None;
        }
        let ids: Vec<u16> = lens.iter().map(|_| self.free.pop().unwrap()).collect();
        let mut chain = Vec::new();
        for (at, (&id, &len)) in ids.iter().zip(lens).enumerate() {
            let addr = self.heap + u64::from(id) * 0x1_0000;
            let mut flags = if writable { WRITE } else { 0 };
            let next = ids.get(at + 1).copied();
            if next.is_some() {
                flags |= NEXT;
            }
            self.write_descriptor(mem, id, addr, len, flags, next.unwrap_or(0));
            chain.push((id, addr, len));
        }
        let addresses = chain.iter().map(|&(_, addr, _)| addr).collect();
        self.flying.insert(ids[0], chain);
        self.publish(mem, ids[0]);
        Some(addresses)
    }

    pub fn write_descriptor(&self, mem: &GuestMemoryMmap, id: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.base + u64::from(id) * 16);
        mem.write_obj(addr, at).unwrap();
        mem.write_obj(len, GuestAddress(at.0 + 8)).unwrap();
        mem.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
        mem.write_obj(next, GuestAddress(at.0 + 14)).unwrap();
    }

    pub fn publish(&mut self, mem: &GuestMemoryMmap, head: u16) {
        let slot = self.base + 0x2000 + 4 + u64::from(self.avail % RING_SIZE) * 2;
        mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.write_avail_index(mem, self.avail);
    }

    pub fn write_avail_index(&self, mem: &GuestMemoryMmap, index: u16) {
        mem.write_obj(index, GuestAddress(self.base + 0x2000 + 2)).unwrap();
    }

    /// Sets the flags of the available ring.
    pub fn write_avail_flags(&self, mem: &GuestMemoryMmap, flags: u16) {
        mem.write_obj(flags, GuestAddress(self.base + 0x2000)).unwrap();
    }

    /// Asks for a notification once used entry `index` is written.
    pub fn write_used_event(&self, mem: &GuestMemoryMmap, index: u16) {
        let at = self.base + 0x2000 + 4 + u64::from(RING_SIZE) * 2;
        mem.write_obj(index, GuestAddress(at)).unwrap();
    }

    /// Asks for a notification of the next used entry.
    pub fn want_notification(&self, mem: &GuestMemoryMmap) {
        self.write_used_event(mem, self.used);
    }

    /// The device asked to be kicked at this available index.
    pub fn avail_event(&self, mem: &GuestMemoryMmap) -> u16 {
        mem.read_obj(GuestAddress(self.base + 0x4000 + 4 + u64::from(RING_SIZE) * 8)).unwrap()
    }

    pub fn next_avail(&self) -> u16 {
        self.avail
    }

    /// Takes back the chains the device has finished: their memory and the length it reports.
    pub fn reap(&mut self, mem: &GuestMemoryMmap) -> Vec<(Chain, u32)> {
        let index: u16 = mem.read_obj(GuestAddress(self.base + 0x4000 + 2)).unwrap();
        let mut done = Vec::new();
        while self.used != index {
            let slot = self.base + 0x4000 + 4 + u64::from(self.used % RING_SIZE) * 8;
            let head: u32 = mem.read_obj(GuestAddress(slot)).unwrap();
            let len: u32 = mem.read_obj(GuestAddress(slot + 4)).unwrap();
            let chain = self.flying.remove(&(head as u16)).expect("the device finishes only what it has, and once");
            self.free.extend(chain.iter().map(|&(id, _, _)| id));
            done.push((chain, len));
            self.used = self.used.wrapping_add(1);
        }
        done
    }
}

/// A guest: memory, driver rings, and the device under test with its half of the rings.
pub struct Guest {
    pub mem: GuestMemoryMmap,
    pub rx_ring: DriverRing,
    pub tx_ring: DriverRing,
    pub event_ring: DriverRing,
    rx: Queue,
    tx: Queue,
    event: Queue,
    pub device: VsockDevice,
    pub handle: VsockHandle,
    /// Length of each receive buffer, cut into these descriptors.
    pub rx_shape: Vec<u32>,
    /// Notifications of rx and tx since the start.
    pub notified: (u32, u32),
}

impl Guest {
    pub fn new() -> Guest {
        Guest::with(VsockConfig::new(CID), true)
    }

    pub fn with(config: VsockConfig, event_idx: bool) -> Guest {
        let (device, handle) = VsockDevice::new(config).unwrap();
        Guest::around(device, handle, event_idx)
    }

    pub fn around(device: VsockDevice, handle: VsockHandle, event_idx: bool) -> Guest {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let (rx_ring, tx_ring, event_ring) = (DriverRing::new(0), DriverRing::new(1), DriverRing::new(2));
        Guest {
            rx: rx_ring.queue(event_idx),
            tx: tx_ring.queue(event_idx),
            event: event_ring.queue(event_idx),
            mem,
            rx_ring,
            tx_ring,
            event_ring,
            device,
            handle,
            rx_shape: vec![4096],
            notified: (0, 0),
        }
    }

    /// A guest with plenty of receive buffers.
    pub fn ready() -> Guest {
        let mut guest = Guest::new();
        guest.supply(usize::MAX);
        guest
    }

    /// What a driver does after a reboot: fresh rings, and the transport resets the device.
    pub fn reboot(&mut self) {
        self.device.reset();
        self.rx_ring = DriverRing::new(0);
        self.tx_ring = DriverRing::new(1);
        self.event_ring = DriverRing::new(2);
        for ring in [&self.rx_ring, &self.tx_ring, &self.event_ring] {
            self.mem.write_slice(&[0; 0x6000], GuestAddress(ring.base)).unwrap();
        }
        self.rx = self.rx_ring.queue(true);
        self.tx = self.tx_ring.queue(true);
        self.event = self.event_ring.queue(true);
    }

    /// Posts up to `count` receive buffers.
    pub fn supply(&mut self, count: usize) {
        for _ in 0..count {
            if self.rx_ring.post(&self.mem, &self.rx_shape, true).is_none() {
                break;
            }
        }
    }

    fn call(
        &mut self,
        call: impl FnOnce(&mut VsockDevice, &GuestMemoryMmap, VsockQueues<'_>) -> Result<VsockNotify, VsockRingError>,
    ) -> Result<VsockNotify, VsockRingError> {
        let queues = VsockQueues { rx: &mut self.rx, tx: &mut self.tx, event: Some(&mut self.event) };
        let notify = call(&mut self.device, &self.mem, queues)?;
        self.notified.0 += u32::from(notify.rx);
        self.notified.1 += u32::from(notify.tx);
        Ok(notify)
    }

    pub fn try_kick_tx(&mut self) -> Result<VsockNotify, VsockRingError> {
        self.call(VsockDevice::handle_tx_kick)
    }

    pub fn kick_tx(&mut self) {
        let _ = self.try_kick_tx().unwrap();
    }

    pub fn kick_rx(&mut self) {
        let _ = self.try_kick_rx().unwrap();
    }

    pub fn try_kick_rx(&mut self) -> Result<VsockNotify, VsockRingError> {
        self.call(VsockDevice::handle_rx_kick)
    }

    pub fn kick_event(&mut self) -> VsockNotify {
        self.call(VsockDevice::handle_event_kick).unwrap()
    }

    /// Returns whether the device's descriptor becomes readable within `timeout`.
    pub fn host_event_within(&self, timeout: Duration) -> bool {
        // SAFETY: the descriptor is the device's, which outlives this call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) };
        let wait = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut fds, Some(&wait)).unwrap() > 0
    }

    /// Serves host events until there are none.
    pub fn settle(&mut self) {
        while self.host_event_within(Duration::ZERO) {
            let _ = self.call(VsockDevice::handle_host_events).unwrap();
        }
    }

    /// Waits for one host event and serves all.
    pub fn wait(&mut self) {
        assert!(self.host_event_within(Duration::from_secs(5)), "the device has nothing to do");
        self.settle();
    }

    /// Serves host events until `outcome` is there.
    pub fn wait_for<T>(&mut self, outcome: &Receiver<T>) -> T {
        loop {
            match outcome.try_recv() {
                Ok(value) => return value,
                Err(_) => self.wait(),
            }
        }
    }

    /// Queues a packet without a kick. False when the ring is full.
    pub fn queue(&mut self, packet: &Packet, shape: Shape) -> bool {
        let mut bytes = packet.header.encode().to_vec();
        bytes.extend(&packet.payload);
        let lens: Vec<u32> = match shape {
            Shape::One => vec![bytes.len() as u32],
            Shape::Two if packet.payload.is_empty() => vec![HEADER_LEN as u32],
            Shape::Two => vec![HEADER_LEN as u32, packet.payload.len() as u32],
            Shape::Pieces(size) => bytes.chunks(size).map(|c| c.len() as u32).collect(),
        };
        let Some(addresses) = self.tx_ring.post(&self.mem, &lens, false) else {
            return false;
        };
        let mut rest = &bytes[..];
        for (addr, len) in addresses.into_iter().zip(lens) {
            let (now, later) = rest.split_at(len as usize);
            self.mem.write_slice(now, GuestAddress(addr)).unwrap();
            rest = later;
        }
        // The memory is written after the index; nothing runs in between.
        true
    }

    /// Sends a packet, with a kick.
    pub fn send(&mut self, packet: &Packet) {
        assert!(self.queue(packet, Shape::One), "tx ring full");
        self.kick_tx();
        self.tx_ring.reap(&self.mem);
    }

    /// Takes the packets the device has delivered, and posts their buffers anew.
    pub fn take(&mut self) -> Vec<Packet> {
        let packets = self.take_keeping();
        self.supply(packets.len());
        packets
    }

    /// Takes the packets the device has delivered.
    pub fn take_keeping(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        for (chain, len) in self.rx_ring.reap(&self.mem) {
            let mut bytes = Vec::new();
            for (_, addr, piece) in chain {
                let mut buffer = vec![0; (piece as usize).min(len as usize - bytes.len())];
                self.mem.read_slice(&mut buffer, GuestAddress(addr)).unwrap();
                bytes.extend(buffer);
            }
            let wire: &[u8; HEADER_LEN] = bytes.first_chunk().expect("a whole header");
            let header = Header::decode(wire);
            let payload = bytes[HEADER_LEN..].to_vec();
            assert_eq!(header.len as usize, payload.len());
            assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, 1));
            packets.push(Packet { header, payload });
        }
        packets
    }

    /// Takes delivered packets and expects exactly one.
    #[track_caller]
    pub fn take_one(&mut self) -> Packet {
        let mut packets = self.take();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }
}

/// A packet of the guest on a connection between these ports.
pub fn packet(host: u32, guest: u32, op: Op, payload: &[u8]) -> Packet {
    let header = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        len: payload.len() as u32,
        kind: 1,
        op: op.to_wire(),
        flags: 0,
        buf_alloc: 64 * 1024,
        fwd_cnt: 0,
    };
    Packet { header, payload: payload.to_vec() }
}

/// Connects to `port` of the guest, which accepts. Returns the host's end and the host's port.
pub fn open(guest: &mut Guest, port: u32) -> (UnixStream, u32) {
    let (stream, outcome) = start_connect(guest, port);
    let request = guest.take_one();
    assert_eq!((request.op(), request.header.dst_port), (Op::Request, port));
    let host = request.header.src_port;
    assert!(host >= FIRST_HOST_PORT);
    guest.send(&packet(host, port, Op::Response, b""));
    assert_eq!(outcome.try_recv(), Ok(ConnectOutcome::Connected));
    (stream, host)
}

/// Asks the device to connect, and lets it work.
pub fn start_connect(guest: &mut Guest, port: u32) -> (UnixStream, Receiver<ConnectOutcome>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (sender, outcome) = channel();
    guest.handle.connect(port, theirs, move |outcome, _| {
        let _ = sender.send(outcome);
    });
    guest.settle();
    (ours, outcome)
}

impl Guest {
    /// Returns a second device-side view of the tx ring, behind what the device has taken.
    pub fn tx_queue(&self) -> Queue {
        let mut queue = self.tx_ring.queue(true);
        queue.set_next_avail(self.tx.next_avail());
        queue
    }

    /// Moves the device's rx ring out of memory.
    pub fn misplace_rx(&mut self) {
        self.rx.set_used_ring_address(Some(0xffff_0000), None);
    }
}
