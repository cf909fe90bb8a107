//! A disk's bytes: one raw file, or a file laid over an unchanging base.
//!
//! An overlay is a sparse raw file of the base's length. A cluster (4 KiB) that was written since
//! is in the overlay, any other one in the base. The map of clusters is in memory; it is found
//! again from the overlay's holes, so nothing but data is ever stored, and a crash cannot leave
//! map and data in disagreement. Making a disk for a new VM therefore costs nothing, whatever the
//! image's size and whether or not the file system can share blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use super::iovec::GuestBuffers;
use crate::memory::GuestRam;

/// Bytes of a cluster: a block of the file systems that overlays are on.
const CLUSTER: u64 = 4096;

/// An open disk image.
#[derive(Debug)]
pub struct Image {
    file: File,
    base: Option<Base>,
    /// Whether the file system has refused a read that must not wait.
    no_cached_reads: AtomicBool,
    /// Whether all of it is in memory, where reads never wait. Such a file system refuses the
    /// question above, and a hand-over to a worker costs more than the read.
    in_memory: bool,
}

#[derive(Debug)]
struct Base {
    file: File,
    len: u64,
    /// One bit per cluster: set when it is in the overlay.
    written: Vec<AtomicU64>,
    /// Writers to clusters that are still in the base share it; filling a cluster excludes them.
    filling: RwLock<()>,
}

/// What kind of result a read that must not wait had.
pub enum CachedRead {
    /// All bytes are there.
    Done(u64),
    /// The rest must be read by somebody who may wait.
    WouldWait,
}

impl Image {
    /// Uses one file as it is.
    pub fn raw(file: File) -> Image {
        let in_memory = is_in_memory(&file);
        Image { file, base: None, no_cached_reads: AtomicBool::new(false), in_memory }
    }

    /// Lays `overlay` over `base`, which must not change. Makes the overlay as long as the base.
    ///
    /// # Errors
    /// What the file systems say, and `InvalidInput` for an overlay longer than the base.
    pub fn over(overlay: File, base: File) -> io::Result<Image> {
        let len = base.metadata()?.len();
        let present = overlay.metadata()?.len();
        if present > len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the overlay is longer than its base"));
        }
        if present < len {
            overlay.set_len(len)?;
        }
        let clusters = len.div_ceil(CLUSTER);
        let words = usize::try_from(clusters.div_ceil(64)).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let written: Vec<AtomicU64> = (0..words).map(|_| AtomicU64::new(0)).collect();
        let base = Base { file: base, len, written, filling: RwLock::new(()) };
        let mut at = 0;
        while let Some((start, end)) = next_data(&overlay, at, len)? {
            // A file system with larger blocks than clusters keeps zeroes in front of data: those
            // clusters were written whole when they were filled.
            for cluster in start / CLUSTER..end.div_ceil(CLUSTER) {
                base.mark(cluster);
            }
            at = end;
        }
        let in_memory = is_in_memory(&overlay) && is_in_memory(&base.file);
        Ok(Image { file: overlay, base: Some(base), no_cached_reads: AtomicBool::new(false), in_memory })
    }

    /// Returns the length in bytes.
    pub fn byte_len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Fills the buffers from `offset` if that needs no waiting for a disk. On
    /// [`CachedRead::WouldWait`] the buffers hold what is still to be read.
    pub fn read_cached(&self, ram: &GuestRam, data: &mut GuestBuffers, offset: u64) -> io::Result<CachedRead> {
        if self.no_cached_reads.load(Ordering::Relaxed) {
            return Ok(CachedRead::WouldWait);
        }
        let wanted = data.len();
        match self.read_runs(ram, data, offset, !self.in_memory) {
            Ok(()) => Ok(CachedRead::Done(wanted)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(CachedRead::WouldWait),
                Some(libc::EOPNOTSUPP) => {
                    self.no_cached_reads.store(true, Ordering::Relaxed);
                    Ok(CachedRead::WouldWait)
                }
                _ => Err(error),
            },
        }
    }

    /// Fills the buffers from `offset`. Returns the number of bytes.
    pub fn read(&self, ram: &GuestRam, data: &mut GuestBuffers, offset: u64) -> io::Result<u64> {
        let wanted = data.len();
        self.read_runs(ram, data, offset, false)?;
        Ok(wanted)
    }

    fn read_runs(&self, ram: &GuestRam, data: &mut GuestBuffers, offset: u64, cached: bool) -> io::Result<()> {
        let Some(base) = &self.base else {
            data.read_from(ram, &self.file, offset, u64::MAX, cached)?;
            return Ok(());
        };
        let mut at = offset;
        let end = offset + data.len();
        while at < end {
            let (run_end, written) = base.run(at, end);
            let file = if written { &self.file } else { &base.file };
            data.read_from(ram, file, at, run_end - at, cached)?;
            at = run_end;
        }
        Ok(())
    }

    /// Writes the buffers at `offset`. Returns the number of bytes.
    pub fn write(&self, ram: &GuestRam, data: &mut GuestBuffers, offset: u64) -> io::Result<u64> {
        let len = data.len();
        self.written(offset, len, || data.write_to(ram, &self.file, offset))?;
        Ok(len)
    }

    /// Makes everything written so far durable.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Tells the host that the guest does not need these bytes. They may read as anything.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match &self.base {
            None => punch_hole(&self.file, offset, len),
            // A hole would show the base again, or make the map wrong after a restart.
            Some(_) => Ok(()),
        }
    }

    /// Makes these bytes zero; with `unmap` they may be given back to the host.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if self.base.is_none() {
            if unmap && punch_hole(&self.file, offset, len).is_ok() {
                return Ok(());
            }
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, offset, len.max(1)) {
                Err(rustix::io::Errno::OPNOTSUPP) => {}
                other => return Ok(other?),
            }
        }
        // Real zeroes: only data is known to be in an overlay.
        let zeroes = vec![0; 64 * 1024];
        let mut done = 0;
        while done < len {
            let count = (len - done).min(zeroes.len() as u64);
            let part = zeroes.get(..count as usize).unwrap_or_default();
            self.written(offset + done, count, || self.file.write_all_at(part, offset + done))?;
            done += count;
        }
        Ok(())
    }

    /// Runs a write of `len` bytes at `offset` and records its clusters.
    fn written<T>(&self, offset: u64, len: u64, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let Some(base) = &self.base else {
            return write();
        };
        let end = offset + len;
        // The clusters at both ends may be written in part: the rest of them comes from the base.
        for edge in [offset, end] {
            if !edge.is_multiple_of(CLUSTER) && edge < base.len {
                self.fill(base, edge / CLUSTER)?;
            }
        }
        let guard: Option<RwLockReadGuard<'_, ()>> = match base.run(offset, end) {
            // Nothing is left to record.
            (run_end, true) if run_end == end => None,
            _ => Some(base.filling.read().unwrap_or_else(PoisonError::into_inner)),
        };
        let result = write()?;
        if guard.is_some() {
            for cluster in offset / CLUSTER..end.div_ceil(CLUSTER) {
                base.mark(cluster);
            }
        }
        Ok(result)
    }

    /// Copies a cluster from the base if it is still there.
    fn fill(&self, base: &Base, cluster: u64) -> io::Result<()> {
        if base.is_written(cluster) {
            return Ok(());
        }
        let _alone = base.filling.write().unwrap_or_else(PoisonError::into_inner);
        if base.is_written(cluster) {
            return Ok(());
        }
        let start = cluster * CLUSTER;
        let mut bytes = [0; CLUSTER as usize];
        let len = (base.len - start).min(CLUSTER) as usize;
        let part = bytes.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        base.file.read_exact_at(part, start)?;
        self.file.write_all_at(part, start)?;
        base.mark(cluster);
        Ok(())
    }
}

impl Base {
    fn is_written(&self, cluster: u64) -> bool {
        let word = usize::try_from(cluster / 64).ok().and_then(|word| self.written.get(word));
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (cluster % 64)) != 0)
    }

    fn mark(&self, cluster: u64) {
        if let Some(word) = usize::try_from(cluster / 64).ok().and_then(|word| self.written.get(word)) {
            word.fetch_or(1 << (cluster % 64), Ordering::Release);
        }
    }

    /// Returns how far the bytes from `at`, up to `end`, are all in one of the files, and whether
    /// that is the overlay.
    fn run(&self, at: u64, end: u64) -> (u64, bool) {
        let mut cluster = at / CLUSTER;
        let written = self.is_written(cluster);
        loop {
            cluster += 1;
            let boundary = cluster * CLUSTER;
            if boundary >= end {
                return (end, written);
            }
            if self.is_written(cluster) != written {
                return (boundary, written);
            }
        }
    }
}

/// Returns the next stretch of data at or after `at`.
fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?.min(len))))
}

/// Returns whether a file is on tmpfs, as `/dev/shm` and often `/tmp` are.
fn is_in_memory(file: &File) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type as u64 == TMPFS_MAGIC)
}

fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, offset, len)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const LEN: u64 = 10 * CLUSTER + 512;

    fn base_bytes() -> Vec<u8> {
        (0..LEN).map(|at| (at / 512) as u8 | 1).collect()
    }

    fn file_with(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn read_all(ram: &GuestRam, image: &Image) -> Vec<u8> {
        let mut data = GuestBuffers::default();
        data.push(ram, GuestAddress(0x1000), LEN as usize).unwrap();
        assert_eq!(image.read(ram, &mut data, 0).unwrap(), LEN);
        let mut bytes = vec![0; LEN as usize];
        ram.read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// An overlay behaves like a copy of the base, also after it was opened again, and the
        /// base stays as it was.
        #[test]
        fn an_overlay_is_like_a_copy(
            operations in prop::collection::vec((0u64..LEN / 512, 1u64..30, 0u8..3, any::<u8>()), 0..30),
            reopen_at in 0usize..30,
        ) {
            let ram = crate::memory::allocate(1 << 20).unwrap();
            let base = file_with(&base_bytes());
            let overlay = tempfile::tempfile().unwrap();
            let open = || Image::over(overlay.try_clone().unwrap(), base.try_clone().unwrap()).unwrap();
            let mut image = open();
            let mut model = base_bytes();
            for (index, (sector, sectors, kind, byte)) in operations.into_iter().enumerate() {
                let offset = sector * 512;
                let len = (sectors * 512).min(LEN - offset);
                let range = offset as usize..(offset + len) as usize;
                match kind {
                    0 => {
                        ram.write_slice(&vec![byte; len as usize], GuestAddress(0x8000)).unwrap();
                        let mut data = GuestBuffers::default();
                        data.push(&ram, GuestAddress(0x8000), len as usize).unwrap();
                        image.write(&ram, &mut data, offset).unwrap();
                        model[range].fill(byte);
                    }
                    1 => {
                        image.write_zeroes(offset, len, byte & 1 == 0).unwrap();
                        model[range].fill(0);
                    }
                    _ => image.flush().unwrap(),
                }
                if index == reopen_at {
                    image = open();
                }
                prop_assert_eq!(&read_all(&ram, &image), &model);
            }
            let mut untouched = vec![0; LEN as usize];
            base.read_exact_at(&mut untouched, 0).unwrap();
            prop_assert_eq!(untouched, base_bytes());
        }
    }

    #[test]
    fn a_disk_in_memory_is_read_without_a_worker() {
        // A file of memory is one of a tmpfs that has no name.
        let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&base_bytes(), 0).unwrap();
        let image = Image::raw(file);
        let ram = crate::memory::allocate(1 << 20).unwrap();
        let mut data = GuestBuffers::default();
        data.push(&ram, GuestAddress(0x1000), 4096).unwrap();
        let read = image.read_cached(&ram, &mut data, 512).unwrap();
        assert!(matches!(read, CachedRead::Done(4096)));
        let mut bytes = vec![0; 4096];
        ram.read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
        assert_eq!(bytes, base_bytes()[512..512 + 4096]);
    }

    #[test]
    fn an_overlay_longer_than_its_base_is_refused() {
        let overlay = file_with(&[1; 8192]);
        assert!(Image::over(overlay, file_with(&[1; 4096])).is_err());
    }

    #[test]
    fn a_new_overlay_takes_no_room() {
        use std::os::unix::fs::MetadataExt;
        let overlay = tempfile::tempfile().unwrap();
        let base = tempfile::tempfile().unwrap();
        base.set_len(2 << 30).unwrap();
        let image = Image::over(overlay.try_clone().unwrap(), base).unwrap();
        assert_eq!(image.byte_len().unwrap(), 2 << 30);
        assert_eq!(overlay.metadata().unwrap().blocks(), 0);
    }
}
