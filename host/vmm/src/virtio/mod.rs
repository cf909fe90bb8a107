//! virtio devices on the virtio-mmio transport (virtio 1.2).
//!
//! [`mmio::MmioTransport`] is the register file and the driver's state machine; a device is
//! anything with a [`VirtioDevice`]. Queues are shared between the transport, which configures
//! and saves them, and the device's thread, which serves them.
//!
//! ```text
//!   vCPU write to QueueNotify ─(ioeventfd)─▶ device thread ─▶ used ring ─(irqfd)─▶ vCPU
//!   vCPU access to other registers ─(exit)─▶ MmioTransport
//! ```

pub mod block;
pub mod image;
pub mod interrupt;
pub mod iovec;
pub mod mmio;
pub mod rng;
pub mod vsock;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use interrupt::Interrupt;

/// A queue in use by transport and device.
pub type SharedQueue = Arc<Mutex<Queue>>;

/// What a device gets when its driver is ready.
#[derive(Clone)]
pub struct Activation {
    /// Guest memory.
    pub ram: GuestRam,
    /// The configured queues, all of them valid.
    pub queues: Vec<SharedQueue>,
    /// Tells the driver about used buffers.
    pub interrupt: Arc<Interrupt>,
    /// Feature bits the driver accepted.
    pub features: u64,
}

/// A device behind a virtio transport. Called under the transport's lock.
pub trait VirtioDevice: Send {
    /// The device id of the standard.
    fn device_type(&self) -> u32;

    /// Feature bits offered, transport ones included.
    fn features(&self) -> u64;

    /// Largest size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// Reads configuration space. `data` is zero before; bytes past its end stay so.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Starts serving queues.
    fn activate(&mut self, activation: Activation);

    /// Stops serving: when it returns, no thread touches the queues or guest memory any more.
    fn reset(&mut self);

    /// Waits until no request is under way. vCPUs are paused.
    fn drain(&self) {}
}

/// Copies the part of a configuration structure that `data` asks for.
pub(crate) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let Some(found) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) else {
        return;
    };
    for (to, from) in data.iter_mut().zip(found) {
        *to = *from;
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the event counters of a device's queues. The guest's notifications arrive here.
pub(crate) fn queue_events(count: usize) -> std::io::Result<Vec<Arc<EventFd>>> {
    (0..count).map(|_| EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map(Arc::new)).collect()
}
