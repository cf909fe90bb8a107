//! The guest's physical address map and its interrupt lines.
//!
//! ```text
//! 0x0000_0000  RAM: boot GDT, start info, page tables, command line
//! 0x0009_fc00  reserved: ACPI tables, VM generation id
//! 0x0010_0000  RAM: kernel (at its own addresses), initramfs at the top
//! 0xc000_0000  one 4 KiB window per virtio-mmio device
//! 0xfec0_0000  IOAPIC        0xfee0_0000  local APICs
//! 0x1_0000_0000  the rest of RAM
//! ```

/// End of the RAM below 1 MiB that the kernel may use.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Start of RAM at 1 MiB.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Boot GDT (64-bit entry only).
pub const GDT: u64 = 0x500;
/// PVH start info.
pub const START_INFO: u64 = 0x6000;
/// PVH module list: the initramfs.
pub const MODULE_LIST: u64 = 0x6040;
/// PVH memory map.
pub const MEMORY_MAP: u64 = 0x6080;
/// Linux boot parameters (64-bit entry only).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer (64-bit entry only).
pub const BOOT_STACK: u64 = 0x8ff0;
/// Identity page tables of the first GiB (64-bit entry only).
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;

/// First byte of the ACPI tables, page aligned, in reserved memory.
pub const ACPI: u64 = 0xa_0000;
/// End of the space for ACPI tables.
pub const ACPI_END: u64 = 0xd_0000;
/// Page with the VM generation id.
pub const VM_GENERATION_ID: u64 = 0xd_0000;
/// ACPI root pointer, inside the area that kernels scan for it.
pub const RSDP: u64 = 0xe_0000;

/// Start of the hole below 4 GiB.
pub const GAP_START: u64 = 0xc000_0000;
/// End of the hole.
pub const GAP_END: u64 = 0x1_0000_0000;

/// First virtio-mmio window.
pub const MMIO: u64 = GAP_START;
/// Bytes of one window.
pub const MMIO_SIZE: u64 = 0x1000;

/// IOAPIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Bytes of the IOAPIC window.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Local APIC registers.
pub const LAPIC: u64 = 0xfee0_0000;
/// Three pages that KVM on Intel needs for real mode.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Interrupt line of the serial port.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt line of the first virtio device.
pub const VIRTIO_GSI: u32 = 5;
/// Interrupt line of ACPI events: the last of the IOAPIC, after those of all virtio devices there
/// can be.
pub const EVENT_GSI: u32 = 15;

// The vsock and entropy devices come after the disks.
const _: () = assert!(VIRTIO_GSI as usize + crate::config::MAX_DRIVES + 2 <= EVENT_GSI as usize);

/// Serial port (COM1).
pub const SERIAL_PORT: u16 = 0x3f8;
/// Keyboard controller command port: writing [`RESET_VALUE`] resets.
pub const RESET_PORT: u16 = 0x64;
/// What resets the machine.
pub const RESET_VALUE: u8 = 0xfe;
/// PCI reset control: kernels try it when they are told to.
pub const PCI_RESET_PORT: u16 = 0xcf9;
/// ACPI sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// Sleep type of S5 (soft off).
pub const SLEEP_TYPE_OFF: u8 = 5;

/// Returns the RAM ranges of a guest of `mem_size` bytes as (start, length).
pub fn ram_ranges(mem_size: u64) -> Vec<(u64, u64)> {
    if mem_size <= GAP_START { vec![(0, mem_size)] } else { vec![(0, GAP_START), (GAP_END, mem_size - GAP_START)] }
}

/// A stretch of the memory map given to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// Whether the kernel may use it as RAM.
    pub usable: bool,
}

/// Returns the memory map given to the kernel.
pub fn memory_map(mem_size: u64) -> Vec<MapEntry> {
    let mut map = vec![
        MapEntry { start: 0, size: LOW_RAM_END, usable: true },
        MapEntry { start: LOW_RAM_END, size: HIGH_RAM_START - LOW_RAM_END, usable: false },
    ];
    for (start, size) in ram_ranges(mem_size) {
        let first = start.max(HIGH_RAM_START);
        map.push(MapEntry { start: first, size: start + size - first, usable: true });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_gap() {
        assert_eq!(ram_ranges(256 << 20), [(0, 256 << 20)]);
        assert_eq!(ram_ranges(5 << 30), [(0, GAP_START), (GAP_END, 2 << 30)]);
        let usable: u64 = memory_map(5 << 30).iter().filter(|entry| entry.usable).map(|entry| entry.size).sum();
        assert_eq!(usable, (5 << 30) - (HIGH_RAM_START - LOW_RAM_END));
    }
}
