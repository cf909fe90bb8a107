//! The entropy device (virtio 1.2, section 5.4): the host's random bytes for the guest.

use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::iovec::GuestBuffers;
use super::{Activation, VirtioDevice, lock};
use crate::memory::GuestRam;
use crate::stats::Counter;

/// The device id of an entropy source.
const DEVICE_TYPE: u32 = 4;
/// Most bytes given per request, whatever the guest asks for.
const MAX_REQUEST: usize = 64 * 1024;
const QUEUE_SIZES: &[u16] = &[64];

/// The device as its transport sees it.
pub struct Rng {
    shared: Arc<RngShared>,
    wake: Arc<EventFd>,
}

/// The device as the thread that serves it sees it.
#[derive(Default)]
pub struct RngShared {
    active: Mutex<Option<Activation>>,
    /// Bytes given to the guest.
    pub bytes: Counter,
}

impl Rng {
    /// Makes a device and the half that serves it. `wake` is the queue's event counter.
    pub fn new(wake: Arc<EventFd>) -> (Rng, Arc<RngShared>) {
        let shared = Arc::new(RngShared::default());
        (Rng { shared: shared.clone(), wake }, shared)
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) {
        *lock(&self.shared.active) = Some(activation);
        // A driver may have added requests before DRIVER_OK, and its notification of them went to
        // nobody.
        let _ = self.wake.write(1);
    }

    fn reset(&mut self) {
        *lock(&self.shared.active) = None;
    }
}

impl RngShared {
    /// Serves the queue: call it when the guest has notified.
    pub fn serve(&self) {
        let active = lock(&self.active);
        let Some(active) = active.as_ref() else {
            return;
        };
        if active.interrupt.is_broken() {
            return;
        }
        if let Err(error) = self.serve_queue(active) {
            active.interrupt.mark_broken("virtio-rng", &error);
        }
    }

    fn serve_queue(&self, active: &Activation) -> Result<(), virtio_queue::Error> {
        let Some(queue) = active.queues.first() else {
            return Ok(());
        };
        let mut queue = lock(queue);
        if !queue.ready() {
            return Ok(());
        }
        let mut used = false;
        loop {
            queue.disable_notification(&active.ram)?;
            while let Some(chain) = queue.iter(&active.ram)?.next() {
                let head = chain.head_index();
                let count = self.fill(&active.ram, chain);
                queue.add_used(&active.ram, head, count)?;
                used = true;
            }
            if !queue.enable_notification(&active.ram)? {
                break;
            }
        }
        if used && queue.needs_notification(&active.ram)? {
            active.interrupt.signal_used();
        }
        Ok(())
    }

    fn fill(&self, ram: &GuestRam, chain: DescriptorChain<&GuestRam>) -> u32 {
        let mut buffers = GuestBuffers::default();
        for descriptor in chain.writable() {
            if buffers.push(ram, descriptor.addr(), descriptor.len() as usize).is_err() {
                break;
            }
        }
        let wanted = usize::try_from(buffers.len()).unwrap_or(MAX_REQUEST).min(MAX_REQUEST);
        let mut bytes = vec![0; wanted];
        // Blocks only before the host's own generator is seeded.
        let got = match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
            Ok(got) => got.min(wanted),
            Err(_) => 0,
        };
        bytes.truncate(got);
        let count = buffers.write(ram, &bytes);
        self.bytes.add(count as u64);
        // At most 64 KiB.
        count as u32
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use virtio_queue::Queue;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::GuestAddress;

    use super::super::interrupt::Interrupt;
    use super::*;

    #[test]
    fn a_request_from_before_the_driver_was_ready_is_served() {
        let ram = crate::memory::allocate(1 << 20).unwrap();
        let mock = MockSplitQueue::create(&ram, GuestAddress(0x1000), 16);
        mock.build_multiple_desc_chains(&[RawDescriptor::from(Descriptor::new(0x8000, 64, 2, 0))]).unwrap();
        let queue: Queue = mock.create_queue().unwrap();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (mut rng, shared) = Rng::new(wake.clone());
        // The notification comes too early.
        shared.serve();
        assert_eq!(u16::from_le(mock.used().idx().load()), 0);
        let interrupt = Arc::new(Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        rng.activate(Activation {
            ram: ram.clone(),
            queues: vec![Arc::new(Mutex::new(queue))],
            interrupt,
            features: 0,
        });
        assert_eq!(wake.read().unwrap(), 1);
        shared.serve();
        assert_eq!(u16::from_le(mock.used().idx().load()), 1);
        assert_eq!(shared.bytes.get(), 64);
    }
}
