//! Random guests, honest and not.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::driver::*;
use crate::vsock::muxer::FIRST_HOST_PORT;
use crate::vsock::{Header, Op, VsockConfig};

#[derive(Clone, Debug)]
enum Step {
    HostWrites(usize),
    HostReads(usize),
    GuestSends(usize),
    GuestReads(usize),
    Buffers(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1usize..40_000).prop_map(Step::HostWrites),
        (1usize..40_000).prop_map(Step::HostReads),
        (1usize..20_000).prop_map(Step::GuestSends),
        (1usize..40_000).prop_map(Step::GuestReads),
        (1usize..20).prop_map(Step::Buffers),
    ]
}

/// Byte number `at` of a stream.
fn byte(at: usize) -> u8 {
    (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]
}

fn bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(byte).collect()
}

/// One connection of an honest guest: what it sent, got and may send.
struct Peer {
    host: UnixStream,
    port: u32,
    host_wrote: usize,
    guest_got: usize,
    guest_read: usize,
    guest_sent: usize,
    host_got: usize,
    /// The device's buffer and how much of it is free again.
    room: (u32, u32),
}

impl Peer {
    fn take(&mut self, packets: Vec<Packet>) -> Result<(), TestCaseError> {
        for p in packets {
            self.room = (p.header.buf_alloc, p.header.fwd_cnt);
            match p.op() {
                Op::Data => {
                    prop_assert_eq!(&p.payload, &bytes(self.guest_got, p.payload.len()), "in order");
                    self.guest_got += p.payload.len();
                    prop_assert!(self.guest_got - self.guest_read <= 64 * 1024, "within credit");
                }
                Op::CreditUpdate => {}
                other => prop_assert!(false, "unexpected {other:?}"),
            }
        }
        Ok(())
    }

    fn packet(&self, op: Op, payload: &[u8]) -> Packet {
        let mut p = packet(self.port, 1, op, payload);
        p.header.fwd_cnt = self.guest_read as u32;
        p
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever the order of reads, writes and buffers, every byte arrives once and in order.
    #[test]
    fn honest_streams_are_intact(
        steps in prop::collection::vec(step(), 1..60),
        event_idx in any::<bool>(),
        rx_shape in prop_oneof![Just(vec![4096u32]), Just(vec![44, 4096]), Just(vec![20, 24, 1000]), Just(vec![60])],
        pieces in prop_oneof![Just(Shape::One), Just(Shape::Two), Just(Shape::Pieces(3000))],
        buf_alloc in prop_oneof![Just(16 * 1024u32), Just(64 * 1024), Just(256 * 1024)],
    ) {
        let mut guest = Guest::with(VsockConfig { buf_alloc, ..VsockConfig::new(CID) }, event_idx);
        guest.rx_shape = rx_shape;
        guest.supply(2);
        let (host, port) = open(&mut guest, 1);
        let mut peer = Peer { host, port, host_wrote: 0, guest_got: 0, guest_read: 0, guest_sent: 0, host_got: 0, room: (buf_alloc, 0) };
        for step in steps {
            match step {
                Step::HostWrites(count) => {
                    if let Ok(done) = peer.host.write(&bytes(peer.host_wrote, count)) {
                        peer.host_wrote += done;
                    }
                }
                Step::HostReads(count) => {
                    let mut buffer = vec![0; count];
                    if let Ok(done) = peer.host.read(&mut buffer) {
                        prop_assert_eq!(&buffer[..done], &bytes(peer.host_got, done)[..]);
                        peer.host_got += done;
                    }
                }
                Step::GuestSends(count) => {
                    let free = peer.room.0 - (peer.guest_sent as u32).wrapping_sub(peer.room.1);
                    let count = count.min(free as usize);
                    if count > 0 && guest.queue(&peer.packet(Op::Data, &bytes(peer.guest_sent, count)), pieces) {
                        peer.guest_sent += count;
                        guest.kick_tx();
                    }
                }
                Step::GuestReads(count) => {
                    peer.guest_read += count.min(peer.guest_got - peer.guest_read);
                    if guest.queue(&peer.packet(Op::CreditUpdate, b""), Shape::One) {
                        guest.kick_tx();
                    }
                }
                Step::Buffers(count) => {
                    guest.supply(count);
                    guest.kick_rx();
                }
            }
            guest.tx_ring.reap(&guest.mem);
            guest.settle();
            peer.take(guest.take_keeping())?;
        }
        // Then both sides read on: everything must come through, and both ends be seen.
        peer.host.shutdown(Shutdown::Write).unwrap();
        let mut ended = false;
        for _ in 0..20_000 {
            guest.supply(usize::MAX);
            guest.kick_rx();
            guest.settle();
            let mut packets = guest.take_keeping();
            if packets.last().map(Packet::op) == Some(Op::Shutdown) {
                ended = true;
                packets.pop();
            }
            peer.take(packets)?;
            peer.guest_read = peer.guest_got;
            if guest.queue(&peer.packet(Op::CreditUpdate, b""), Shape::One) {
                guest.kick_tx();
            }
            guest.tx_ring.reap(&guest.mem);
            let mut buffer = vec![0; 65536];
            match peer.host.read(&mut buffer) {
                Ok(done) => {
                    prop_assert_eq!(&buffer[..done], &bytes(peer.host_got, done)[..]);
                    peer.host_got += done;
                }
                Err(error) => prop_assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            if ended && peer.host_got == peer.guest_sent {
                break;
            }
        }
        prop_assert!(ended);
        prop_assert_eq!((peer.guest_got, peer.host_got), (peer.host_wrote, peer.guest_sent));
        prop_assert_eq!(guest.handle.stats().protocol_errors, 0);
    }

    /// A guest that sends anything at all: no panic, every chain comes back, nothing grows past its limit.
    #[test]
    fn hostile_packets_stay_bounded(
        packets in prop::collection::vec((hostile_header(), 0usize..3000, 0u8..8), 1..150),
        supply in 0usize..70,
        event_idx in any::<bool>(),
    ) {
        let config = VsockConfig { buf_alloc: 8192, max_connections: 8, max_guest_connections: 4, ..VsockConfig::new(CID) };
        let mut guest = Guest::with(config, event_idx);
        guest.supply(supply);
        let (sender, streams) = std::sync::mpsc::channel();
        guest.handle.listen(1025, move |stream| drop(sender.send(stream)));
        let mut hosts = Vec::new();
        for (header, payload, act) in packets {
            match act {
                0 => {
                    let (stream, _) = start_connect(&mut guest, 1);
                    let _ = (&stream).write(&[1; 5000]);
                    hosts.push(stream);
                }
                1 => {
                    hosts.pop();
                    guest.settle();
                }
                2 => {
                    guest.take_keeping();
                    guest.supply(3);
                    guest.kick_rx();
                }
                _ => {}
            }
            guest.queue(&Packet { header, payload: vec![0; payload] }, Shape::One);
            guest.kick_tx();
            guest.tx_ring.reap(&guest.mem);
            prop_assert!(guest.tx_ring.flying.is_empty());
            prop_assert!(guest.device.open_connections() <= 8);
            prop_assert!(guest.device.buffered_bytes() <= 8 * 8192);
        }
        let stats = guest.handle.stats();
        drop(streams);
        prop_assert!(stats.connections_opened >= stats.connections_closed);
    }

    /// Descriptors of any content: an answer or an error, never more.
    #[test]
    fn hostile_rings_do_no_harm(
        descriptors in prop::collection::vec((any::<u64>(), any::<bool>(), any::<u32>(), 0u16..8, 0u16..70), 1..64),
        heads in prop::collection::vec(0u16..70, 1..40),
        to_rx in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        let ring = if to_rx { &mut guest.rx_ring } else { &mut guest.tx_ring };
        for (id, (addr, inside, len, flags, next)) in (0u16..).zip(descriptors) {
            let (addr, len) = if inside { (addr % (15 << 20), len % 5000) } else { (addr, len) };
            ring.write_descriptor(&guest.mem, id, addr, len, flags, next);
        }
        for head in heads {
            ring.publish(&guest.mem, head);
        }
        if to_rx {
            let (_stream, _) = {
                let (ours, theirs) = UnixStream::pair().unwrap();
                guest.handle.connect(1, theirs, |_, _| {});
                (ours, ())
            };
            guest.device.take_host_events();
            let _ = guest.try_kick_rx();
        } else {
            let _ = guest.try_kick_tx();
        }
        prop_assert!(guest.device.open_connections() <= 1023);
    }
}

/// Headers that hit the interesting places more often than chance would.
fn hostile_header() -> impl Strategy<Value = Header> {
    let port = prop_oneof![Just(1u32), Just(1025), Just(FIRST_HOST_PORT), Just(FIRST_HOST_PORT + 1), any::<u32>()];
    let small = prop_oneof![Just(0u32), 0u32..4000, Just(u32::MAX), any::<u32>()];
    (
        prop_oneof![9 => Just(CID), 1 => any::<u64>()],
        prop_oneof![9 => Just(2u64), 1 => any::<u64>()],
        (port.clone(), port),
        small.clone(),
        prop_oneof![9 => Just(1u16), 1 => any::<u16>()],
        prop_oneof![20 => 0u16..9, 1 => any::<u16>()],
        0u32..5,
        (small.clone(), small),
    )
        .prop_map(|(src_cid, dst_cid, (src_port, dst_port), len, kind, op, flags, (buf_alloc, fwd_cnt))| Header {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        })
}
