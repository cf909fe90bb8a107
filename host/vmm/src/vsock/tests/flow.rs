//! Flow control, fairness and notifications.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use virtio_queue::{Queue, QueueT};
use virtio_vsock::packet::VsockPacket;
use vm_memory::GuestMemoryMmap;

use super::driver::*;
use crate::vsock::{Op, VsockConfig};

#[test]
fn the_device_keeps_to_the_guests_credit() {
    let mut guest = Guest::ready();
    let (mut host, port) = open(&mut guest, 1);
    let mut written = 0;
    while let Ok(count) = host.write(&[1; 8192]) {
        written += count;
    }
    assert!(written > 64 * 1024);
    guest.settle();
    let sent: u32 = guest.take().iter().map(|p| p.header.len).sum();
    assert_eq!(sent, 64 * 1024, "exactly the guest's buffer");
    assert_eq!(guest.handle.stats().credit_starved, 1);

    // The blocked stream costs nothing while it waits.
    assert!(!guest.host_event_within(Duration::from_millis(10)));

    let mut update = packet(port, 1, Op::CreditUpdate, b"");
    update.header.fwd_cnt = 1000;
    guest.send(&update);
    let sent: u32 = guest.take().iter().map(|p| p.header.len).sum();
    assert_eq!(sent, 1000);
}

#[test]
fn a_slow_host_reader_holds_up_nobody() {
    let mut guest = Guest::ready();
    let (mut slow, slow_port) = open(&mut guest, 1);
    let (mut quick, quick_port) = open(&mut guest, 2);
    let chunk = vec![5; 16 * 1024];
    // All the credit there is, though the host reads nothing.
    for _ in 0..16 {
        guest.send(&packet(slow_port, 1, Op::Data, &chunk));
    }
    guest.send(&packet(quick_port, 2, Op::Data, b"through"));
    let mut word = [0; 7];
    quick.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"through");

    // One byte more than credited ends the slow one, and only that.
    assert_eq!(guest.handle.stats().protocol_errors, 0);
    // The socket itself has taken some, so credit is left; use it up and overrun it.
    loop {
        guest.send(&packet(slow_port, 1, Op::Data, &chunk));
        if guest.take().iter().any(|p| p.op() == Op::Reset) {
            break;
        }
    }
    assert_eq!(guest.handle.stats().protocol_errors, 1);
    guest.send(&packet(quick_port, 2, Op::Data, b"again"));
    quick.read_exact(&mut word[..5]).unwrap();
    drop(slow.read(&mut [0; 1]));
}

#[test]
fn the_guest_hears_of_room_before_it_runs_out() {
    let mut guest = Guest::ready();
    let (mut host, port) = open(&mut guest, 1);
    let chunk = vec![9; 32 * 1024];
    let mut sink = vec![0; 32 * 1024];
    let mut updates = 0;
    for _ in 0..64 {
        guest.send(&packet(port, 1, Op::Data, &chunk));
        host.read_exact(&mut sink).unwrap();
        guest.settle();
        updates += guest.take().iter().filter(|p| p.op() == Op::CreditUpdate).count();
    }
    // The guest of these tests has 64 KiB itself, and Linux sends no more at once than that.
    assert_eq!(updates, 64 * 32 / 32, "one per half window");
}

#[test]
fn a_guest_that_caps_its_window_never_stalls() {
    for own_buffer in [1u32, 4096, 64 * 1024, 1 << 30] {
        let mut guest = Guest::with(VsockConfig { buf_alloc: 1 << 20, ..VsockConfig::new(CID) }, true);
        guest.supply(usize::MAX);
        let (mut host, port) = open(&mut guest, 1);
        let (mut sent, mut room) = (0u32, (1u32 << 20, 0u32));
        for _ in 0..100 {
            let free = own_buffer.min(room.0) - sent.wrapping_sub(room.1);
            assert!(free > 0, "stalled with a buffer of {own_buffer}");
            let len = free.min(32 * 1024);
            let mut data = packet(port, 1, Op::Data, &vec![1; len as usize]);
            data.header.buf_alloc = own_buffer;
            guest.send(&data);
            sent += len;
            host.read_exact(&mut vec![0; len as usize]).unwrap();
            guest.settle();
            for told in guest.take() {
                room = (told.header.buf_alloc, told.header.fwd_cnt);
            }
        }
    }
}

#[test]
fn a_question_about_credit_is_answered() {
    let mut guest = Guest::ready();
    let (_host, port) = open(&mut guest, 1);
    guest.send(&packet(port, 1, Op::Data, b"12345"));
    guest.send(&packet(port, 1, Op::CreditRequest, b""));
    let answer = guest.take_one();
    assert_eq!((answer.op(), answer.header.fwd_cnt, answer.header.buf_alloc), (Op::CreditUpdate, 5, 256 * 1024));
}

#[test]
fn what_the_host_did_not_take_follows_in_order() {
    let mut guest = Guest::ready();
    let (mut host, port) = open(&mut guest, 1);
    let data: Vec<u8> = (0..240 * 1024u32).map(|i| (i % 251) as u8).collect();
    for chunk in data.chunks(24 * 1024) {
        guest.send(&packet(port, 1, Op::Data, chunk));
    }
    let mut shutdown = packet(port, 1, Op::Shutdown, b"");
    shutdown.header.flags = 3;
    guest.send(&shutdown);
    assert_eq!(guest.take().last().map(Packet::op), Some(Op::Reset), "the guest is let go at once");
    let mut got: Vec<u8> = Vec::new();
    loop {
        let mut buffer = [0; 7000];
        match host.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => got.extend(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => guest.wait(),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(got == data);
    assert_eq!(guest.device.open_connections(), 0);
}

#[test]
fn no_receive_buffers_means_no_work_until_there_are() {
    for event_idx in [true, false] {
        let mut guest = Guest::with(VsockConfig::new(CID), event_idx);
        guest.supply(1);
        let (mut host, _port) = open(&mut guest, 1);
        guest.take();
        // `open` has posted one buffer again; use it up.
        host.write_all(&[1; 6000]).unwrap();
        guest.wait();
        assert_eq!(guest.take_keeping().len(), 1);
        assert!(!guest.host_event_within(Duration::from_millis(10)), "no busy loop");
        assert_eq!(guest.handle.stats().rx_starved, 1);
        guest.supply(2);
        guest.kick_rx();
        let rest: u32 = guest.take().iter().map(|p| p.header.len).sum();
        assert_eq!(rest, 6000 - (4096 - 44));
    }
}

#[test]
fn large_reads_fill_many_buffers_at_once_and_notify_once() {
    let mut guest = Guest::ready();
    let (mut host, _port) = open(&mut guest, 1);
    let before = guest.notified.0;
    guest.rx_ring.want_notification(&guest.mem);
    host.write_all(&[1; 60 * 1024]).unwrap();
    guest.wait();
    assert_eq!(guest.take().iter().map(|p| p.header.len).sum::<u32>(), 60 * 1024);
    assert_eq!(guest.notified.0, before + 1);
}

/// The kernel ends a read early at a message that carried descriptors. That is not an empty stream.
#[test]
fn a_descriptor_on_the_way_does_not_hold_up_bytes() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut guest = Guest::ready();
    let (mut host, _port) = open(&mut guest, 1);
    let gift = std::fs::File::open("/dev/null").unwrap();
    let fds = [std::os::fd::AsFd::as_fd(&gift)];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let first = [std::io::IoSlice::new(b"with a descriptor, ")];
    sendmsg(&host, &first, &mut control, SendFlags::empty()).unwrap();
    host.write_all(b"and without").unwrap();
    guest.wait();
    let got: Vec<u8> = guest.take().into_iter().flat_map(|p| p.payload).collect();
    assert_eq!(got, b"with a descriptor, and without");
}

#[test]
fn streams_take_turns() {
    let mut guest = Guest::ready();
    guest.rx_shape = vec![16 * 1024];
    let mut hosts: Vec<_> = (1..=4).map(|port| open(&mut guest, port)).collect();
    guest.take();
    for (host, _) in &mut hosts {
        // More than one turn's worth for each.
        while host.write(&[1; 8192]).is_ok() {}
    }
    guest.settle();
    let mut first_seen: Vec<u32> = Vec::new();
    let mut total = [0u32; 5];
    for p in guest.take() {
        total[p.header.dst_port as usize] += p.header.len;
        if !first_seen.contains(&p.header.dst_port) {
            first_seen.push(p.header.dst_port);
        }
    }
    assert_eq!(first_seen.len(), 4, "everyone had a turn: {total:?}");
}

#[test]
fn the_driver_decides_about_notifications() {
    // With event indexes: only when the named entry is passed.
    let mut guest = Guest::ready();
    let (mut host, _port) = open(&mut guest, 1);
    guest.rx_ring.write_used_event(&guest.mem, 1000);
    host.write_all(b"quiet").unwrap();
    let before = guest.notified.0;
    guest.wait();
    assert_eq!((guest.take().len(), guest.notified.0), (1, before));

    // Without: unless the flag forbids it.
    let mut guest = Guest::with(VsockConfig::new(CID), false);
    guest.supply(usize::MAX);
    let (mut host, _port) = open(&mut guest, 1);
    let before = guest.notified.0;
    host.write_all(b"loud").unwrap();
    guest.wait();
    assert_eq!((guest.take().len(), guest.notified.0), (1, before + 1));
    guest.rx_ring.write_avail_flags(&guest.mem, 1);
    host.write_all(b"quiet").unwrap();
    guest.wait();
    assert_eq!((guest.take().len(), guest.notified.0), (1, before + 1));
}

#[test]
fn packets_may_be_cut_anywhere() {
    for shape in [Shape::One, Shape::Two, Shape::Pieces(1), Shape::Pieces(7), Shape::Pieces(43), Shape::Pieces(45)] {
        let mut guest = Guest::ready();
        let (mut host, port) = open(&mut guest, 1);
        let payload = b"cut me";
        assert!(guest.queue(&packet(port, 1, Op::Data, payload), shape));
        guest.kick_tx();
        let mut got = [0; 6];
        host.read_exact(&mut got).unwrap_or_else(|e| panic!("{shape:?}: {e}"));
        assert_eq!(&got, payload);
    }
    for rx_shape in [vec![44, 4096], vec![10, 34, 100, 3000], vec![43, 2], vec![45]] {
        let mut guest = Guest::new();
        guest.rx_shape = rx_shape;
        guest.supply(usize::MAX);
        let (mut host, _port) = open(&mut guest, 1);
        host.write_all(b"cut me").unwrap();
        guest.wait();
        let mut got = Vec::new();
        while got.len() < 6 {
            let packets = guest.take();
            assert!(!packets.is_empty());
            got.extend(packets.into_iter().flat_map(|p| p.payload));
            guest.kick_rx();
        }
        assert_eq!(got, b"cut me");
    }
}

/// What the device writes is read the same way by rust-vmm's own packet parser.
#[test]
fn another_parser_agrees() {
    let mut guest = Guest::ready();
    let (mut host, port) = open(&mut guest, 77);
    host.write_all(b"payload").unwrap();
    guest.wait();
    let ours = guest.take_keeping().remove(0);
    // Put the same bytes on a tx ring and let the other parser take them off.
    assert!(guest.queue(&ours, Shape::Two));
    let mut queue: Queue = guest.tx_queue();
    let mem: &GuestMemoryMmap = &guest.mem;
    let mut chain = queue.pop_descriptor_chain(mem).unwrap();
    let theirs = VsockPacket::from_tx_virtq_chain(mem, &mut chain, 65536).unwrap();
    assert_eq!((theirs.src_cid(), theirs.dst_cid(), theirs.src_port(), theirs.dst_port()), (2, CID, port, 77));
    assert_eq!((theirs.op(), theirs.type_(), theirs.len(), theirs.buf_alloc()), (5, 1, 7, 256 * 1024));
}
