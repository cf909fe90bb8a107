//! The I/O interrupt controller, in user space.
//!
//! KVM keeps the local APICs; this is the IOAPIC that ACPI names, an Intel 82093AA with fewer
//! lines: a booting kernel reads and writes the entry of every line, four exits each time.
//! Each unmasked line becomes an MSI route of KVM's GSI table, so a device's irqfd goes from the
//! event counter to the vCPU without passing here. We keep it out of the kernel because KVM then
//! delivers an irqfd in the signaller's context instead of a work queue, and because creating
//! KVM's own one makes VM set-up wait for a grace period (0.6 ms against 8-12 ms measured).
//!
//! Every line is edge triggered: no device here holds a level. `KVM_EXIT_IOAPIC_EOI` therefore
//! never has work to do.

use serde::{Deserialize, Serialize};

/// Number of lines.
pub const PINS: usize = crate::layout::EVENT_GSI as usize + 1;

const REG_SELECT: u64 = 0x00;
const REG_WINDOW: u64 = 0x10;

const INDEX_ID: u32 = 0;
const INDEX_VERSION: u32 = 1;
const INDEX_ARBITRATION: u32 = 2;
const INDEX_REDIRECTION: u32 = 0x10;

/// Version 0x11 and the number of the last entry.
const VERSION: u32 = 0x11 | ((PINS as u32 - 1) << 16);

/// Bits of a redirection entry.
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR: not the guest's to write.
const READ_ONLY: u64 = (1 << 12) | (1 << 14);

/// An MSI that stands for one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiRoute {
    /// The line.
    pub gsi: u32,
    /// Lower half of the message address; the upper half is zero.
    pub address: u32,
    /// Message data.
    pub data: u32,
}

/// Registers of the IOAPIC: plain data that a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ioapic {
    id: u32,
    select: u32,
    entries: [u64; PINS],
}

impl Default for Ioapic {
    fn default() -> Ioapic {
        Ioapic { id: 0, select: 0, entries: [MASKED; PINS] }
    }
}

impl Ioapic {
    /// Reads a register. Only 32-bit accesses mean anything; others read as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            REG_SELECT => self.select,
            REG_WINDOW => self.read_index(),
            _ => 0,
        };
        data.fill(0);
        if let Ok(bytes) = <&mut [u8; 4]>::try_from(data) {
            *bytes = value.to_le_bytes();
        }
    }

    /// Writes a register; returns whether the routes changed.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return false;
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            REG_SELECT => {
                self.select = value & 0xff;
                false
            }
            REG_WINDOW => self.write_index(value),
            _ => false,
        }
    }

    /// Returns the routes of all lines that may interrupt.
    pub fn routes(&self) -> Vec<MsiRoute> {
        (0u32..).zip(self.entries).filter_map(|(gsi, entry)| route(gsi, entry)).collect()
    }

    fn read_index(&self) -> u32 {
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => self.id,
            INDEX_VERSION => VERSION,
            index => match self.entry_of(index) {
                Some((pin, high)) => {
                    let entry = self.entries.get(pin).copied().unwrap_or(MASKED);
                    (if high { entry >> 32 } else { entry }) as u32
                }
                None => 0,
            },
        }
    }

    fn write_index(&mut self, value: u32) -> bool {
        if self.select == INDEX_ID {
            self.id = value & 0x0f00_0000;
            return false;
        }
        let Some((pin, high)) = self.entry_of(self.select) else {
            return false;
        };
        let Some(entry) = self.entries.get_mut(pin) else {
            return false;
        };
        let old = *entry;
        if high {
            *entry = (old & 0xffff_ffff) | (u64::from(value) << 32);
        } else {
            *entry = (old & !0xffff_ffff) | (u64::from(value) & !READ_ONLY);
        }
        route(0, old) != route(0, *entry)
    }

    fn entry_of(&self, index: u32) -> Option<(usize, bool)> {
        let offset = index.checked_sub(INDEX_REDIRECTION)?;
        let pin = (offset / 2) as usize;
        (pin < PINS).then_some((pin, offset % 2 == 1))
    }
}

/// Translates a redirection entry to the MSI with the same meaning (Intel SDM 3A, 11.11).
fn route(gsi: u32, entry: u64) -> Option<MsiRoute> {
    if entry & MASKED != 0 {
        return None;
    }
    let destination = (entry >> 56) as u32;
    let logical = (entry >> 11) as u32 & 1;
    let vector = entry as u32 & 0xff;
    let delivery = (entry >> 8) as u32 & 0b111;
    let level = (entry >> 15) as u32 & 1;
    Some(MsiRoute {
        gsi,
        address: 0xfee0_0000 | (destination << 12) | (logical << 2),
        data: vector | (delivery << 8) | (level << 14) | (level << 15),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ioapic: &mut Ioapic, index: u32, value: u32) -> bool {
        assert!(!ioapic.write(REG_SELECT, &index.to_le_bytes()));
        ioapic.write(REG_WINDOW, &value.to_le_bytes())
    }

    fn get(ioapic: &mut Ioapic, index: u32) -> u32 {
        ioapic.write(REG_SELECT, &index.to_le_bytes());
        let mut bytes = [0; 4];
        ioapic.read(REG_WINDOW, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn unmasking_a_line_makes_a_route_and_masking_removes_it() {
        let mut ioapic = Ioapic::default();
        assert_eq!(get(&mut ioapic, 1), 0x000f_0011);
        // The destination of a masked line changes nothing yet.
        assert!(!set(&mut ioapic, 0x10 + 5 * 2 + 1, 0x0300_0000));
        assert!(set(&mut ioapic, 0x10 + 5 * 2, 0x0000_0831));
        let expected = MsiRoute { gsi: 5, address: 0xfee0_3004, data: 0x31 };
        assert_eq!(ioapic.routes(), [expected]);
        // Writing the same again is free.
        assert!(!set(&mut ioapic, 0x10 + 5 * 2, 0x0000_0831));
        assert!(set(&mut ioapic, 0x10 + 5 * 2, 0x0001_0831));
        assert!(ioapic.routes().is_empty());
    }

    proptest! {
        #[test]
        fn any_access_is_safe(accesses in prop::collection::vec((0u64..0x50, any::<Vec<u8>>(), any::<u32>()), 0..40)) {
            let mut ioapic = Ioapic::default();
            for (offset, bytes, value) in accesses {
                ioapic.write(offset, &bytes);
                ioapic.write(REG_SELECT, &(value & 0x4f).to_le_bytes());
                ioapic.write(REG_WINDOW, &value.to_le_bytes());
                ioapic.read(offset, &mut bytes.clone());
                prop_assert!(ioapic.routes().len() <= PINS);
            }
        }
    }
}
