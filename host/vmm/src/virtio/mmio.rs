//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2).
//!
//! A strict driver state machine: status bits are only ever added, in the standard's order; a
//! feature that was not offered makes FEATURES_OK fail; queues are configured between FEATURES_OK
//! and DRIVER_OK and not after. What a driver does out of order is ignored, and a queue that is
//! not valid when DRIVER_OK arrives marks the device as needing a reset. Only 32-bit accesses to
//! registers mean anything.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use super::{Activation, SharedQueue, VirtioDevice, lock};
use crate::memory::GuestRam;

/// Offset of QueueNotify: where ioeventfds are.
pub const QUEUE_NOTIFY: u64 = 0x50;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "PYRO"
const VENDOR: u32 = 0x4f52_5950;
/// Start of the device's configuration space.
const CONFIG_SPACE: u64 = 0x100;

/// Bits of the device status register (virtio 1.2, section 2.1).
mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// Version of [`MmioState`].
const STATE_VERSION: u32 = 1;

/// What a snapshot keeps of a transport. The device's own state is apart.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmioState {
    /// Version of this structure.
    pub version: u32,
    /// Device id: a state must not meet another device.
    pub device_type: u32,
    /// Device status.
    pub status: u32,
    /// Features the driver accepted.
    pub driver_features: u64,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// The queues.
    pub queues: Vec<SavedQueue>,
}

/// One virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the standard")]
pub struct SavedQueue {
    pub max_size: u16,
    pub next_avail: u16,
    pub next_used: u16,
    pub event_idx: bool,
    pub size: u16,
    pub ready: bool,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

/// The queue configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("queue {0} is not valid")]
struct InvalidQueue(usize);

/// One device window.
pub struct MmioTransport {
    interrupt: Arc<Interrupt>,
    events: Vec<Arc<EventFd>>,
    registers: Mutex<Registers>,
}

struct Registers {
    device: Box<dyn VirtioDevice>,
    ram: GuestRam,
    queues: Vec<SharedQueue>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    activated: bool,
}

impl MmioTransport {
    /// Makes the window of `device`. `events` has one event counter per queue.
    ///
    /// Returns nothing if the device has queue sizes that are not powers of two.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        interrupt: Arc<Interrupt>,
        events: Vec<Arc<EventFd>>,
    ) -> Option<MmioTransport> {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|size| Queue::new(*size).ok().map(|queue| Arc::new(Mutex::new(queue))))
            .collect::<Option<Vec<SharedQueue>>>()?;
        let registers = Mutex::new(Registers {
            device,
            ram,
            queues,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            activated: false,
        });
        Some(MmioTransport { interrupt, events, registers })
    }

    /// Returns the event counters of the queues.
    pub fn events(&self) -> &[Arc<EventFd>] {
        &self.events
    }

    /// The guest reads `data.len()` bytes at `offset`. `data` may hold anything before.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            lock(&self.registers).device.read_config(offset, data);
            return;
        }
        let Ok(bytes) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        // The one register read per interrupt needs no lock.
        let value = match offset {
            0x60 => self.interrupt.status(),
            _ => lock(&self.registers).read(offset, &self.interrupt),
        };
        *bytes = value.to_le_bytes();
    }

    /// The guest writes `data` at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) {
        // No device here has a configuration field that a driver may write.
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            0x64 => self.interrupt.acknowledge(value),
            // Arrives here only when the value matches no ioeventfd, or in tests.
            QUEUE_NOTIFY => {
                if let Some(event) = usize::try_from(value).ok().and_then(|index| self.events.get(index)) {
                    let _ = event.write(1);
                }
            }
            _ => lock(&self.registers).write(offset, value, &self.interrupt),
        }
    }

    /// Raises the device's interrupt again if it is due: its line was masked until now.
    pub fn raise_again(&self) {
        self.interrupt.raise_again();
    }

    /// Waits until the device works on nothing. vCPUs are paused.
    pub fn drain(&self) {
        lock(&self.registers).device.drain();
    }

    /// Stops the device for good.
    pub fn shut_down(&self) {
        let mut registers = lock(&self.registers);
        if registers.activated {
            registers.device.reset();
            registers.activated = false;
        }
    }

    /// Returns what a snapshot keeps. vCPUs are paused and the device is drained.
    pub fn save(&self) -> MmioState {
        let registers = lock(&self.registers);
        MmioState {
            version: STATE_VERSION,
            device_type: registers.device.device_type(),
            status: registers.status,
            driver_features: registers.driver_features,
            interrupt_status: self.interrupt.status(),
            queues: registers.queues.iter().map(|queue| saved_queue(&lock(queue).state())).collect(),
        }
    }
}

fn saved_queue(state: &QueueState) -> SavedQueue {
    SavedQueue {
        max_size: state.max_size,
        next_avail: state.next_avail,
        next_used: state.next_used,
        event_idx: state.event_idx_enabled,
        size: state.size,
        ready: state.ready,
        desc_table: state.desc_table,
        avail_ring: state.avail_ring,
        used_ring: state.used_ring,
    }
}

impl Registers {
    fn read(&self, offset: u64, interrupt: &Interrupt) -> u32 {
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.device_type(),
            0x0c => VENDOR,
            0x10 => half(self.device.features(), self.device_features_select),
            0x34 => self.selected().map_or(0, |queue| u32::from(lock(queue).max_size())),
            0x44 => self.selected().map_or(0, |queue| u32::from(lock(queue).ready())),
            0x70 => {
                let broken = if interrupt.is_broken() { status::NEEDS_RESET } else { 0 };
                self.status | broken
            }
            // ConfigGeneration: our configuration never changes. Shared memory regions: none
            // (length and base read as all ones).
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32, interrupt: &Arc<Interrupt>) {
        match offset {
            0x14 => self.device_features_select = value,
            0x20 => self.accept_features(value),
            0x24 => self.driver_features_select = value,
            0x30 => self.queue_select = value,
            0x70 => self.set_status(value, interrupt),
            0x38 | 0x44 | 0x80..=0xa4 if self.may_configure_queues() => self.configure_queue(offset, value),
            _ => {}
        }
    }

    fn selected(&self) -> Option<&SharedQueue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// DriverFeatures may be written between DRIVER and FEATURES_OK.
    fn accept_features(&mut self, value: u32) {
        if self.status & (status::DRIVER | status::FEATURES_OK) != status::DRIVER {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
            // Bits above 63 do not exist: asking for one must fail the negotiation.
            _ if value != 0 => self.driver_features = u64::MAX,
            _ => {}
        }
    }

    fn may_configure_queues(&self) -> bool {
        let set = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.status & (set | status::DRIVER_OK | status::FAILED) == set
    }

    fn configure_queue(&self, offset: u64, value: u32) {
        let Some(queue) = self.selected() else { return };
        let mut queue = lock(queue);
        match offset {
            0x44 => queue.set_ready(value == 1),
            // Everything but QueueReady is fixed while the queue is ready.
            _ if queue.ready() => {}
            // Too large sizes are refused by the setter and by the check at DRIVER_OK.
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32, interrupt: &Arc<Interrupt>) {
        if value == 0 {
            self.reset(interrupt);
            return;
        }
        // Bits are only added; the driver never writes NEEDS_RESET.
        if value & self.status != self.status || self.status & status::FAILED != 0 {
            return;
        }
        match value ^ self.status {
            status::ACKNOWLEDGE if self.status == 0 => self.status = value,
            status::DRIVER if self.status == status::ACKNOWLEDGE => self.status = value,
            status::FEATURES_OK if self.status == status::ACKNOWLEDGE | status::DRIVER => {
                let offered = self.device.features();
                let needed = 1 << VIRTIO_F_VERSION_1;
                // Left unset when refused: the driver reads it back.
                if self.driver_features & !offered == 0 && self.driver_features & needed != 0 {
                    self.status = value;
                }
            }
            status::DRIVER_OK if self.may_configure_queues() => {
                self.status = value;
                self.activate(interrupt);
            }
            status::FAILED => self.status = value,
            _ => {}
        }
    }

    fn activate(&mut self, interrupt: &Arc<Interrupt>) {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for (index, queue) in self.queues.iter().enumerate() {
            let mut queue = lock(queue);
            queue.set_event_idx(event_idx);
            // A driver may leave queues unused; devices look at `ready` themselves.
            if queue.ready() && !queue.is_valid(&self.ram) {
                interrupt.mark_broken("virtio-mmio", &InvalidQueue(index));
                return;
            }
        }
        self.activated = true;
        self.device.activate(Activation {
            ram: self.ram.clone(),
            queues: self.queues.clone(),
            interrupt: interrupt.clone(),
            features: self.driver_features,
        });
    }

    fn reset(&mut self, interrupt: &Interrupt) {
        if self.activated {
            self.device.reset();
            self.activated = false;
        }
        for queue in &self.queues {
            lock(queue).reset();
        }
        self.status = 0;
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        interrupt.reset();
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// A device with two queues that counts what is done to it.
    struct Probe(Arc<AtomicU32>);

    impl VirtioDevice for Probe {
        fn device_type(&self) -> u32 {
            4
        }
        fn features(&self) -> u64 {
            (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX)
        }
        fn queue_sizes(&self) -> &[u16] {
            &[16, 16]
        }
        fn read_config(&self, offset: u64, data: &mut [u8]) {
            super::super::read_space(&[1, 2, 3, 4, 5], offset, data);
        }
        fn activate(&mut self, activation: Activation) {
            for queue in &activation.queues {
                let queue = lock(queue);
                assert!(!queue.ready() || queue.is_valid(&activation.ram));
            }
            assert_eq!(self.0.fetch_add(1, Ordering::Relaxed) % 2, 0, "activated twice");
        }
        fn reset(&mut self) {
            assert_eq!(self.0.fetch_add(1, Ordering::Relaxed) % 2, 1, "reset while not active");
        }
    }

    struct Driver {
        transport: MmioTransport,
        calls: Arc<AtomicU32>,
    }

    impl Driver {
        fn new() -> Driver {
            let calls = Arc::new(AtomicU32::new(0));
            let ram = crate::memory::allocate(1 << 20).unwrap();
            let interrupt = Arc::new(Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
            let events = super::super::queue_events(2).unwrap();
            let transport = MmioTransport::new(Box::new(Probe(calls.clone())), ram, interrupt, events).unwrap();
            Driver { transport, calls }
        }

        fn get(&self, offset: u64) -> u32 {
            let mut bytes = [0; 4];
            self.transport.read(offset, &mut bytes);
            u32::from_le_bytes(bytes)
        }

        fn set(&self, offset: u64, value: u32) {
            self.transport.write(offset, &value.to_le_bytes());
        }

        fn negotiate(&self) {
            self.set(0x70, 1);
            self.set(0x70, 3);
            self.set(0x24, 1);
            self.set(0x20, 1);
            self.set(0x70, 11);
        }

        fn configure(&self, queue: u32, base: u32) {
            self.set(0x30, queue);
            self.set(0x38, 8);
            self.set(0x80, base);
            self.set(0x90, base + 0x1000);
            self.set(0xa0, base + 0x2000);
            self.set(0x44, 1);
        }
    }

    #[test]
    fn a_driver_that_keeps_the_order_gets_its_device() {
        let driver = Driver::new();
        assert_eq!((driver.get(0), driver.get(4), driver.get(8)), (MAGIC, 2, 4));
        driver.negotiate();
        assert_eq!(driver.get(0x70), 11);
        driver.configure(0, 0x1000);
        driver.set(0x70, 15);
        assert_eq!(driver.get(0x70), 15);
        assert_eq!(driver.calls.load(Ordering::Relaxed), 1);
        // Configuration is over now.
        driver.set(0x44, 0);
        assert_eq!(driver.get(0x44), 1);
        driver.set(0x70, 0);
        assert_eq!(driver.calls.load(Ordering::Relaxed), 2);
        assert_eq!((driver.get(0x70), driver.get(0x44)), (0, 0));
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        let driver = Driver::new();
        driver.set(0x70, 1);
        driver.set(0x70, 3);
        driver.set(0x24, 0);
        driver.set(0x20, 1);
        driver.set(0x24, 1);
        driver.set(0x20, 1);
        driver.set(0x70, 11);
        assert_eq!(driver.get(0x70), 3);
        // Also a legacy driver, which does not accept VERSION_1.
        driver.set(0x70, 0);
        driver.set(0x70, 1);
        driver.set(0x70, 3);
        driver.set(0x70, 11);
        assert_eq!(driver.get(0x70), 3);
    }

    #[test]
    fn a_queue_outside_memory_breaks_the_device_until_it_is_reset() {
        let driver = Driver::new();
        driver.negotiate();
        driver.configure(0, 0xfff0_0000);
        driver.set(0x70, 15);
        assert_eq!(driver.get(0x70), 15 | status::NEEDS_RESET);
        assert_eq!(driver.get(0x60), 2);
        assert_eq!(driver.calls.load(Ordering::Relaxed), 0);
        driver.set(0x70, 0);
        assert_eq!(driver.get(0x70), 0);
    }

    #[test]
    fn configuration_space_ends_with_zeroes() {
        let driver = Driver::new();
        let mut bytes = [0xff; 8];
        driver.transport.read(0x102, &mut bytes);
        assert_eq!(bytes, [3, 4, 5, 0, 0, 0, 0, 0]);
        driver.transport.read(u64::MAX, &mut bytes);
        assert_eq!(bytes, [0; 8]);
    }

    proptest! {
        #[test]
        fn any_sequence_of_accesses_is_safe(
            accesses in prop::collection::vec((prop_oneof![
                prop::sample::select(vec![0x14u64, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x70, 0x70, 0x80, 0x84, 0x90, 0xa0]),
                0u64..0x1000,
            ], prop_oneof![0u32..16, any::<u32>()], 0usize..9), 0..60)
        ) {
            let driver = Driver::new();
            for (offset, value, len) in accesses {
                let before = driver.get(0x70);
                if len == 4 {
                    driver.set(offset, value);
                } else {
                    driver.transport.write(offset, &vec![value as u8; len]);
                    prop_assert_eq!(driver.get(0x70), before);
                }
                driver.transport.read(offset, &mut vec![0; len]);
                let after = driver.get(0x70);
                // Status bits never vanish but all at once.
                prop_assert!(after == 0 || after & before == before);
            }
        }
    }
}
