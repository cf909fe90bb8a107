//! Guest RAM: anonymous memory, with the kernel's pages mapped copy-on-write from its file.
//!
//! This module and `kvm` are where host pointers to guest memory are made.

use std::fs::File;
use std::os::fd::AsRawFd;

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestRegionCollectionError,
    GuestRegionMmap, MmapRegion,
};

use crate::layout;

/// All RAM of one guest. Cloning is cheap and shares it.
pub type GuestRam = GuestMemoryMmap<()>;

/// The page size of guest and host.
pub const PAGE_SIZE: u64 = 4096;

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
    /// A file could not be mapped.
    #[error("cannot map a file into guest memory: {0}")]
    MapFile(std::io::Error),
    /// A file could not be copied.
    #[error("cannot copy a file into guest memory: {0}")]
    Copy(#[from] GuestMemoryError),
}

/// Maps `mem_size` bytes of guest RAM. Nothing is touched: the host gives pages as they are used.
pub fn allocate(mem_size: u64) -> Result<GuestRam, MemoryError> {
    let mut regions = Vec::new();
    for (start, size) in layout::ram_ranges(mem_size) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let size = usize::try_from(size).map_err(|_| MemoryError::Outside { start, len: size })?;
        let mapping = MmapRegion::build(None, size, libc::PROT_READ | libc::PROT_WRITE, flags)
            .map_err(|error| MemoryError::Map { mib: mem_size >> 20, source: std::io::Error::other(error) })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or(MemoryError::Outside { start, len: size as u64 })?;
        // A crash dump of the VMM must not hold the guest's memory.
        let slice = region.get_mmap();
        // SAFETY: the range is exactly the mapping made above.
        unsafe { libc::madvise(slice.as_ptr().cast(), slice.size(), libc::MADV_DONTDUMP) };
        regions.push(region);
    }
    Ok(GuestRam::from_regions(regions)?)
}

/// Puts `len` bytes of `file` from `offset` at guest address `start`.
///
/// With `share`, whole pages are mapped copy-on-write where file and guest are both page
/// aligned, and only the rest is copied; the file must then not shrink while the guest lives.
/// Must not run once the guest does.
pub fn load_file(
    ram: &GuestRam,
    start: u64,
    file: &File,
    offset: u64,
    len: u64,
    share: bool,
) -> Result<(), MemoryError> {
    let aligned = start.is_multiple_of(PAGE_SIZE) && offset.is_multiple_of(PAGE_SIZE);
    let mapped = if share && aligned { len & !(PAGE_SIZE - 1) } else { 0 };
    if mapped > 0 {
        map_pages(ram, start, file, offset, mapped)?;
    }
    let rest = len - mapped;
    if rest > 0 {
        copy_bytes(ram, start + mapped, file, offset + mapped, rest)?;
    }
    Ok(())
}

fn map_pages(ram: &GuestRam, start: u64, file: &File, offset: u64, len: u64) -> Result<(), MemoryError> {
    let outside = || MemoryError::Outside { start, len };
    let size = usize::try_from(len).map_err(|_| outside())?;
    let slice = ram.get_slice(GuestAddress(start), size).map_err(|_| outside())?;
    let end = offset.checked_add(len).ok_or_else(outside)?;
    let metadata = file.metadata().map_err(MemoryError::MapFile)?;
    if end > metadata.len() {
        return Err(MemoryError::MapFile(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
    }
    let offset = libc::off_t::try_from(offset).map_err(|_| outside())?;
    // SAFETY: `slice` lies in one mapping that `ram` owns, so MAP_FIXED replaces only pages of
    // guest RAM, which stay readable and writable and are unmapped with the rest of it. Guest RAM
    // is only ever accessed through raw pointers, so no Rust reference sees the change.
    let result = unsafe {
        libc::mmap(
            slice.ptr_guard_mut().as_ptr().cast(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if result == libc::MAP_FAILED {
        return Err(MemoryError::MapFile(std::io::Error::last_os_error()));
    }
    Ok(())
}

fn copy_bytes(ram: &GuestRam, start: u64, file: &File, offset: u64, len: u64) -> Result<(), MemoryError> {
    use std::io::{Seek, SeekFrom};
    let outside = || MemoryError::Outside { start, len };
    let len = usize::try_from(len).map_err(|_| outside())?;
    let mut file = file;
    file.seek(SeekFrom::Start(offset)).map_err(MemoryError::MapFile)?;
    ram.read_exact_volatile_from(GuestAddress(start), &mut file, len)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pattern_file(len: usize) -> (File, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    fn check(start: u64, offset: u64, len: usize, share: bool) {
        let ram = allocate(1 << 20).unwrap();
        let (file, bytes) = pattern_file(5 * 4096 + 77);
        load_file(&ram, start, &file, offset, len as u64, share).unwrap();
        let mut seen = vec![0; len];
        ram.read_slice(&mut seen, GuestAddress(start)).unwrap();
        assert_eq!(seen, bytes[offset as usize..offset as usize + len]);
        // The byte after the end is still zero: no stray data from the file's last page.
        let after: u8 = ram.read_obj(GuestAddress(start + len as u64)).unwrap();
        assert_eq!(after, 0);
        // Writes stay in the guest.
        ram.write_obj(0xffu8, GuestAddress(start)).unwrap();
        let mut first = [0];
        std::os::unix::fs::FileExt::read_at(&file, &mut first, offset).unwrap();
        assert_eq!(first[0], bytes[offset as usize]);
    }

    #[test]
    fn files_arrive_whole_mapped_or_copied() {
        check(0x10000, 4096, 3 * 4096 + 9, true);
        check(0x10000, 4096, 3 * 4096 + 9, false);
        check(0x10010, 4096, 9000, true);
        check(0x10000, 5, 9000, true);
        check(0x10000, 0, 12, true);
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused() {
        let ram = allocate(1 << 20).unwrap();
        let (file, _) = pattern_file(3 * 4096);
        for share in [true, false] {
            assert!(load_file(&ram, (1 << 20) - 4096, &file, 0, 8192, share).is_err());
            assert!(load_file(&ram, 0, &file, 0, 5 * 4096, share).is_err());
        }
    }
}
