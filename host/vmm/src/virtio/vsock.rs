//! The virtio socket device on virtio-mmio: glue between [`crate::vsock`] and the transport.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT};

use vmm_sys_util::eventfd::EventFd;

use super::{Activation, VirtioDevice, lock};
use crate::vsock::{QUEUE_COUNT, QUEUE_SIZE, VsockDevice, VsockQueues, VsockState, VsockStats};

/// The device id of a socket device.
const DEVICE_TYPE: u32 = 19;
const QUEUE_SIZES: &[u16] = &[QUEUE_SIZE; QUEUE_COUNT];

/// What a wake-up was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VsockWake {
    /// The guest notified queue 0.
    RxKick,
    /// The guest notified queue 1.
    TxKick,
    /// The guest notified queue 2.
    EventKick,
    /// Host streams or timers.
    Host,
}

/// The device as its transport sees it.
pub struct Vsock {
    shared: Arc<VsockShared>,
    wake: Arc<EventFd>,
}

/// The device as the thread that serves it sees it.
pub struct VsockShared {
    core: Mutex<Core>,
}

struct Core {
    device: VsockDevice,
    active: Option<Activation>,
    /// The driver has reset the device; its streams are still to be ended.
    reset_due: bool,
    /// The driver has become ready; what it sent before is still to be looked for.
    fresh: bool,
}

impl Vsock {
    /// Wraps a device. `wake` is the event counter of queue 0.
    pub fn new(device: VsockDevice, wake: Arc<EventFd>) -> (Vsock, Arc<VsockShared>) {
        let shared =
            Arc::new(VsockShared { core: Mutex::new(Core { device, active: None, reset_due: false, fresh: false }) });
        (Vsock { shared: shared.clone(), wake }, shared)
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        VsockDevice::features()
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        lock(&self.shared.core).device.read_config(offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        let mut core = lock(&self.shared.core);
        core.active = Some(activation);
        core.fresh = true;
        // Connects and packets may be waiting from before the driver was there. Not served here:
        // this is a vCPU's thread.
        let _ = self.wake.write(1);
    }

    fn reset(&mut self) {
        // Ending streams is left to the loop: a vCPU's thread may not do it.
        let mut core = lock(&self.shared.core);
        core.active = None;
        core.reset_due = true;
        let _ = self.wake.write(1);
    }
}

impl Core {
    fn finish_reset(&mut self) {
        if std::mem::take(&mut self.reset_due) {
            self.device.reset();
        }
    }
}

impl VsockShared {
    /// Returns the descriptor that is readable when [`VsockWake::Host`] is due.
    pub fn as_raw_fd(&self) -> RawFd {
        lock(&self.core).device.as_raw_fd()
    }

    /// Returns the device's counters.
    pub fn stats(&self) -> VsockStats {
        lock(&self.core).device.stats()
    }

    /// Returns what a snapshot keeps of the device.
    pub fn save(&self) -> VsockState {
        lock(&self.core).device.save()
    }

    /// Ends all streams if the device was reset.
    pub fn finish_reset(&self) {
        lock(&self.core).finish_reset();
    }

    /// Serves one wake-up.
    pub fn serve(&self, wake: VsockWake) {
        let mut core = lock(&self.core);
        core.finish_reset();
        let Core { device, active, fresh, .. } = &mut *core;
        let Some(active) = active.as_ref().filter(|active| !active.interrupt.is_broken()) else {
            if wake == VsockWake::Host {
                serve_without_driver(device);
            }
            return;
        };
        let [rx, tx, event] = active.queues.as_slice() else {
            return;
        };
        let (mut rx, mut tx, mut event) = (lock(rx), lock(tx), lock(event));
        let queues = VsockQueues { rx: &mut rx, tx: &mut tx, event: Some(&mut event) };
        let result = match wake {
            // Serves both queues.
            VsockWake::RxKick if std::mem::take(fresh) => device.handle_tx_kick(&active.ram, queues),
            VsockWake::RxKick => device.handle_rx_kick(&active.ram, queues),
            VsockWake::TxKick => device.handle_tx_kick(&active.ram, queues),
            VsockWake::EventKick => device.handle_event_kick(&active.ram, queues),
            VsockWake::Host => device.handle_host_events(&active.ram, queues),
        };
        match result {
            Ok(notify) if notify.any() => active.interrupt.signal_used(),
            Ok(_) => {}
            Err(error) => active.interrupt.mark_broken("virtio-vsock", &error),
        }
    }
}

/// Lets connects time out although no driver has set up a queue.
fn serve_without_driver(device: &mut VsockDevice) {
    let (Ok(mut rx), Ok(mut tx)) = (Queue::new(QUEUE_SIZE), Queue::new(QUEUE_SIZE)) else {
        return;
    };
    let ram = crate::memory::GuestRam::new();
    let queues = VsockQueues { rx: &mut rx, tx: &mut tx, event: None };
    // Queues that are not ready are not looked at, so nothing can fail or ask for an interrupt.
    let _ = device.handle_host_events(&ram, queues);
}

#[cfg(test)]
mod tests {
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::GuestAddress;

    use super::super::interrupt::Interrupt;
    use super::*;
    use crate::vsock::VsockConfig;

    #[test]
    fn a_packet_from_before_the_driver_was_ready_is_taken() {
        let ram = crate::memory::allocate(1 << 20).unwrap();
        let rings = [0x1000, 0x5000, 0x9000].map(|at| MockSplitQueue::create(&ram, GuestAddress(at), 16));
        rings[1].build_multiple_desc_chains(&[RawDescriptor::from(Descriptor::new(0x2_0000, 44, 0, 0))]).unwrap();
        let queues = rings.each_ref().map(|ring| Arc::new(Mutex::new(ring.create_queue::<Queue>().unwrap())));
        let (device, _handle) = VsockDevice::new(VsockConfig::new(3)).unwrap();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (mut vsock, shared) = Vsock::new(device, wake.clone());
        // The notification comes too early.
        shared.serve(VsockWake::TxKick);
        let interrupt = Arc::new(Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        vsock.activate(Activation { ram: ram.clone(), queues: queues.into(), interrupt, features: 0 });
        assert_eq!(wake.read().unwrap(), 1);
        assert_eq!(u16::from_le(rings[1].used().idx().load()), 0);
        shared.serve(VsockWake::RxKick);
        assert_eq!(u16::from_le(rings[1].used().idx().load()), 1);
    }
}
