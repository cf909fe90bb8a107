//! What the kernel finds when it starts: command line, initramfs, memory map, registers.
//!
//! Two protocols: PVH (a start info structure, 32-bit flat mode) and Linux's 64-bit entry (the
//! zero page, long mode). Formats: Xen's `start_info.h`, Linux's
//! `Documentation/arch/x86/boot.rst`.

use std::fs::File;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::kernel::{EntryKind, LoadedKernel};
use crate::layout;
use crate::memory::{self, GuestRam, MemoryError, PAGE_SIZE};

/// Boot data that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Guest memory refused a write.
    #[error("cannot write boot data: {0}")]
    Write(#[from] GuestMemoryError),
    /// The initramfs could not be read or does not fit.
    #[error("cannot load the initramfs: {0}")]
    Initramfs(#[from] MemoryError),
    /// The initramfs could not be read.
    #[error("cannot read the initramfs: {0}")]
    Read(std::io::Error),
    /// See the message.
    #[error(
        "the initramfs of {initramfs} bytes does not fit above the kernel, which ends at {kernel_end:#x}, in {mem_mib} MiB"
    )]
    NoRoom {
        /// Bytes of the initramfs.
        initramfs: u64,
        /// First address past the kernel.
        kernel_end: u64,
        /// Guest memory.
        mem_mib: u64,
    },
}

/// Where the initramfs is, in guest addresses.
#[derive(Debug, Clone, Copy)]
pub struct LoadedInitramfs {
    start: u64,
    size: u64,
}

/// Copies the initramfs to the top of low memory.
pub fn load_initramfs(ram: &GuestRam, kernel: &LoadedKernel, file: &File) -> Result<LoadedInitramfs, BootError> {
    let size = file.metadata().map_err(BootError::Read)?.len();
    let low_end = ram.find_region(GuestAddress(0)).map_or(0, region_len);
    // The kernel must find it below 4 GiB, and some loaders below 2 GiB only: 2 GiB is enough.
    let top = low_end.min(1 << 31);
    let start = top.saturating_sub(size.next_multiple_of(PAGE_SIZE)) & !(PAGE_SIZE - 1);
    // A hostile file's kernel may end anywhere.
    if kernel.end.checked_next_multiple_of(PAGE_SIZE).is_none_or(|end| start < end) {
        let mem_mib = low_end >> 20;
        return Err(BootError::NoRoom { initramfs: size, kernel_end: kernel.end, mem_mib });
    }
    memory::load_file(ram, start, file, 0, size)?;
    Ok(LoadedInitramfs { start, size })
}

fn region_len(region: &impl vm_memory::GuestMemoryRegion) -> u64 {
    region.len()
}

/// Writes the command line and the structures of the kernel's protocol.
pub fn write_boot_data(
    ram: &GuestRam,
    kernel: &LoadedKernel,
    cmdline: &str,
    initramfs: Option<LoadedInitramfs>,
    mem_size: u64,
) -> Result<(), BootError> {
    ram.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    ram.write_obj(0u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))?;
    match kernel.kind {
        EntryKind::Pvh => write_start_info(ram, initramfs, mem_size),
        EntryKind::Linux64 => write_zero_page(ram, kernel, cmdline, initramfs, mem_size),
    }
}

fn write_start_info(ram: &GuestRam, initramfs: Option<LoadedInitramfs>, mem_size: u64) -> Result<(), BootError> {
    let map = layout::memory_map(mem_size);
    let info = hvm_start_info {
        magic: 0x336e_c578,
        version: 1,
        nr_modules: u32::from(initramfs.is_some()),
        modlist_paddr: layout::MODULE_LIST,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::RSDP,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    ram.write_obj(info, GuestAddress(layout::START_INFO))?;
    if let Some(initramfs) = initramfs {
        let module = hvm_modlist_entry { paddr: initramfs.start, size: initramfs.size, ..Default::default() };
        ram.write_obj(module, GuestAddress(layout::MODULE_LIST))?;
    }
    for (index, entry) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.size,
            type_: if entry.usable { 1 } else { 2 },
            ..Default::default()
        };
        let at = layout::MEMORY_MAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        ram.write_obj(entry, GuestAddress(at))?;
    }
    Ok(())
}

fn write_zero_page(
    ram: &GuestRam,
    kernel: &LoadedKernel,
    cmdline: &str,
    initramfs: Option<LoadedInitramfs>,
    mem_size: u64,
) -> Result<(), BootError> {
    let mut params = boot_params::default();
    if let Some(header) = kernel.setup_header {
        params.hdr = header;
    } else {
        params.hdr.boot_flag = 0xaa55;
        params.hdr.header = 0x5372_6448;
        params.hdr.kernel_alignment = 0x100_0000;
    }
    // "undefined" boot loader.
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32 + 1;
    if let Some(initramfs) = initramfs {
        params.hdr.ramdisk_image = initramfs.start as u32;
        params.hdr.ramdisk_size = initramfs.size as u32;
    }
    params.acpi_rsdp_addr = layout::RSDP;
    for (slot, entry) in params.e820_table.iter_mut().zip(layout::memory_map(mem_size)) {
        let kind = if entry.usable { 1 } else { 2 };
        *slot = boot_e820_entry { addr: entry.start, size: entry.size, r#type: kind };
        params.e820_entries += 1;
    }
    ram.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    write_page_tables(ram)?;
    for (index, descriptor) in GDT.iter().enumerate() {
        ram.write_obj(*descriptor, GuestAddress(layout::GDT + index as u64 * 8))?;
    }
    Ok(())
}

/// Identity-maps the first GiB with 2 MiB pages.
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let (pml4, pdpt, pd) = (layout::PAGE_TABLES, layout::PAGE_TABLES + PAGE_SIZE, layout::PAGE_TABLES + 2 * PAGE_SIZE);
    ram.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    ram.write_obj(pd | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    for index in 0..512u64 {
        ram.write_obj((index << 21) | PRESENT_WRITABLE | LARGE, GuestAddress(pd + index * 8))?;
    }
    Ok(())
}

/// Null, null, 64-bit code (selector 0x10), data (0x18), TSS (0x20): what the 64-bit protocol
/// asks for.
const GDT: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Returns the general registers of the first vCPU.
pub fn entry_regs(kernel: &LoadedKernel) -> kvm_regs {
    // Bit 1 of RFLAGS is always set.
    let regs = kvm_regs { rip: kernel.entry, rflags: 2, ..Default::default() };
    match kernel.kind {
        EntryKind::Pvh => kvm_regs { rbx: layout::START_INFO, ..regs },
        EntryKind::Linux64 => {
            kvm_regs { rsi: layout::ZERO_PAGE, rsp: layout::BOOT_STACK, rbp: layout::BOOT_STACK, ..regs }
        }
    }
}

/// Changes `sregs`, as KVM made them, to those of the first vCPU.
pub fn entry_sregs(kernel: &LoadedKernel, sregs: &mut kvm_sregs) {
    let long = kernel.kind == EntryKind::Linux64;
    // Flat, present, ring 0; accessed and readable (code) or writable (data).
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    let code = kvm_segment { selector: 0x10, type_: 0xb, db: u8::from(!long), l: u8::from(long), ..flat };
    let data = kvm_segment { selector: 0x18, type_: 0x3, db: 1, ..flat };
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    // A busy TSS: entering with an invalid TR fails on Intel.
    sregs.tr = kvm_segment { selector: 0x20, type_: 0xb, limit: 0x67, present: 1, ..Default::default() };
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if long {
        sregs.gdt.base = layout::GDT;
        sregs.gdt.limit = (GDT.len() * 8 - 1) as u16;
        sregs.idt.limit = 0;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr0 |= CR0_PG;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(kind: EntryKind) -> LoadedKernel {
        LoadedKernel { entry: 0x100_0910, kind, end: 0x200_0000, setup_header: None }
    }

    #[test]
    fn the_initramfs_goes_to_the_top_or_is_refused() {
        let ram = memory::allocate(64 << 20).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(5000).unwrap();
        let place = load_initramfs(&ram, &kernel(EntryKind::Pvh), &file).unwrap();
        assert_eq!((place.start, place.size), ((64 << 20) - 8192, 5000));
        file.set_len(40 << 20).unwrap();
        let error = load_initramfs(&ram, &kernel(EntryKind::Pvh), &file).unwrap_err();
        assert!(matches!(error, BootError::NoRoom { mem_mib: 64, .. }));
        // A file that says its kernel fills everything there is.
        let endless = LoadedKernel { end: u64::MAX, ..kernel(EntryKind::Pvh) };
        let refused = load_initramfs(&ram, &endless, &file);
        assert!(matches!(refused, Err(BootError::NoRoom { kernel_end: u64::MAX, .. })));
    }

    #[test]
    fn both_protocols_name_the_same_memory_and_command_line() {
        let size = 5u64 << 30;
        let ram = memory::allocate(size).unwrap();
        let initramfs = Some(LoadedInitramfs { start: 0x300_0000, size: 77 });
        write_boot_data(&ram, &kernel(EntryKind::Pvh), "quiet", initramfs, size).unwrap();
        let info: hvm_start_info = ram.read_obj(GuestAddress(layout::START_INFO)).unwrap();
        assert_eq!((info.memmap_entries, info.nr_modules), (4, 1));
        write_boot_data(&ram, &kernel(EntryKind::Linux64), "quiet", initramfs, size).unwrap();
        let params: boot_params = ram.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        assert_eq!(params.e820_entries, 4);
        let mut cmdline = [0xff; 6];
        ram.read_slice(&mut cmdline, GuestAddress(layout::CMDLINE)).unwrap();
        assert_eq!(&cmdline, b"quiet\0");
    }
}
