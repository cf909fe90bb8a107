//! A guest of the virtio socket device that does whatever the input says: proper packets, raw headers,
//! descriptors and ring indexes of any content, while the host opens, uses and closes streams.
//!
//! The device may answer or report a broken ring, after which the driver resets it. It must not panic,
//! and what it holds must stay within its limits.
#![no_main]

mod input;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use input::Input;
use libfuzzer_sys::fuzz_target;
use pyro_vmm::vsock::{HEADER_LEN, Header, VsockConfig, VsockDevice, VsockHandle, VsockQueues};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CID: u64 = 3;
const RING: u16 = 16;
const MEMORY: usize = 1 << 20;
const LIMIT: usize = 6;
const LISTENER: u32 = 1025;
const FIRST_HOST_PORT: u32 = 1 << 30;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut guest = Guest::new();
    while let Some(action) = input.byte() {
        guest.step(action, &mut input);
        assert!(guest.device.open_connections() <= LIMIT);
    }
});

/// One ring, with a fixed buffer per descriptor.
struct Ring {
    base: u64,
    heap: u64,
    avail: u16,
}

impl Ring {
    fn new(index: u64) -> Ring {
        Ring {
            base: index * 0x4000,
            heap: 0x2_0000 + index * 0x4_0000,
            avail: 0,
        }
    }

    fn queue(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(RING).unwrap();
        queue.set_desc_table_address(Some(self.base as u32), None);
        queue.set_avail_ring_address(Some(self.base as u32 + 0x1000), None);
        queue.set_used_ring_address(Some(self.base as u32 + 0x2000), None);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    fn describe(&self, mem: &GuestMemoryMmap, id: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + u64::from(id % RING) * 16;
        let mut wire = [0; 16];
        wire[..8].copy_from_slice(&addr.to_le_bytes());
        wire[8..12].copy_from_slice(&len.to_le_bytes());
        wire[12..14].copy_from_slice(&flags.to_le_bytes());
        wire[14..].copy_from_slice(&next.to_le_bytes());
        mem.write_slice(&wire, GuestAddress(at)).unwrap();
    }

    fn publish(&mut self, mem: &GuestMemoryMmap, head: u16) {
        let slot = self.base + 0x1004 + u64::from(self.avail % RING) * 2;
        mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_index(mem, self.avail);
    }

    fn set_index(&self, mem: &GuestMemoryMmap, index: u16) {
        mem.write_obj(index, GuestAddress(self.base + 0x1002))
            .unwrap();
    }

    fn buffer(&self, id: u16) -> u64 {
        self.heap + u64::from(id % RING) * 0x4000
    }
}

struct Guest {
    mem: GuestMemoryMmap,
    rings: [Ring; 3],
    queues: [Queue; 3],
    device: VsockDevice,
    handle: VsockHandle,
    hosts: Vec<UnixStream>,
}

impl Guest {
    fn new() -> Guest {
        let config = VsockConfig {
            buf_alloc: 4096,
            max_connections: LIMIT,
            max_guest_connections: 3,
            ..VsockConfig::new(CID)
        };
        let (device, handle) = VsockDevice::new(config).unwrap();
        handle.listen(LISTENER, |stream| drop(stream.set_nonblocking(true)));
        let rings = [Ring::new(0), Ring::new(1), Ring::new(2)];
        let queues = [
            rings[0].queue(true),
            rings[1].queue(true),
            rings[2].queue(true),
        ];
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Guest {
            mem,
            rings,
            queues,
            device,
            handle,
            hosts: Vec::new(),
        }
    }

    fn step(&mut self, action: u8, input: &mut Input) {
        match action % 12 {
            0 | 1 => self.send(proper(input), usize::from(input.byte().unwrap_or(0)) * 16),
            2 => {
                let mut wire = [0; HEADER_LEN];
                wire.fill_with(|| input.byte().unwrap_or(0));
                self.send(
                    Header::decode(&wire),
                    usize::from(input.byte().unwrap_or(0)),
                );
            }
            3 => {
                for _ in 0..=input.byte().unwrap_or(0) % 8 {
                    let id = self.rings[0].avail;
                    let len = 40 + input.number::<2>() as u32 % 4096;
                    let ring = &mut self.rings[0];
                    ring.describe(&self.mem, id, ring.buffer(id), len, 2, 0);
                    ring.publish(&self.mem, id % RING);
                }
            }
            4 => {
                let ring = &self.rings[usize::from(input.byte().unwrap_or(0) % 3)];
                let (id, next) = (input.number::<1>() as u16, input.number::<1>() as u16 % 20);
                let (addr, len) = (input.number::<3>(), input.number::<2>() as u32);
                ring.describe(
                    &self.mem,
                    id,
                    addr,
                    len,
                    input.number::<1>() as u16 % 8,
                    next,
                );
            }
            5 => self.rings[usize::from(input.byte().unwrap_or(0) % 3)]
                .publish(&self.mem, input.number::<1>() as u16 % 20),
            6 => self.rings[usize::from(input.byte().unwrap_or(0) % 3)]
                .set_index(&self.mem, input.number::<2>() as u16),
            7 => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                self.handle.connect(1, theirs, |_, _| {});
                self.hosts.push(ours);
                // Those beyond the device's limit are refused, not kept.
                if self.hosts.len() > 2 * LIMIT {
                    self.hosts.remove(0);
                }
            }
            8 => {
                if let Some(mut host) = self.hosts.last() {
                    let _ = host.write(&vec![7; input.number::<2>() as usize]);
                }
            }
            9 => {
                if let Some(mut host) = self.hosts.last() {
                    let _ = host.read(&mut vec![0; input.number::<2>() as usize]);
                }
            }
            10 => {
                let at = usize::from(input.byte().unwrap_or(0));
                match at % 4 {
                    0 => drop(self.hosts.pop()),
                    1 => drop(self.hosts.last().map(|h| h.shutdown(Shutdown::Write))),
                    2 => drop(self.hosts.last().map(|h| h.shutdown(Shutdown::Read))),
                    _ => {
                        let turn = usize::from(!self.hosts.is_empty());
                        self.hosts.rotate_left(turn);
                    }
                }
            }
            _ => match input.byte().unwrap_or(0) % 4 {
                0 => self.device.reset_transport(),
                1 => self.reset(),
                _ => {}
            },
        }
        self.run();
    }

    fn send(&mut self, header: Header, room: usize) {
        let ring = &mut self.rings[1];
        let id = ring.avail;
        self.mem
            .write_slice(&header.encode(), GuestAddress(ring.buffer(id)))
            .unwrap();
        ring.describe(
            &self.mem,
            id,
            ring.buffer(id),
            (HEADER_LEN + room) as u32,
            0,
            0,
        );
        ring.publish(&self.mem, id % RING);
    }

    /// Kicks every queue and serves the host.
    fn run(&mut self) {
        for call in 0..4 {
            let [rx, tx, event] = &mut self.queues;
            let queues = VsockQueues {
                rx,
                tx,
                event: Some(event),
            };
            let result = match call {
                0 => self.device.handle_host_events(&self.mem, queues),
                1 => self.device.handle_tx_kick(&self.mem, queues),
                2 => self.device.handle_rx_kick(&self.mem, queues),
                _ => self.device.handle_event_kick(&self.mem, queues),
            };
            if result.is_err() {
                self.reset();
            }
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.rings = [Ring::new(0), Ring::new(1), Ring::new(2)];
        for (queue, ring) in self.queues.iter_mut().zip(&self.rings) {
            self.mem
                .write_slice(&[0; 0x3000], GuestAddress(ring.base))
                .unwrap();
            *queue = ring.queue(true);
        }
    }
}

/// A header whose fields are mostly those of a connection that may exist.
fn proper(input: &mut Input) -> Header {
    let ports = input.byte().unwrap_or(0);
    let (src_port, dst_port) = if ports & 8 == 0 {
        (1, FIRST_HOST_PORT + u32::from(ports & 7))
    } else {
        (u32::from(ports & 7), LISTENER)
    };
    let credit = input.byte().unwrap_or(0);
    Header {
        src_cid: CID,
        dst_cid: 2,
        src_port,
        dst_port,
        len: input.number::<2>() as u32 % 4200,
        kind: 1,
        op: u16::from(input.byte().unwrap_or(0) % 9),
        flags: u32::from(input.byte().unwrap_or(0) % 4),
        buf_alloc: u32::from(credit >> 4) << 10,
        fwd_cnt: u32::from(credit & 15) << 8,
    }
}
