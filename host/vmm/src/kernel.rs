//! Loading a kernel: an ELF `vmlinux` or a bzImage.
//!
//! The ELF loader is our own: it bounds how much of headers and notes it looks at. File contents are
//! untrusted: every offset and size is checked.
//!
//! Entry: PVH (`Documentation/arch/x86/boot.rst` and Xen's `start_info.h`) when the ELF has the
//! note, else the 64-bit Linux protocol.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::GuestAddress;

use crate::layout;
use crate::memory::{self, GuestRam, MemoryError};

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// 32-bit protected mode, start info in EBX.
    Pvh,
    /// Long mode, boot parameters in RSI.
    Linux64,
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct LoadedKernel {
    /// Address of the first instruction.
    pub entry: u64,
    /// State the kernel expects there.
    pub kind: EntryKind,
    /// First address past everything the kernel needs before it looks at the memory map.
    pub end: u64,
    /// The setup header of a bzImage.
    pub setup_header: Option<setup_header>,
}

/// A kernel that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading failed.
    #[error("cannot read the kernel: {0}")]
    Read(std::io::Error),
    /// Neither format.
    #[error("the kernel is neither an x86-64 ELF nor a bzImage")]
    UnknownFormat,
    /// An ELF that breaks its own format or that is no kernel.
    #[error("bad kernel ELF: {0}")]
    BadElf(&'static str),
    /// A bzImage that breaks its own format.
    #[error("bad bzImage: {0}")]
    BadBzImage(linux_loader::loader::Error),
    /// See the message.
    #[error("the bzImage has no 64-bit entry point")]
    No64BitEntry,
    /// It does not fit.
    #[error("the kernel does not fit into guest memory: {0}")]
    Memory(#[from] MemoryError),
}

/// ELF note type that names the PVH entry point (`XEN_ELFNOTE_PHYS32_ENTRY`).
const NOTE_PVH_ENTRY: u32 = 18;
/// Most bytes of notes looked at; Debian's kernel has a few hundred.
const MAX_NOTES: u64 = 64 * 1024;
/// Most program headers looked at; Debian's kernel has five.
const MAX_SEGMENTS: usize = 64;

/// Loads `file` at the addresses it names.
pub fn load(ram: &GuestRam, file: &mut File) -> Result<LoadedKernel, KernelError> {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).map_err(KernelError::Read)?;
    if &magic == b"\x7fELF" {
        return load_elf(ram, file);
    }
    if file.read_exact_at(&mut magic, 0x202).is_ok() && &magic == b"HdrS" {
        return load_bzimage(ram, file);
    }
    Err(KernelError::UnknownFormat)
}

fn load_bzimage(ram: &GuestRam, file: &mut File) -> Result<LoadedKernel, KernelError> {
    file.seek(SeekFrom::Start(0)).map_err(KernelError::Read)?;
    let loaded =
        BzImage::load(ram, None, file, Some(GuestAddress(layout::HIGH_RAM_START))).map_err(KernelError::BadBzImage)?;
    let header = loaded.setup_header.ok_or(KernelError::UnknownFormat)?;
    // XLF_KERNEL_64: a 64-bit entry at 0x200 from the load address.
    if header.xloadflags & 1 == 0 {
        return Err(KernelError::No64BitEntry);
    }
    let load = loaded.kernel_load.0;
    // The kernel unpacks itself to its preferred address and needs `init_size` bytes there.
    let unpacked = header.pref_address.max(load).saturating_add(u64::from(header.init_size));
    Ok(LoadedKernel {
        entry: load + 0x200,
        kind: EntryKind::Linux64,
        end: loaded.kernel_end.max(unpacked),
        setup_header: Some(header),
    })
}

/// One program header.
struct Segment {
    kind: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

fn load_elf(ram: &GuestRam, file: &File) -> Result<LoadedKernel, KernelError> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).map_err(KernelError::Read)?;
    // 64-bit, little endian, x86-64.
    if header[4] != 2 || header[5] != 1 || field::<2>(&header, 18) != 62 {
        return Err(KernelError::UnknownFormat);
    }
    let entry = field::<8>(&header, 24);
    let mut kernel = LoadedKernel { entry, kind: EntryKind::Linux64, end: layout::HIGH_RAM_START, setup_header: None };
    for segment in read_segments(file, &header)? {
        match segment.kind {
            PT_LOAD if segment.memsz > 0 => {
                let end =
                    segment.paddr.checked_add(segment.memsz).ok_or(KernelError::BadElf("a segment wraps around"))?;
                if segment.filesz > segment.memsz {
                    return Err(KernelError::BadElf("a segment is larger in the file than in memory"));
                }
                if segment.paddr < layout::HIGH_RAM_START {
                    return Err(KernelError::BadElf("a segment lies below 1 MiB"));
                }
                memory::load_file(ram, segment.paddr, file, segment.offset, segment.filesz)?;
                kernel.end = kernel.end.max(end);
            }
            PT_NOTE => {
                if let Some(pvh) = find_pvh_entry(file, &segment)? {
                    kernel.entry = pvh;
                    kernel.kind = EntryKind::Pvh;
                }
            }
            _ => {}
        }
    }
    if kernel.end == layout::HIGH_RAM_START {
        return Err(KernelError::BadElf("no segment to load"));
    }
    Ok(kernel)
}

fn read_segments(file: &File, header: &[u8; 64]) -> Result<Vec<Segment>, KernelError> {
    let offset = field::<8>(header, 32);
    let size = field::<2>(header, 54);
    let count = field::<2>(header, 56) as usize;
    if size != 56 || count == 0 || count > MAX_SEGMENTS {
        return Err(KernelError::BadElf("bad program headers"));
    }
    let mut bytes = vec![0; count * 56];
    file.read_exact_at(&mut bytes, offset).map_err(KernelError::Read)?;
    Ok(bytes
        .as_chunks::<56>()
        .0
        .iter()
        .map(|bytes| Segment {
            kind: field::<4>(bytes, 0) as u32,
            offset: field::<8>(bytes, 8),
            paddr: field::<8>(bytes, 24),
            filesz: field::<8>(bytes, 32),
            memsz: field::<8>(bytes, 40),
            align: field::<8>(bytes, 48),
        })
        .collect())
}

fn find_pvh_entry(file: &File, segment: &Segment) -> Result<Option<u64>, KernelError> {
    if segment.filesz > MAX_NOTES {
        return Err(KernelError::BadElf("too many notes"));
    }
    let mut bytes = vec![0; segment.filesz as usize];
    file.read_exact_at(&mut bytes, segment.offset).map_err(KernelError::Read)?;
    let align = if segment.align == 8 { 8 } else { 4 };
    let mut rest = bytes.as_slice();
    while let Some((note, tail)) = rest.split_at_checked(12) {
        let name_len = field::<4>(note, 0) as usize;
        let data_len = field::<4>(note, 4) as usize;
        let kind = field::<4>(note, 8) as u32;
        let name_end = name_len.next_multiple_of(align);
        let Some((name, tail)) = tail.split_at_checked(name_end) else {
            break;
        };
        let Some((data, _)) = tail.split_at_checked(data_len) else {
            break;
        };
        if kind == NOTE_PVH_ENTRY && name.starts_with(b"Xen\0") && (data_len == 4 || data_len == 8) {
            let mut entry = [0; 8];
            entry[..data_len].copy_from_slice(data);
            // The entry is in 32-bit protected mode.
            return Ok(Some(u64::from_le_bytes(entry) & 0xffff_ffff));
        }
        let Some((_, next)) = tail.split_at_checked(data_len.next_multiple_of(align)) else {
            break;
        };
        rest = next;
    }
    Ok(None)
}

/// Reads `N` little-endian bytes at `offset`; zero where `bytes` ends.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> u64 {
    let mut value = [0; 8];
    if let Some(found) = bytes.get(offset..offset + N) {
        value[..N].copy_from_slice(found);
    }
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;

    /// A kernel of one page at 2 MiB with 5000 bytes of memory and a PVH note.
    fn small_elf() -> Vec<u8> {
        let mut elf = vec![0u8; 0x2000];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[4] = 2;
        elf[5] = 1;
        elf[18] = 62;
        elf[24..32].copy_from_slice(&0x20_0000u64.to_le_bytes());
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[54] = 56;
        elf[56] = 2;
        let mut segment = |index: usize, kind: u32, offset: u64, paddr: u64, filesz: u64, memsz: u64| {
            let at = 64 + index * 56;
            elf[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            for (i, value) in [(8, offset), (24, paddr), (32, filesz), (40, memsz), (48, 4)] {
                elf[at + i..at + i + 8].copy_from_slice(&value.to_le_bytes());
            }
        };
        segment(0, PT_LOAD, 0x1000, 0x20_0000, 0x1000, 5000);
        segment(1, PT_NOTE, 0x200, 0, 20, 20);
        elf[0x200..0x214]
            .copy_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0x10, 0x09, 0x20, 0]);
        elf[0x1000..0x2000].fill(0xab);
        elf
    }

    fn load_bytes(bytes: &[u8]) -> Result<LoadedKernel, KernelError> {
        let ram = memory::allocate(4 << 20).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let loaded = load(&ram, &mut file)?;
        let byte: u8 = ram.read_obj(GuestAddress(0x20_0fff)).unwrap();
        assert_eq!(byte, 0xab);
        Ok(loaded)
    }

    #[test]
    fn the_pvh_note_wins_over_the_elf_entry() {
        let kernel = load_bytes(&small_elf()).unwrap();
        assert_eq!((kernel.entry, kernel.kind), (0x20_0910, EntryKind::Pvh));
        assert_eq!(kernel.end, 0x20_0000 + 5000);
        let mut elf = small_elf();
        elf[64 + 56] = 0;
        let kernel = load_bytes(&elf).unwrap();
        assert_eq!((kernel.entry, kernel.kind), (0x20_0000, EntryKind::Linux64));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(load_bytes(b"#!/bin/sh\n"), Err(KernelError::UnknownFormat)));
        let mut elf = small_elf();
        elf[18] = 40;
        assert!(matches!(load_bytes(&elf), Err(KernelError::UnknownFormat)));
        let mut elf = small_elf();
        elf[64 + 32..64 + 40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(load_bytes(&elf), Err(KernelError::BadElf(_))));
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(at in 0usize..0x214, value: [u8; 8]) {
            let mut elf = small_elf();
            elf[at..at + 8].copy_from_slice(&value);
            let ram = memory::allocate(4 << 20).unwrap();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&elf).unwrap();
            let _ = load(&ram, &mut file);
        }
    }
}
