//! Guests that break the rules.

use std::io::Read;

use super::driver::*;
use crate::vsock::{Op, VsockQueue, VsockRingError};

#[test]
fn nonsense_costs_the_guest_its_connection() {
    type Spoil = fn(&mut Packet);
    let spoils: [(&str, Spoil); 8] = [
        ("an unknown operation", |p| p.header.op = 99),
        ("operation zero", |p| p.header.op = 0),
        ("another socket type", |p| p.header.kind = 2),
        ("a response nobody asked for", |p| p.header.op = Op::Response.to_wire()),
        ("a length beyond the chain", |p| p.header.len = 8),
        ("the largest length", |p| p.header.len = u32::MAX),
        ("bytes acknowledged that were never sent", |p| p.header.fwd_cnt = 1),
        ("a request on an open connection", |p| p.header.op = Op::Request.to_wire()),
    ];
    for (what, spoil) in spoils {
        let mut guest = Guest::ready();
        let (mut host, port) = open(&mut guest, 1);
        let (mut other, other_port) = open(&mut guest, 2);
        let mut bad = packet(port, 1, Op::Data, b"1234567");
        spoil(&mut bad);
        guest.send(&bad);
        assert_eq!(guest.take_one().op(), Op::Reset, "{what}");
        assert_eq!(host.read(&mut [0; 8]).unwrap(), 0, "{what}");
        assert_eq!(guest.handle.stats().protocol_errors, 1, "{what}");
        // Others are not touched.
        guest.send(&packet(other_port, 2, Op::Data, b"fine"));
        other.read_exact(&mut [0; 4]).unwrap();
    }
}

#[test]
fn data_after_the_end_of_data_is_a_violation() {
    let mut guest = Guest::ready();
    let (_host, port) = open(&mut guest, 1);
    let mut shutdown = packet(port, 1, Op::Shutdown, b"");
    shutdown.header.flags = 2;
    guest.send(&shutdown);
    guest.send(&packet(port, 1, Op::Data, b"more"));
    assert_eq!(guest.take_one().op(), Op::Reset);
}

#[test]
fn packets_of_strangers_are_dropped_and_unknown_ones_reset() {
    let mut guest = Guest::ready();
    let mut stranger = packet(1, 1, Op::Data, b"x");
    stranger.header.src_cid = 7;
    guest.send(&stranger);
    let mut misrouted = packet(1, 1, Op::Data, b"x");
    misrouted.header.dst_cid = 3;
    guest.send(&misrouted);
    assert!(guest.take().is_empty());
    assert_eq!(guest.handle.stats().dropped_packets, 2);
    for op in [Op::Data, Op::Response, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        guest.send(&packet(1, 1, op, b""));
        assert_eq!(guest.take_one().op(), Op::Reset);
    }
    guest.send(&packet(1, 1, Op::Reset, b""));
    assert!(guest.take().is_empty());
}

#[test]
fn chains_that_are_no_packets_are_given_back() {
    let mut guest = Guest::ready();
    // Too short for a header.
    guest.tx_ring.post(&guest.mem, &[43], false).unwrap();
    // Writable memory in a queue of readable.
    guest.tx_ring.post(&guest.mem, &[44], true).unwrap();
    guest.kick_tx();
    assert_eq!(guest.tx_ring.reap(&guest.mem).len(), 2);
    assert_eq!(guest.handle.stats().dropped_packets, 2);

    let mut guest = Guest::ready();
    guest.tx_ring.post(&guest.mem, &[44], false).unwrap();
    // A loop, an address outside memory, a link to nowhere.
    for (len, flags, addr, next) in [
        (44, 1, 0x10_0000, 0),
        (44, 0, u64::MAX - 10, 0),
        (44, 0, 0xffff_ffff, 0),
        (44, 1, 0x10_0000, 500),
        (0, 0, 0, 0),
    ] {
        guest.tx_ring.reap(&guest.mem);
        let head =
            guest.tx_ring.post(&guest.mem, &[44], false).map(|_| *guest.tx_ring.flying.keys().next().unwrap()).unwrap();
        let next = if next == 0 { head } else { next };
        guest.tx_ring.write_descriptor(&guest.mem, head, addr, len, flags, next);
        let before = guest.handle.stats().dropped_packets;
        guest.kick_tx();
        assert!(guest.handle.stats().dropped_packets > before);
    }
}

#[test]
fn useless_receive_buffers_are_given_back() {
    let mut guest = Guest::new();
    guest.rx_shape = vec![43];
    guest.supply(2);
    guest.rx_shape = vec![44];
    guest.supply(1);
    let (_stream, outcome) = start_connect(&mut guest, 1);
    let used = guest.rx_ring.reap(&guest.mem);
    assert_eq!(used.iter().map(|u| u.1).collect::<Vec<_>>(), [0, 0, 44]);
    assert_eq!(guest.handle.stats().bad_rx_buffers, 2);
    drop(outcome);
}

#[test]
fn a_header_only_buffer_among_good_ones_is_skipped_once() {
    use std::io::Write;
    let mut guest = Guest::new();
    guest.supply(1);
    let (mut host, _port) = open(&mut guest, 1);
    guest.take();
    // Behind the one good buffer that `open` left: one for headers only, then good ones.
    guest.rx_shape = vec![44];
    guest.supply(1);
    guest.rx_shape = vec![4096];
    guest.supply(8);
    host.write_all(&[1; 20_000]).unwrap();
    guest.wait();
    let used = guest.rx_ring.reap(&guest.mem);
    let got: u32 = used.iter().map(|u| u.1.saturating_sub(44)).sum();
    assert_eq!(got, 20_000);
    assert_eq!(guest.handle.stats().bad_rx_buffers, 1);
}

#[test]
fn broken_rings_are_reported() {
    // More available than the ring holds.
    let mut guest = Guest::ready();
    guest.tx_ring.write_avail_index(&guest.mem, 1000);
    assert!(matches!(guest.try_kick_tx(), Err(VsockRingError::Broken(VsockQueue::Tx, _))));

    // A head outside the descriptor table.
    let mut guest = Guest::ready();
    guest.tx_ring.publish(&guest.mem, 999);
    assert!(matches!(guest.try_kick_tx(), Err(VsockRingError::Broken(VsockQueue::Tx, _))));

    // Rings outside memory.
    let mut guest = Guest::ready();
    guest.misplace_rx();
    assert!(matches!(guest.try_kick_rx(), Err(VsockRingError::Unmapped(VsockQueue::Rx))));
}

#[test]
fn a_guest_that_takes_no_resets_does_not_grow_the_device() {
    let mut guest = Guest::new();
    for port in 0..3000 {
        guest.send(&packet(1, port, Op::Data, b""));
    }
    assert_eq!(guest.handle.stats().dropped_resets, 3000 - 1024);
    guest.supply(usize::MAX);
    guest.kick_rx();
    let mut resets = 0;
    loop {
        let packets = guest.take();
        if packets.is_empty() {
            break;
        }
        resets += packets.len();
        guest.kick_rx();
    }
    assert_eq!(resets, 1024);
}

#[test]
fn a_storm_of_guest_connects_is_bounded() {
    let mut guest = Guest::new();
    let (sender, streams) = std::sync::mpsc::channel();
    guest.handle.listen(1025, move |stream| drop(sender.send(stream)));
    guest.settle();
    for round in 0..20 {
        for port in 0..100 {
            guest.send(&packet(1025, round * 1000 + port, Op::Request, b""));
            if port % 2 == 0 {
                guest.send(&packet(1025, round * 1000 + port, Op::Reset, b""));
            }
        }
    }
    assert!(guest.device.open_connections() <= 127);
    assert_eq!(
        guest.handle.stats().connections_opened - guest.handle.stats().connections_closed,
        guest.device.open_connections() as u64
    );
    drop(streams);
    guest.settle();
}
