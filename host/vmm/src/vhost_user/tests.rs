//! The backend against a vhost-user frontend that does what QEMU does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{VhostUserVsock, serve};
use crate::vsock::tests::driver::{CID, DriverRing, Packet, RING_SIZE, packet};
use crate::vsock::{ConnectOutcome, HEADER_LEN, Header, Op, VsockConfig, VsockDevice};

const MEMORY: usize = 16 << 20;

/// QEMU and its guest, as far as the backend sees them.
struct Qemu {
    frontend: Frontend,
    mem: GuestMemoryMmap,
    rings: [DriverRing; 2],
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
}

fn start() -> (VhostUserVsock, Qemu) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let device = serve(listener, VsockConfig::new(CID)).unwrap();
    let frontend = Frontend::connect(&path, 2).unwrap();
    let memfd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memfd, MEMORY as u64).unwrap();
    let file = FileOffset::new(File::from(memfd), 0);
    let mem = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, Some(file))]).unwrap();
    let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
    let mut qemu = Qemu {
        frontend,
        mem,
        rings: [DriverRing::new(0), DriverRing::new(1)],
        kicks: [event(), event()],
        calls: [event(), event()],
    };
    qemu.negotiate();
    qemu.start_rings([0, 0]);
    qemu.set_calls();
    (device, qemu)
}

impl Qemu {
    fn negotiate(&mut self) {
        self.frontend.set_owner().unwrap();
        let features = self.frontend.get_features().unwrap();
        let protocol_features = 1 << 30;
        assert_eq!(features, VsockDevice::features() | protocol_features);
        let offered = self.frontend.get_protocol_features().unwrap();
        assert!(offered.contains(VhostUserProtocolFeatures::CONFIG));
        self.frontend.set_protocol_features(offered).unwrap();
        // Every message is answered, so each is done when its call returns.
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        self.frontend.set_features(features).unwrap();
        let (_, config) = self.frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap();
        assert_eq!(config, CID.to_le_bytes());
        let region = self.mem.find_region(GuestAddress(0)).unwrap();
        self.frontend.set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()]).unwrap();
    }

    fn start_rings(&mut self, positions: [u16; 2]) {
        let memory = self.mem.get_host_address(GuestAddress(0)).unwrap() as u64;
        for (index, &position) in positions.iter().enumerate() {
            let base = memory + self.rings[index].base;
            self.frontend.set_vring_num(index, RING_SIZE).unwrap();
            self.frontend.set_vring_base(index, position).unwrap();
            let addresses = VringConfigData {
                queue_max_size: RING_SIZE,
                queue_size: RING_SIZE,
                flags: 0,
                desc_table_addr: base,
                avail_ring_addr: base + 0x2000,
                used_ring_addr: base + 0x4000,
                log_addr: None,
            };
            self.frontend.set_vring_addr(index, &addresses).unwrap();
            self.frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
            self.frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// Says how to notify the guest: QEMU does so after all queues run.
    fn set_calls(&mut self) {
        for index in 0..2 {
            self.frontend.set_vring_call(index, &self.calls[index]).unwrap();
        }
    }

    fn stop_rings(&mut self) -> [u16; 2] {
        [0, 1].map(|index| self.frontend.get_vring_base(index).unwrap() as u16)
    }

    fn supply(&mut self) {
        while self.rings[0].post(&self.mem, &[4096], true).is_some() {}
        self.kicks[0].write(1).unwrap();
    }

    fn send(&mut self, packet: &Packet) {
        let bytes = [&packet.header.encode()[..], &packet.payload].concat();
        // The device must not see the chain before its bytes are there.
        let addr = self.rings[1].next_address().unwrap();
        self.mem.write_slice(&bytes, GuestAddress(addr)).unwrap();
        assert_eq!(self.rings[1].post(&self.mem, &[bytes.len() as u32], false), Some(vec![addr]));
        self.kicks[1].write(1).unwrap();
    }

    /// Waits for the interrupt that brings the next packets.
    fn take(&mut self) -> Vec<Packet> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            self.rings[0].want_notification(&self.mem);
            let done = self.rings[0].reap(&self.mem);
            self.rings[1].reap(&self.mem);
            if !done.is_empty() {
                return done.into_iter().map(|(chain, len)| self.read(&chain, len)).collect();
            }
            assert!(Instant::now() < deadline, "no packet");
            // SAFETY: the descriptor belongs to `calls`, which outlives the borrow.
            let call = unsafe { BorrowedFd::borrow_raw(self.calls[0].as_raw_fd()) };
            let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            let _ = poll(&mut [PollFd::from_borrowed_fd(call, PollFlags::IN)], Some(&wait));
            let _ = self.calls[0].read();
        }
    }

    /// Waits for an interrupt of queue 0.
    fn interrupted(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if self.calls[0].read().is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    fn read(&self, chain: &[(u16, u64, u32)], len: u32) -> Packet {
        let mut bytes = vec![0; len as usize];
        self.mem.read_slice(&mut bytes, GuestAddress(chain[0].1)).unwrap();
        let header = Header::decode(bytes.first_chunk().unwrap());
        Packet { header, payload: bytes.split_off(HEADER_LEN) }
    }

    #[track_caller]
    fn take_one(&mut self) -> Packet {
        let mut packets = self.take();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// Lets the host connect to port 1 of the guest.
    fn open(&mut self, device: &VhostUserVsock) -> (UnixStream, u32) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, outcome) = channel();
        device.handle().connect(1, theirs, move |outcome, _| sender.send(outcome).unwrap());
        let request = self.take_one();
        assert_eq!(request.op(), Op::Request);
        let port = request.header.src_port;
        self.send(&packet(port, 1, Op::Response, b""));
        assert_eq!(outcome.recv(), Ok(ConnectOutcome::Connected));
        (ours, port)
    }

    fn echo(&mut self, host: &mut UnixStream, port: u32, text: &[u8]) {
        host.write_all(text).unwrap();
        let got = self.take_one();
        assert_eq!(got.payload, text);
        self.send(&packet(port, 1, Op::Data, &got.payload));
        let mut back = vec![0; text.len()];
        host.read_exact(&mut back).unwrap();
        assert_eq!(back, text);
    }
}

#[test]
fn bytes_go_both_ways_through_shared_memory() {
    let (device, mut qemu) = start();
    qemu.supply();
    let (mut host, port) = qemu.open(&device);
    for round in 0..20 {
        qemu.echo(&mut host, port, format!("round {round}").as_bytes());
        qemu.supply();
    }
    drop(qemu);
    device.wait().unwrap();
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "streams end with QEMU");
}

#[test]
fn a_pause_keeps_connections_and_a_reset_does_not() {
    let (device, mut qemu) = start();
    qemu.supply();
    let (mut host, port) = qemu.open(&device);
    let positions = qemu.stop_rings();
    qemu.rings[0].want_notification(&qemu.mem);
    let _ = qemu.calls[0].read();
    host.write_all(b"while paused").unwrap();
    qemu.start_rings(positions);
    // The bytes are in the guest's buffer before there is a way to say so.
    std::thread::sleep(Duration::from_millis(20));
    assert!(qemu.calls[0].read().is_err());
    qemu.set_calls();
    assert!(qemu.interrupted(), "the notification came too early and was lost");
    assert_eq!(qemu.take_one().payload, b"while paused");
    qemu.echo(&mut host, port, b"after the pause");

    qemu.stop_rings();
    qemu.mem.write_slice(&[0; 0x2_0000], GuestAddress(0)).unwrap();
    qemu.rings = [DriverRing::new(0), DriverRing::new(1)];
    qemu.start_rings([0, 0]);
    qemu.set_calls();
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    qemu.supply();
    let (mut host, port) = qemu.open(&device);
    qemu.echo(&mut host, port, b"after the reset");
    device.stop().unwrap();
}

#[test]
fn a_broken_ring_silences_the_device_until_it_is_reset() {
    let (device, mut qemu) = start();
    qemu.supply();
    let (mut host, _port) = qemu.open(&device);
    qemu.rings[1].write_avail_index(&qemu.mem, 30_000);
    qemu.kicks[1].write(1).unwrap();
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);

    qemu.stop_rings();
    qemu.mem.write_slice(&[0; 0x2_0000], GuestAddress(0)).unwrap();
    qemu.rings = [DriverRing::new(0), DriverRing::new(1)];
    qemu.start_rings([0, 0]);
    qemu.set_calls();
    qemu.supply();
    let (mut host, port) = qemu.open(&device);
    qemu.echo(&mut host, port, b"alive");
    assert!(!device.is_finished());
}

#[test]
fn it_stops_whether_or_not_anyone_came() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let device = serve(listener, VsockConfig::new(CID)).unwrap();
    let handle = device.handle();
    assert!(!device.is_finished());
    device.stop().unwrap();
    assert!(handle.connect_wait(1).is_err());

    let (device, _qemu) = start();
    device.stop().unwrap();

    let (device, _qemu) = start();
    drop(device);
}

#[test]
fn a_peer_that_talks_nonsense_ends_the_backend() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let device = serve(listener, VsockConfig::new(CID)).unwrap();
    let mut peer = UnixStream::connect(&path).unwrap();
    peer.write_all(&[0xff; 64]).unwrap();
    assert!(device.wait().is_err());
}
