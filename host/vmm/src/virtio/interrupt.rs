//! A device's interrupt: two status bits, one line, and the "needs reset" flag.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// InterruptStatus: a used ring has news.
const USED: u32 = 1;
/// InterruptStatus: configuration or device status changed.
const CONFIG: u32 = 2;

/// The interrupt of one device. Used by its threads and, without a lock, by vCPU exits.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
    status: AtomicU32,
    broken: AtomicBool,
}

impl Interrupt {
    /// Makes an interrupt that writes to `line`, an irqfd.
    pub fn new(line: EventFd) -> Interrupt {
        Interrupt { line, status: AtomicU32::new(0), broken: AtomicBool::new(false) }
    }

    /// Tells the driver to look at the used rings.
    pub fn signal_used(&self) {
        self.raise(USED);
    }

    /// Marks the device as needing a reset (virtio 1.2, section 2.1.2) and tells the driver.
    pub fn mark_broken(&self, device: &'static str, error: &dyn std::error::Error) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            tracing::warn!(device, error = %error, "the guest broke its virtio device; it needs a reset");
            self.raise(CONFIG);
        }
    }

    /// Returns whether the device needs a reset.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Reads InterruptStatus.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Writes InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Forgets everything: the driver has reset the device.
    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.broken.store(false, Ordering::Release);
    }

    /// Raises the line again if the driver has not acknowledged everything: an edge that came while
    /// the line was masked is lost, the status is not.
    pub fn raise_again(&self) {
        if self.status() != 0 {
            let _ = self.line.write(1);
        }
    }

    /// Puts saved status bits back; raises the line again if there are any.
    pub fn restore(&self, bits: u32) {
        if bits != 0 {
            self.raise(bits & (USED | CONFIG));
        }
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::AcqRel);
        // Fails only when the counter would overflow: the line is pending then anyway.
        let _ = self.line.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_bits_come_and_go() {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let interrupt = Interrupt::new(line.try_clone().unwrap());
        interrupt.signal_used();
        interrupt.mark_broken("test", &std::fmt::Error);
        interrupt.mark_broken("test", &std::fmt::Error);
        assert_eq!(interrupt.status(), USED | CONFIG);
        assert_eq!(line.read().unwrap(), 2);
        interrupt.acknowledge(USED);
        interrupt.raise_again();
        assert_eq!(line.read().unwrap(), 1);
        assert_eq!(interrupt.status(), CONFIG);
        assert!(interrupt.is_broken());
        interrupt.reset();
        assert_eq!((interrupt.status(), interrupt.is_broken()), (0, false));
        interrupt.raise_again();
        assert!(line.read().is_err());
    }
}
