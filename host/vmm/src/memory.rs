//! Guest RAM: anonymous memory in large pages where the host has them. Kernel and initramfs are
//! copied into it.
//!
//! Mapping the kernel's file copy-on-write instead was tried and measured: at boot Debian's kernel
//! patches nearly every page of its code, so of 46 MB less than 1 MB stayed shared, and each page
//! cost a fault to read, a fault to write and a flush of KVM's tables. Copying makes a boot faster
//! by a third and takes no more memory.
//!
//! This module and `kvm` are where host pointers to guest memory are made.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use vm_memory::bitmap::BS;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection,
    GuestRegionCollectionError, GuestRegionMmap, MemoryRegionAddress, VolatileSlice,
};

use crate::layout;

/// All RAM of one guest. Cloning is cheap and shares it.
pub type GuestRam = GuestRegionCollection<RamRegion>;

/// The page size of guest and host.
pub const PAGE_SIZE: u64 = 4096;

/// The size of a large page of guest and host.
const LARGE_PAGE: usize = 2 << 20;

/// Guest memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has no room for it.
    #[error("cannot map {mib} MiB of guest memory: {source}")]
    Map {
        /// Size asked for.
        mib: u64,
        /// What the host said.
        source: std::io::Error,
    },
    /// The ranges are not a guest's.
    #[error("bad guest memory ranges: {0}")]
    Ranges(#[from] GuestRegionCollectionError),
    /// A file does not fit where it should go.
    #[error("{len} bytes at guest address {start:#x} are outside guest memory")]
    Outside {
        /// Guest address.
        start: u64,
        /// Length.
        len: u64,
    },
    /// A file could not be read.
    #[error("cannot read a file into guest memory: {0}")]
    Read(std::io::Error),
    /// A file could not be copied.
    #[error("cannot copy a file into guest memory: {0}")]
    Copy(#[from] GuestMemoryError),
}

/// One stretch of RAM, unmapped when the last clone of its [`GuestRam`] is gone.
#[derive(Debug)]
pub struct RamRegion {
    region: GuestRegionMmap<()>,
    _mapping: Mapping,
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> u64 {
        self.region.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.region.start_addr()
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        self.region.bitmap()
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.region.get_host_address(addr)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>, GuestMemoryError> {
        self.region.get_slice(offset, count)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// Anonymous memory at an address that large pages can start at, with an inaccessible page on
/// either side: `vm_memory` maps where the kernel likes, and KVM gives a guest large pages only
/// where host and guest address agree.
///
/// The pages beside it stop what runs over an end, and keep a thread's stack from ending exactly
/// there: the host would give that a large page too.
#[derive(Debug)]
struct Mapping {
    start: usize,
    size: usize,
}

impl Mapping {
    fn new(size: usize) -> std::io::Result<Mapping> {
        let guard = PAGE_SIZE as usize;
        let room = size.checked_add(LARGE_PAGE + 2 * guard).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else is affected.
        let found = unsafe { libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
        if found == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let found = found as usize;
        let start = (found + guard).next_multiple_of(LARGE_PAGE);
        let mapping = Mapping { start, size };
        // What is too much at both ends; all of it is page aligned.
        for (from, to) in [(found, start - guard), (start + size + guard, found + room)] {
            if to > from {
                // SAFETY: a part of the mapping just made, outside of what `mapping` owns.
                unsafe { libc::munmap(from as *mut libc::c_void, to - from) };
            }
        }
        // SAFETY: exactly the memory between the guards; nobody has its address yet.
        if unsafe { libc::mprotect(start as *mut libc::c_void, size, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // The host pays for large pages only where the guest goes, and with them it has hundreds
        // of page faults instead of tens of thousands. A crash dump of the VMM must not hold the
        // guest's memory. Either may be refused.
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
            // SAFETY: as above.
            unsafe { libc::madvise(start as *mut libc::c_void, size, advice) };
        }
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let guard = PAGE_SIZE as usize;
        // SAFETY: exactly what `new` left mapped. Only `RamRegion` has the address, and pointers
        // into it are made only while one is borrowed.
        unsafe { libc::munmap((self.start - guard) as *mut libc::c_void, self.size + 2 * guard) };
    }
}

/// Maps `mem_size` bytes of guest RAM. Nothing is touched: the host gives pages as they are used.
pub fn allocate(mem_size: u64) -> Result<GuestRam, MemoryError> {
    let mut regions = Vec::new();
    for (start, size) in layout::ram_ranges(mem_size) {
        let outside = || MemoryError::Outside { start, len: size };
        let failed = |source| MemoryError::Map { mib: mem_size >> 20, source };
        let size = usize::try_from(size).map_err(|_| outside())?;
        let mapping = Mapping::new(size).map_err(failed)?;
        let builder = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: the mapping is of this size and lives as long as the region beside it.
        let builder = unsafe { builder.with_raw_mmap_pointer(mapping.start as *mut u8) };
        let region = builder.build().map_err(|error| failed(std::io::Error::other(error)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(start)).ok_or_else(outside)?;
        regions.push(RamRegion { region, _mapping: mapping });
    }
    Ok(GuestRam::from_regions(regions)?)
}

/// Copies `len` bytes of `file` from `offset` to guest address `start`.
pub fn load_file(ram: &GuestRam, start: u64, file: &File, offset: u64, len: u64) -> Result<(), MemoryError> {
    let outside = || MemoryError::Outside { start, len };
    let len = usize::try_from(len).map_err(|_| outside())?;
    let mut file = file;
    file.seek(SeekFrom::Start(offset)).map_err(MemoryError::Read)?;
    ram.read_exact_volatile_from(GuestAddress(start), &mut file, len)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::GuestMemoryBackend;

    use super::*;

    fn pattern_file(len: usize) -> (File, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    fn check(start: u64, offset: u64, len: usize) {
        let ram = allocate(1 << 20).unwrap();
        let (file, bytes) = pattern_file(5 * 4096 + 77);
        load_file(&ram, start, &file, offset, len as u64).unwrap();
        let mut seen = vec![0; len];
        ram.read_slice(&mut seen, GuestAddress(start)).unwrap();
        assert_eq!(seen, bytes[offset as usize..offset as usize + len]);
        // The byte after the end is still zero.
        let after: u8 = ram.read_obj(GuestAddress(start + len as u64)).unwrap();
        assert_eq!(after, 0);
    }

    #[test]
    fn files_arrive_whole() {
        check(0x10000, 4096, 3 * 4096 + 9);
        check(0x10010, 4096, 9000);
        check(0x10000, 5, 9000);
        check(0x10000, 0, 12);
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused() {
        let ram = allocate(1 << 20).unwrap();
        let (file, _) = pattern_file(3 * 4096);
        assert!(load_file(&ram, (1 << 20) - 4096, &file, 0, 8192).is_err());
        assert!(load_file(&ram, 0, &file, 0, 5 * 4096).is_err());
    }

    #[test]
    fn every_stretch_starts_where_a_large_page_can_and_ends_with_its_ram() {
        let ram = allocate(5 << 30).unwrap();
        let starts: Vec<usize> =
            ram.iter().map(|region| region.get_host_address(MemoryRegionAddress(0)).unwrap() as usize).collect();
        assert_eq!(starts.len(), 2);
        assert!(starts.iter().all(|start| start.is_multiple_of(LARGE_PAGE)));
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            starts.iter().filter(|start| maps.contains(&format!("{start:x}-"))).count()
        };
        assert_eq!(mapped(), 2);
        drop(ram.clone());
        assert_eq!(mapped(), 2);
        drop(ram);
        assert_eq!(mapped(), 0);
    }
}
