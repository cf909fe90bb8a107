//! Where a guest's port and memory accesses go.
//!
//! The set of devices is frozen before the first vCPU runs, so finding one takes no lock: a
//! device window is `(address - base) / size`. Reads that nobody answers give all ones and writes
//! are dropped, as on hardware; both are counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::console::{Console, ConsoleTail};
use crate::exit::{ExitReason, ExitSignal};
use crate::ioapic::Ioapic;
use crate::kvm::KvmVm;
use crate::layout;
use crate::stats::ExitCounters;
use crate::virtio::mmio::MmioTransport;

/// SLP_EN of the sleep control register (ACPI 6.5, section 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;

/// Raises the serial port's line.
#[derive(Debug)]
pub struct SerialInterrupt(pub EventFd);

impl Trigger for SerialInterrupt {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}

/// Everything that a vCPU's exits can reach.
pub struct Bus {
    /// Device windows, from [`layout::MMIO`] on.
    pub windows: Vec<Arc<MmioTransport>>,
    /// The serial port.
    pub serial: Mutex<Serial<SerialInterrupt, NoEvents, Console>>,
    /// The interrupt controller.
    pub ioapic: Mutex<Ioapic>,
    /// The VM, for interrupt routes.
    pub vm: Arc<KvmVm>,
    /// Set by a reset or power-off.
    pub exit: Arc<ExitSignal>,
    /// The console's last output: tells a panic from a reboot.
    pub tail: ConsoleTail,
    /// Counters.
    pub counters: Arc<ExitCounters>,
}

impl Bus {
    /// A guest wrote to a port.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        self.counters.io_out.add(1);
        match port {
            layout::SERIAL_PORT..=0x3ff => {
                let offset = (port - layout::SERIAL_PORT) as u8;
                let mut serial = lock(&self.serial);
                for byte in data {
                    // The console's writer never fails, and a lost interrupt is seen as a
                    // missing prompt at worst.
                    let _ = serial.write(offset, *byte);
                }
            }
            layout::RESET_PORT if data == [layout::RESET_VALUE] => self.reset(),
            // Bit 2 starts the reset.
            layout::PCI_RESET_PORT if data.first().is_some_and(|byte| byte & 4 != 0) => self.reset(),
            layout::SLEEP_CONTROL_PORT => {
                if data == [SLEEP_ENABLE | (layout::SLEEP_TYPE_OFF << 2)] {
                    self.exit.set(ExitReason::PowerOff);
                }
            }
            _ => self.counters.unclaimed.add(1),
        }
    }

    /// A guest reads a port.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        self.counters.io_in.add(1);
        data.fill(0xff);
        match port {
            layout::SERIAL_PORT..=0x3ff => {
                let offset = (port - layout::SERIAL_PORT) as u8;
                let mut serial = lock(&self.serial);
                for byte in data {
                    *byte = serial.read(offset);
                }
            }
            // Keyboard controller status: empty, so that a reset by keyboard does not wait.
            layout::RESET_PORT | layout::PCI_RESET_PORT | layout::SLEEP_STATUS_PORT => data.fill(0),
            _ => self.counters.unclaimed.add(1),
        }
    }

    /// A guest wrote to an address that is no RAM.
    pub fn memory_write(&self, address: u64, data: &[u8]) {
        self.counters.mmio_write.add(1);
        if let Some((window, offset)) = self.window(address) {
            window.write(offset, data);
        } else if let Some(offset) = ioapic_offset(address) {
            let mut ioapic = lock(&self.ioapic);
            if ioapic.write(offset, data) {
                match self.vm.set_routes(&ioapic.routes()) {
                    // An irqfd without a route drops its event. A kernel masks a line not only at
                    // its end but also while it moves the interrupt to another CPU.
                    Ok(()) => self.windows.iter().for_each(|window| window.raise_again()),
                    Err(error) => self.exit.set(ExitReason::Failed { message: error.to_string() }),
                }
            }
        } else {
            self.counters.unclaimed.add(1);
        }
    }

    /// A guest reads an address that is no RAM.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        self.counters.mmio_read.add(1);
        data.fill(0xff);
        if let Some((window, offset)) = self.window(address) {
            window.read(offset, data);
        } else if let Some(offset) = ioapic_offset(address) {
            lock(&self.ioapic).read(offset, data);
        } else {
            self.counters.unclaimed.add(1);
        }
    }

    fn window(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let offset = address.checked_sub(layout::MMIO)?;
        let index = usize::try_from(offset / layout::MMIO_SIZE).ok()?;
        Some((self.windows.get(index)?, offset % layout::MMIO_SIZE))
    }

    fn reset(&self) {
        self.exit.set(match self.tail.panic() {
            Some(message) => ExitReason::GuestPanic { message },
            None => ExitReason::Reset,
        });
    }
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address.checked_sub(layout::IOAPIC).filter(|offset| *offset < layout::IOAPIC_SIZE)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
