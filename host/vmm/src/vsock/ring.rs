//! One virtqueue of the device together with the memory it lives in.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// A queue of the device, by its index in the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VsockQueue {
    /// Queue 0: packets to the guest.
    Rx,
    /// Queue 1: packets from the guest.
    Tx,
    /// Queue 2: events to the guest.
    Event,
}

/// The rings cannot be used any further. The transport sets DEVICE_NEEDS_RESET and stops calling
/// until the driver has reset the device.
#[derive(Debug, thiserror::Error)]
pub enum VsockRingError {
    /// The ring lies outside guest memory.
    #[error("vsock {0:?} ring is not in guest memory")]
    Unmapped(VsockQueue),
    /// The driver's ring contents make no sense.
    #[error("vsock {0:?} ring is broken: {1}")]
    Broken(VsockQueue, #[source] virtio_queue::Error),
}

/// A ring in use for the length of one call.
pub(super) struct Ring<'m, 'q, M> {
    pub(super) mem: &'m M,
    queue: &'q mut Queue,
    name: VsockQueue,
    used: bool,
}

impl<'m, 'q, M: GuestMemory> Ring<'m, 'q, M> {
    /// Checks that the ring may be used. `None` when the driver has not set it up yet.
    pub(super) fn open(mem: &'m M, queue: &'q mut Queue, name: VsockQueue) -> Result<Option<Self>, VsockRingError> {
        if !queue.ready() {
            return Ok(None);
        }
        if !queue.is_valid(mem) {
            return Err(VsockRingError::Unmapped(name));
        }
        Ok(Some(Ring { mem, queue, name, used: false }))
    }

    /// Takes the next available chain.
    pub(super) fn pop(&mut self) -> Result<Option<DescriptorChain<&'m M>>, VsockRingError> {
        let name = self.name;
        let mut available = self.queue.iter(self.mem).map_err(|e| VsockRingError::Broken(name, e))?;
        Ok(available.next())
    }

    /// Gives back the last `count` chains taken, to be taken again.
    pub(super) fn put_back(&mut self, count: usize) {
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Returns the driver's available index.
    pub(super) fn avail_index(&self) -> Result<u16, VsockRingError> {
        self.queue.avail_idx(self.mem, Ordering::Acquire).map(|index| index.0).map_err(|e| self.broken(e))
    }

    /// Hands a chain back to the driver with `len` bytes written.
    pub(super) fn finish(&mut self, head: u16, len: usize) -> Result<(), VsockRingError> {
        self.used = true;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.queue.add_used(self.mem, head, len).map_err(|e| self.broken(e))
    }

    /// Asks the driver to kick on the next chain. Returns whether one has come meanwhile.
    pub(super) fn arm(&mut self) -> Result<bool, VsockRingError> {
        self.queue.enable_notification(self.mem).map_err(|e| self.broken(e))
    }

    /// Asks the driver to kick on the next chain it adds, whatever chains wait already.
    pub(super) fn arm_behind_all(&mut self) -> Result<(), VsockRingError> {
        let next = self.queue.next_avail();
        let index = self.avail_index()?;
        self.queue.set_next_avail(index);
        let armed = self.arm();
        self.queue.set_next_avail(next);
        armed.map(|_| ())
    }

    /// Tells the driver that no kick is needed.
    pub(super) fn disarm(&mut self) -> Result<(), VsockRingError> {
        self.queue.disable_notification(self.mem).map_err(|e| self.broken(e))
    }

    /// Returns whether the guest must be notified of what this call has finished.
    pub(super) fn notify(self) -> Result<bool, VsockRingError> {
        if !self.used {
            return Ok(false);
        }
        if !self.queue.event_idx_enabled() {
            // Without event indexes virtio-queue does not look at the driver's wish. The fence orders
            // the used index before the read of the flags.
            fence(Ordering::SeqCst);
            let flags: u16 = self
                .mem
                .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
                .map_err(|e| VsockRingError::Broken(self.name, virtio_queue::Error::GuestMemory(e)))?;
            return Ok(u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0);
        }
        let name = self.name;
        self.queue.needs_notification(self.mem).map_err(|e| VsockRingError::Broken(name, e))
    }

    fn broken(&self, error: virtio_queue::Error) -> VsockRingError {
        VsockRingError::Broken(self.name, error)
    }
}

/// `VRING_AVAIL_F_NO_INTERRUPT`: the driver wants no notification.
const AVAIL_NO_INTERRUPT: u16 = virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT as u16;
