//! Connections come and go: opening, refusing, closing by halves, resets, time limits, snapshots.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::driver::*;
use crate::vsock::muxer::{FIRST_HOST_PORT, LAST_HOST_PORT};
use crate::vsock::{ConnectOutcome, Op, VsockConfig, VsockDevice, VsockError, VsockState};

fn config() -> VsockConfig {
    VsockConfig {
        connect_timeout: Duration::from_millis(30),
        shutdown_timeout: Duration::from_millis(30),
        linger: Duration::from_millis(20),
        ..VsockConfig::new(CID)
    }
}

fn quick() -> Guest {
    let mut guest = Guest::with(config(), true);
    guest.supply(usize::MAX);
    guest
}

#[test]
fn bytes_go_both_ways() {
    let mut guest = Guest::ready();
    let (mut host, port) = open(&mut guest, 1024);
    host.write_all(b"question").unwrap();
    guest.wait();
    let got = guest.take_one();
    assert_eq!((got.op(), got.payload.as_slice(), got.header.dst_port), (Op::Data, &b"question"[..], 1024));
    guest.send(&packet(port, 1024, Op::Data, b"answer"));
    let mut answer = [0; 6];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    let stats = guest.handle.stats();
    assert_eq!((stats.tx_bytes, stats.rx_bytes, stats.connections_opened), (6, 8, 1));
}

#[test]
fn a_refusal_and_a_silence_are_told_apart() {
    let mut guest = quick();
    let (_stream, outcome) = start_connect(&mut guest, 7);
    let request = guest.take_one();
    guest.send(&packet(request.header.src_port, 7, Op::Reset, b""));
    assert_eq!(outcome.try_recv(), Ok(ConnectOutcome::Refused));

    let (mut stream, outcome) = start_connect(&mut guest, 8);
    let request = guest.take_one();
    assert_eq!(guest.wait_for(&outcome), ConnectOutcome::TimedOut);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the stream is closed");
    // The guest must not accept later.
    assert_eq!(guest.take_one().op(), Op::Reset);
    guest.send(&packet(request.header.src_port, 8, Op::Response, b""));
    assert_eq!(guest.take_one().op(), Op::Reset);
    assert_eq!(guest.handle.stats().connects_failed, 2);
}

#[test]
fn a_connect_waits_for_the_driver_and_then_gives_up() {
    let mut guest = Guest::with(config(), true);
    let (_stream, outcome) = start_connect(&mut guest, 9);
    assert!(guest.take().is_empty());
    guest.supply(4);
    guest.kick_rx();
    assert_eq!(guest.take_one().op(), Op::Request);

    let mut guest = Guest::with(config(), true);
    let (_stream, late) = start_connect(&mut guest, 9);
    assert_eq!(guest.wait_for(&late), ConnectOutcome::TimedOut);
    guest.supply(4);
    guest.kick_rx();
    assert!(guest.take().is_empty(), "what the guest never saw needs no reset");
    drop(outcome);
}

#[test]
fn the_completion_may_write_ahead_of_the_guest() {
    let mut guest = Guest::ready();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(5, theirs, |_, mut stream| stream.write_all(b"ok\n").unwrap());
    guest.settle();
    let port = guest.take_one().header.src_port;
    guest.queue(&packet(port, 5, Op::Response, b""), Shape::One);
    guest.queue(&packet(port, 5, Op::Data, b"data"), Shape::One);
    guest.kick_tx();
    let mut line = [0; 7];
    ours.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ok\ndata");
}

#[test]
fn the_host_ends_its_half_first() {
    let mut guest = Guest::ready();
    let (mut host, port) = open(&mut guest, 1);
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    guest.wait();
    let packets = guest.take();
    assert_eq!(packets.iter().map(Packet::op).collect::<Vec<_>>(), [Op::Data, Op::Shutdown]);
    assert_eq!(packets[1].header.flags, 2);
    // The other half still works, and ends when the guest says so.
    guest.send(&packet(port, 1, Op::Data, b"reply"));
    let mut shutdown = packet(port, 1, Op::Shutdown, b"");
    shutdown.header.flags = 3;
    guest.send(&shutdown);
    let mut reply = String::new();
    host.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "reply");
    assert_eq!(guest.take_one().op(), Op::Reset);
    assert_eq!(guest.handle.stats().connections_closed, 1);
}

#[test]
fn the_guest_ends_its_half_first() {
    let mut guest = Guest::ready();
    let (mut host, port) = open(&mut guest, 1);
    guest.send(&packet(port, 1, Op::Data, b"all of it"));
    let mut shutdown = packet(port, 1, Op::Shutdown, b"");
    shutdown.header.flags = 2;
    guest.send(&shutdown);
    let mut all = String::new();
    host.read_to_string(&mut all).unwrap();
    assert_eq!(all, "all of it");
    host.write_all(b"thanks").unwrap();
    guest.wait();
    assert_eq!(guest.take_one().payload, b"thanks");
    drop(host);
    guest.wait();
    let end = guest.take_one();
    assert_eq!((end.op(), end.header.flags), (Op::Shutdown, 3));
    guest.send(&packet(port, 1, Op::Reset, b""));
    assert_eq!(guest.handle.stats().connections_closed, 1);
    assert!(guest.take().is_empty(), "a reset is not answered");
}

#[test]
fn a_guest_that_takes_no_more_stops_the_hosts_writers() {
    let mut guest = Guest::ready();
    let (mut host, port) = open(&mut guest, 1);
    let mut shutdown = packet(port, 1, Op::Shutdown, b"");
    shutdown.header.flags = 1;
    guest.send(&shutdown);
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send(&packet(port, 1, Op::Data, b"still talking"));
    let mut heard = [0; 13];
    host.read_exact(&mut heard).unwrap();
    drop(host);
    guest.wait();
    let end = guest.take_one();
    assert_eq!((end.op(), end.header.flags), (Op::Shutdown, 3));
}

#[test]
fn a_closed_host_stream_silences_the_guest_and_then_ends() {
    let mut guest = quick();
    let (host, port) = open(&mut guest, 1);
    drop(host);
    guest.wait();
    let end = guest.take_one();
    assert_eq!((end.op(), end.header.flags), (Op::Shutdown, 3));
    // Late data is swallowed, not a violation.
    guest.send(&packet(port, 1, Op::Data, b"late"));
    assert!(guest.take().is_empty());
    // The guest never answers, so the device ends it.
    while guest.device.open_connections() > 0 {
        guest.wait();
    }
    assert_eq!(guest.take_one().op(), Op::Reset);
}

#[test]
fn bytes_of_a_departed_host_arrive_while_the_guest_takes_them() {
    let mut guest = quick();
    let (mut host, port) = open(&mut guest, 1);
    // The guest's buffer is 64 KiB; 96 KiB are on their way when the host leaves.
    let data = vec![7u8; 96 * 1024];
    host.set_nonblocking(false).unwrap();
    host.write_all(&data).unwrap();
    drop(host);
    let mut got = 0u32;
    let mut ops = Vec::new();
    guest.wait();
    for _ in 0..200 {
        for p in guest.take() {
            got += p.header.len;
            ops.push((p.op(), p.header.flags));
        }
        let mut update = packet(port, 1, Op::CreditUpdate, b"");
        update.header.fwd_cnt = got;
        guest.send(&update);
        if got as usize == data.len() && ops.last() == Some(&(Op::Shutdown, 3)) {
            return;
        }
        guest.settle();
    }
    panic!("{got} bytes, {:?}", ops.last());
}

#[test]
fn bytes_of_a_departed_host_are_dropped_when_the_guest_takes_none() {
    let mut guest = quick();
    let (mut host, _port) = open(&mut guest, 1);
    host.set_nonblocking(false).unwrap();
    host.write_all(&vec![7u8; 96 * 1024]).unwrap();
    drop(host);
    guest.wait();
    guest.take();
    // Only the linger time can end it now.
    while guest.device.open_connections() > 0 {
        guest.wait();
    }
    assert_eq!(guest.take().last().map(Packet::op), Some(Op::Reset));
}

#[test]
fn the_guest_may_connect_only_where_someone_listens() {
    let mut guest = Guest::ready();
    guest.send(&packet(1025, 3000, Op::Request, b""));
    assert_eq!(guest.take_one().op(), Op::Reset);

    let (sender, streams) = channel();
    guest.handle.listen(1025, move |stream| sender.send(stream).unwrap());
    guest.settle();
    guest.send(&packet(1025, 3000, Op::Request, b""));
    let response = guest.take_one();
    assert_eq!((response.op(), response.header.src_port, response.header.dst_port), (Op::Response, 1025, 3000));
    assert_eq!(response.header.buf_alloc, 256 * 1024);
    let mut host: UnixStream = streams.try_recv().unwrap();
    guest.send(&packet(1025, 3000, Op::Data, b"ready"));
    let mut word = [0; 5];
    host.read_exact(&mut word).unwrap();
    host.write_all(b"go").unwrap();
    guest.wait();
    assert_eq!(guest.take_one().payload, b"go");

    guest.handle.unlisten(1025);
    guest.settle();
    guest.send(&packet(1025, 3001, Op::Request, b""));
    assert_eq!(guest.take_one().op(), Op::Reset);
    assert_eq!(guest.handle.stats().guest_connects_refused, 2);
}

#[test]
fn a_second_request_on_an_open_connection_ends_it() {
    let mut guest = Guest::ready();
    let (sender, streams) = channel();
    guest.handle.listen(1025, move |stream| sender.send(stream).unwrap());
    guest.settle();
    guest.send(&packet(1025, 3000, Op::Request, b""));
    guest.send(&packet(1025, 3000, Op::Request, b""));
    assert_eq!(guest.take().iter().map(Packet::op).collect::<Vec<_>>(), [Op::Response, Op::Reset]);
    let mut host: UnixStream = streams.try_recv().unwrap();
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn connections_have_a_limit() {
    let config = VsockConfig { max_connections: 3, max_guest_connections: 1, ..VsockConfig::new(CID) };
    let mut guest = Guest::with(config, true);
    guest.supply(usize::MAX);
    let (sender, streams) = channel();
    guest.handle.listen(1025, move |stream| sender.send(stream).unwrap());
    guest.settle();
    guest.send(&packet(1025, 1, Op::Request, b""));
    guest.send(&packet(1025, 2, Op::Request, b""));
    assert_eq!(guest.take().iter().map(Packet::op).collect::<Vec<_>>(), [Op::Response, Op::Reset]);
    let _first = open(&mut guest, 10);
    let second = open(&mut guest, 11);
    let (_, outcome) = start_connect(&mut guest, 12);
    assert_eq!(outcome.try_recv(), Ok(ConnectOutcome::LimitReached));
    // A place that is given up is free again.
    guest.send(&packet(second.1, 11, Op::Reset, b""));
    let _third = open(&mut guest, 12);
    drop(streams);
}

#[test]
fn a_reboot_ends_connections_but_delivers_what_was_sent() {
    let mut guest = Guest::ready();
    let (mut host, port) = open(&mut guest, 1);
    let (_waiting, outcome) = start_connect(&mut guest, 2);
    // More than the socket takes, so that some waits in the device.
    let chunk = vec![3u8; 32 * 1024];
    for _ in 0..8 {
        guest.send(&packet(port, 1, Op::Data, &chunk));
    }
    guest.reboot();
    assert_eq!(outcome.try_recv(), Ok(ConnectOutcome::Reset));
    let mut got = 0;
    loop {
        match host.read(&mut [0; 65536]) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => guest.wait(),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(got, 8 * chunk.len());
    // The rebooted guest uses the device as before.
    guest.supply(usize::MAX);
    let (_host, _port) = open(&mut guest, 1);
}

#[test]
fn a_device_that_ends_answers_everyone() {
    let mut guest = Guest::ready();
    let (mut host, _port) = open(&mut guest, 1);
    let (_stream, outcome) = start_connect(&mut guest, 2);
    let handle = guest.handle.clone();
    drop(guest);
    assert_eq!(outcome.try_recv(), Ok(ConnectOutcome::Reset));
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    let (sender, late) = channel();
    handle.connect(1, UnixStream::pair().unwrap().0, move |outcome, _| sender.send(outcome).unwrap());
    assert_eq!(late.try_recv(), Ok(ConnectOutcome::Reset));
}

#[test]
fn host_ports_go_round() {
    let state = VsockState { version: 1, guest_cid: CID, next_host_port: LAST_HOST_PORT };
    let (device, handle) = VsockDevice::restore(config(), &state).unwrap();
    let mut guest = Guest::around(device, handle, true);
    guest.device.reset();
    guest.supply(usize::MAX);
    let (_a, last) = open(&mut guest, 1);
    let (_b, first) = open(&mut guest, 1);
    assert_eq!((last, first), (LAST_HOST_PORT, FIRST_HOST_PORT));
    assert_eq!(guest.device.save().next_host_port, FIRST_HOST_PORT + 1);
}

#[test]
fn a_restored_guest_hears_of_the_reset_before_anything_else() {
    let saved = serde_json::to_string(&Guest::ready().device.save()).unwrap();
    let state: VsockState = serde_json::from_str(&saved).unwrap();
    let (device, handle) = VsockDevice::restore(config(), &state).unwrap();
    let mut guest = Guest::around(device, handle, true);
    guest.supply(usize::MAX);
    let (_stream, _outcome) = start_connect(&mut guest, 1);
    assert!(guest.take().is_empty(), "held back until the event is taken");
    guest.event_ring.post(&guest.mem, &[8], true);
    guest.event_ring.post(&guest.mem, &[8], true);
    assert!(guest.kick_event().event);
    let events = guest.event_ring.reap(&guest.mem);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].1, 4);
    guest.kick_rx();
    assert!(guest.take().is_empty(), "held back until the guest gives the buffer back");
    assert_eq!(guest.event_ring.avail_event(&guest.mem), guest.event_ring.next_avail(), "and it will kick");
    guest.event_ring.post(&guest.mem, &[8], true);
    let _ = guest.kick_event();
    assert_eq!(guest.take_one().op(), Op::Request);
}

#[test]
fn a_running_guest_can_be_told_of_a_reset() {
    let mut guest = Guest::ready();
    guest.event_ring.post(&guest.mem, &[8], true);
    let (mut host, _port) = open(&mut guest, 1);
    guest.device.reset_transport();
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    let _ = guest.kick_event();
    assert_eq!(guest.event_ring.reap(&guest.mem).len(), 1);
}

#[test]
fn impossible_states_and_ids_are_refused() {
    for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        assert!(matches!(VsockDevice::new(VsockConfig::new(cid)), Err(VsockError::InvalidCid(found)) if found == cid));
    }
    let good = VsockState { version: 1, guest_cid: CID, next_host_port: FIRST_HOST_PORT };
    assert!(VsockDevice::restore(config(), &good).is_ok());
    let bad = VsockState { version: 2, ..good.clone() };
    assert!(matches!(VsockDevice::restore(config(), &bad), Err(VsockError::StateVersion { found: 2, expected: 1 })));
    let bad = VsockState { next_host_port: 80, ..good.clone() };
    assert!(matches!(VsockDevice::restore(config(), &bad), Err(VsockError::StateDamaged(_))));
    let bad = VsockState { guest_cid: 1, ..good };
    assert!(matches!(VsockDevice::restore(config(), &bad), Err(VsockError::InvalidCid(1))));
}

#[test]
fn the_configuration_space_holds_the_cid() {
    let guest = Guest::new();
    let mut data = [0xff; 12];
    guest.device.read_config(0, &mut data);
    assert_eq!(data, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    guest.device.read_config(u64::MAX, &mut data[..1]);
    assert_eq!(data[0], 0);
}
