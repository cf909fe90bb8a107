//! A driver of the disk and of the entropy source that does whatever the input says: registers in any order, proper set-ups,
//! descriptors and ring indexes of any content, notifications at any time.
//!
//! The devices may answer or mark themselves broken, after which the driver resets them. They must not panic, must not make
//! the disk longer, and must come to rest.
#![no_main]

mod input;

use std::fs::File;
use std::sync::{Arc, OnceLock};

use input::Input;
use libfuzzer_sys::fuzz_target;
use pyro_vmm::memory::{self, GuestRam};
use pyro_vmm::virtio::VirtioDevice;
use pyro_vmm::virtio::block::{Block, Disk};
use pyro_vmm::virtio::image::Image;
use pyro_vmm::virtio::interrupt::Interrupt;
use pyro_vmm::virtio::mmio::MmioTransport;
use pyro_vmm::virtio::rng::{Rng, RngShared};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const SECTORS: u64 = 64;
const MEMORY: u64 = 1 << 20;
/// Where proper set-ups put the rings of a device.
const RINGS: [u64; 2] = [0x1000, 0x5000];

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let guest = Guest::new();
    while let Some(action) = input.byte() {
        guest.step(action, &mut input);
    }
    for window in &guest.windows {
        window.drain();
        window.shut_down();
    }
    assert_eq!(image().metadata().unwrap().len(), SECTORS * 512);
});

/// The image, one for all inputs.
fn image() -> &'static File {
    static IMAGE: OnceLock<File> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("pyro-fuzz-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(SECTORS * 512).unwrap();
        file
    })
}

struct Guest {
    ram: GuestRam,
    windows: [MmioTransport; 2],
    rng: Arc<RngShared>,
    _line: EventFd,
}

impl Guest {
    fn new() -> Guest {
        let ram = memory::allocate(MEMORY).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let disk = Disk {
            image: Image::raw(image().try_clone().unwrap()),
            sectors: SECTORS,
            read_only: false,
            durable: false,
            serial: *b"pyro-disk-0000000000",
        };
        let event = Arc::new(EventFd::new(0).unwrap());
        let block = Block::new("blk", disk, event.clone(), Arc::default(), Arc::new(|| true)).unwrap();
        let rng_event = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (rng, shared) = Rng::new(rng_event.clone());
        let window = |device: Box<dyn VirtioDevice>, event: Arc<EventFd>| {
            let interrupt = Arc::new(Interrupt::new(line.try_clone().unwrap()));
            MmioTransport::new(device, ram.clone(), interrupt, vec![event]).unwrap()
        };
        let windows = [window(Box::new(block), event), window(Box::new(rng), rng_event)];
        Guest { ram, windows, rng: shared, _line: line }
    }

    fn step(&self, action: u8, input: &mut Input) {
        let which = usize::from(action >> 7);
        let (window, rings) = (&self.windows[which], RINGS[which]);
        match action % 8 {
            0 => window.write(input.number::<1>() * 4, &(input.number::<4>() as u32).to_le_bytes()),
            1 => {
                let len = usize::from(input.byte().unwrap_or(0) % 9);
                let offset = input.number::<2>();
                window.write(offset, &vec![input.byte().unwrap_or(0); len]);
                window.read(offset, &mut vec![0; len]);
            }
            2 => set_up(window, rings, input.byte().unwrap_or(0)),
            // A descriptor.
            3 => {
                let at = rings + input.number::<1>() % 16 * 16;
                let _ = self.ram.write_obj(input.number::<3>(), GuestAddress(at));
                let _ = self.ram.write_obj(input.number::<2>() as u32, GuestAddress(at + 8));
                let _ = self.ram.write_obj(input.number::<1>() as u16 % 8, GuestAddress(at + 12));
                let _ = self.ram.write_obj(input.number::<1>() as u16 % 20, GuestAddress(at + 14));
            }
            // A request's header, for chains that begin at 64 KiB.
            4 => {
                let _ = self.ram.write_obj(input.number::<1>() as u32 % 16, GuestAddress(0x1_0000));
                let _ = self.ram.write_obj(input.number::<1>() % 80, GuestAddress(0x1_0008));
            }
            // A proper chain: header, data, status.
            5 => {
                let writable = if input.byte().unwrap_or(0) % 2 == 0 { 2 } else { 0 };
                let chain = [
                    (0x1_0000, 16, 1),
                    (0x2_0000, input.number::<2>() as u32, 1 | writable),
                    (0x1_0100, 1, 2u16),
                ];
                for (index, (address, len, flags)) in chain.into_iter().enumerate() {
                    let at = rings + index as u64 * 16;
                    let _ = self.ram.write_obj::<u64>(address, GuestAddress(at));
                    let _ = self.ram.write_obj::<u32>(len, GuestAddress(at + 8));
                    let _ = self.ram.write_obj::<u16>(flags, GuestAddress(at + 12));
                    let _ = self.ram.write_obj(index as u16 + 1, GuestAddress(at + 14));
                }
            }
            // What is available, and how much of it.
            6 => {
                let index = input.number::<1>() as u16 % 20;
                let slot = rings + 0x1004 + input.number::<1>() % 16 * 2;
                let _ = self.ram.write_obj(index, GuestAddress(slot));
                let _ = self.ram.write_obj(input.number::<1>() as u16, GuestAddress(rings + 0x1002));
            }
            _ => {
                window.write(0x50, &0u32.to_le_bytes());
                self.rng.serve();
                if input.byte().unwrap_or(0) % 2 == 0 {
                    window.drain();
                }
            }
        }
    }
}

/// Does what a driver does, up to a point.
fn set_up(window: &MmioTransport, rings: u64, steps: u8) {
    let put = |register: u64, value: u32| window.write(register, &value.to_le_bytes());
    let half = |value: u64| value as u32;
    let mut offered = [0; 4];
    let all: [(u64, u32); 15] = [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x14, 1),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 0),
        (0x38, 16),
        (0x80, half(rings)),
        (0x90, half(rings + 0x1000)),
        (0xa0, half(rings + 0x2000)),
        (0x44, 1),
        (0x70, 15),
        (0x50, 0),
    ];
    // Mostly all of it.
    let count = if steps < 192 { all.len() } else { usize::from(steps) % all.len() };
    for (register, value) in &all[..count] {
        put(*register, *value);
        window.read(*register, &mut offered);
    }
}
