use std::os::unix::fs::FileExt;
use std::time::Duration;

use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;

use super::super::interrupt::Interrupt;
use std::fs::File;

use super::*;

const WRITABLE: u16 = 2;
const NEXT: u16 = 1;

struct Rig {
    block: Block,
    ram: GuestRam,
    interrupt: Arc<Interrupt>,
    line: EventFd,
    file: File,
    event: Arc<EventFd>,
}

fn rig(sectors: u64, read_only: bool) -> Rig {
    let file = tempfile::tempfile().unwrap();
    file.set_len(sectors * SECTOR).unwrap();
    let event = Arc::new(EventFd::new(0).unwrap());
    let disk = Disk {
        image: Image::raw(file.try_clone().unwrap()),
        sectors,
        read_only,
        durable: true,
        serial: *b"pyro-disk-0000000000",
    };
    let block = Block::new("blk", disk, event.clone(), Arc::default(), Arc::new(|| true)).unwrap();
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let interrupt = Arc::new(Interrupt::new(line.try_clone().unwrap()));
    Rig { block, ram: crate::memory::allocate(8 << 20).unwrap(), interrupt, line, file, event }
}

impl Rig {
    /// Puts one chain on a fresh queue, lets the device serve it, and returns (used length,
    /// status byte) or nothing if the device broke.
    fn run(&mut self, chain: &[(u64, u32, bool)]) -> Option<(u32, u8)> {
        let descriptors: Vec<RawDescriptor> = chain
            .iter()
            .enumerate()
            .map(|(index, (addr, len, write))| {
                let mut flags = if *write { WRITABLE } else { 0 };
                if index + 1 < chain.len() {
                    flags |= NEXT;
                }
                RawDescriptor::from(Descriptor::new(*addr, *len, flags, index as u16 + 1))
            })
            .collect();
        let mock = MockSplitQueue::create(&self.ram, GuestAddress(0x10_0000), 16);
        mock.build_multiple_desc_chains(&descriptors).unwrap();
        let queue: Queue = mock.create_queue().unwrap();
        let activation = Activation {
            ram: self.ram.clone(),
            queues: vec![Arc::new(Mutex::new(queue))],
            interrupt: self.interrupt.clone(),
            features: self.block.features(),
        };
        self.block.activate(activation);
        let _ = self.event.write(1);
        for _ in 0..2000 {
            if u16::from_le(mock.used().idx().load()) == 1 {
                self.block.reset();
                let len = u32::from_le(mock.used().ring().ref_at(0).unwrap().load().len());
                let status = chain.last().map(|(addr, len, _)| addr + u64::from(*len) - 1).unwrap();
                return Some((len, self.ram.read_obj(GuestAddress(status)).unwrap()));
            }
            if self.interrupt.is_broken() {
                self.block.reset();
                self.interrupt.reset();
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the device did nothing");
    }

    fn header(&self, kind: u32, sector: u64) -> (u64, u32, bool) {
        self.ram.write_obj(kind, GuestAddress(0x1000)).unwrap();
        self.ram.write_obj(sector, GuestAddress(0x1008)).unwrap();
        (0x1000, 16, false)
    }
}

const STATUS: (u64, u32, bool) = (0x9000, 1, true);

#[test]
fn writes_reach_the_image_and_reads_come_back() {
    let mut rig = rig(64, false);
    rig.ram.write_slice(&[7; 1024], GuestAddress(0x2000)).unwrap();
    let header = rig.header(request::WRITE, 3);
    assert_eq!(rig.run(&[header, (0x2000, 1024, false), STATUS]), Some((1, STATUS_OK)));
    assert!(rig.line.read().unwrap() > 0);
    let mut seen = [0; 1025];
    rig.file.read_exact_at(&mut seen, 3 * SECTOR).unwrap();
    assert_eq!((seen[0], seen[1023], seen[1024]), (7, 7, 0));
    let header = rig.header(request::READ, 4);
    assert_eq!(rig.run(&[header, (0x3000, 512, true), STATUS]), Some((513, STATUS_OK)));
    assert_eq!(rig.ram.read_obj::<u8>(GuestAddress(0x31ff)).unwrap(), 7);
    let header = rig.header(request::FLUSH, 0);
    assert_eq!(rig.run(&[header, STATUS]), Some((1, STATUS_OK)));
    let header = rig.header(request::GET_ID, 0);
    assert_eq!(rig.run(&[header, (0x3000, 20, true), STATUS]), Some((21, STATUS_OK)));
    assert_eq!(rig.ram.read_obj::<u8>(GuestAddress(0x3000)).unwrap(), b'p');
}

#[test]
fn what_is_outside_the_disk_is_an_error_and_not_a_longer_disk() {
    let mut rig = rig(64, false);
    for sector in [63, 64, u64::MAX, u64::MAX / 512] {
        for (kind, write) in [(request::WRITE, false), (request::READ, true)] {
            let header = rig.header(kind, sector);
            assert_eq!(rig.run(&[header, (0x2000, 1024, write), STATUS]), Some((1, STATUS_ERROR)));
        }
    }
    let header = rig.header(request::READ, 0);
    assert_eq!(rig.run(&[header, (0x2000, 100, true), STATUS]), Some((1, STATUS_ERROR)));
    assert_eq!(rig.file.metadata().unwrap().len(), 64 * SECTOR);
}

#[test]
fn read_only_disks_take_no_writes() {
    let mut rig = rig(64, true);
    assert_ne!(rig.block.features() & feature::RO, 0);
    let header = rig.header(request::WRITE, 0);
    assert_eq!(rig.run(&[header, (0x2000, 512, false), STATUS]), Some((1, STATUS_ERROR)));
    rig.ram.write_obj(0u64, GuestAddress(0x2000)).unwrap();
    rig.ram.write_obj(8u64, GuestAddress(0x2008)).unwrap();
    for kind in [request::DISCARD, request::WRITE_ZEROES] {
        let header = rig.header(kind, 0);
        assert_eq!(rig.run(&[header, (0x2000, 16, false), STATUS]), Some((1, STATUS_ERROR)));
    }
    let header = rig.header(99, 0);
    assert_eq!(rig.run(&[header, STATUS]), Some((1, STATUS_UNSUPPORTED)));
}

#[test]
fn discard_and_write_zeroes_clear_what_they_name_and_nothing_else() {
    for kind in [request::DISCARD, request::WRITE_ZEROES] {
        let mut rig = rig(64, false);
        rig.file.write_all_at(&[9; 64 * 512], 0).unwrap();
        rig.ram.write_obj(8u64, GuestAddress(0x2000)).unwrap();
        rig.ram.write_obj(8u64, GuestAddress(0x2008)).unwrap();
        let header = rig.header(kind, 0);
        assert_eq!(rig.run(&[header, (0x2000, 16, false), STATUS]), Some((1, STATUS_OK)));
        let mut seen = vec![0; 64 * 512];
        rig.file.read_exact_at(&mut seen, 0).unwrap();
        let range = 8 * 512..16 * 512;
        assert!(seen[range.clone()].iter().all(|byte| *byte == 0));
        assert!(seen.iter().enumerate().all(|(at, byte)| range.contains(&at) || *byte == 9));
        // Past the end, unknown flags, ragged list.
        rig.ram.write_obj(60u64, GuestAddress(0x2000)).unwrap();
        assert_eq!(rig.run(&[header, (0x2000, 16, false), STATUS]), Some((1, STATUS_ERROR)));
        rig.ram.write_obj(0x8_0000_0008u64, GuestAddress(0x2008)).unwrap();
        assert_eq!(rig.run(&[header, (0x2000, 16, false), STATUS]), Some((1, STATUS_UNSUPPORTED)));
        assert_eq!(rig.run(&[header, (0x2000, 15, false), STATUS]), Some((1, STATUS_ERROR)));
    }
}

#[test]
fn chains_without_header_or_status_break_the_device() {
    let mut rig = rig(64, false);
    assert_eq!(rig.run(&[(0x1000, 16, false)]), None);
    assert_eq!(rig.run(&[(0x1000, 15, false), STATUS]), None);
    assert_eq!(rig.run(&[(0x1000, 16, false), (u64::MAX - 600, 512, true), STATUS]), None);
    let header = rig.header(request::FLUSH, 0);
    assert_eq!(rig.run(&[header, STATUS]), Some((1, STATUS_OK)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_chain_is_answered_or_breaks_the_device(
        chain in prop::collection::vec((prop_oneof![0u64..0x8000, any::<u64>()], 0u32..2000, any::<bool>()), 1..8),
        kind in 0u32..16,
        sector in prop_oneof![0u64..70, any::<u64>()],
    ) {
        let mut rig = rig(64, false);
        rig.header(kind, sector);
        let mut chain = chain;
        chain.insert(0, (0x1000, 16, false));
        chain.push(STATUS);
        rig.run(&chain);
        prop_assert_eq!(rig.file.metadata().unwrap().len(), 64 * SECTOR);
    }
}
