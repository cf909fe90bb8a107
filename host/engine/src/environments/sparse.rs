//! Sparse files: an image of some gigabytes that holds some hundred megabytes is digested and copied at the price of
//! the megabytes.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

const BLOCK: usize = 4096;

/// Returns the hexadecimal digest of a sparse image: of its size and of every block that is not all zeros, with its
/// number. It is the same however much of the zeros the file system keeps as holes, and costs no more than the data.
///
/// # Errors
/// What reading says.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(size.to_le_bytes());
    let mut buffer = vec![0u8; 256 * BLOCK];
    for_each_extent(&file, size, |from, to| {
        // Extents begin and end at the file system's blocks, which may be smaller than ours.
        let mut at = from / BLOCK as u64 * BLOCK as u64;
        while at < to {
            let want = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len()).next_multiple_of(BLOCK);
            let count = read_full(&file, buffer.get_mut(..want).unwrap_or_default(), at)?;
            if count == 0 {
                break;
            }
            for (index, block) in buffer.get(..count).unwrap_or_default().chunks(BLOCK).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    hash.update((at / BLOCK as u64 + index as u64).to_le_bytes());
                    hash.update(block);
                }
            }
            at += count as u64;
        }
        Ok(at)
    })?;
    Ok(hex::encode(hash.finalize()))
}

/// Calls `each` with every range of a file that holds data. `each` returns how far it got, which may be beyond the
/// range's end; what it did already is not handed out again.
fn for_each_extent(file: &File, size: u64, mut each: impl FnMut(u64, u64) -> io::Result<u64>) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    let mut at = 0;
    while at < size {
        let from = match seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            // No data beyond.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            // A file system that keeps no holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        let to = match seek(file, SeekFrom::Hole(from)) {
            Ok(to) => to.min(size),
            Err(_) => size,
        };
        if to <= from {
            return Ok(());
        }
        at = each(from, to)?.max(to);
    }
    Ok(())
}

fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Makes a copy of a sparse image that can be written, at least `min_size` bytes long: a reflink where the file system
/// has them, otherwise a copy of the data with the holes left out. Returns whether it is a reflink.
///
/// # Errors
/// What the file system says; nothing is left at `to`.
pub(crate) fn clone(from: &Path, to: &Path, min_size: u64) -> io::Result<bool> {
    use std::os::unix::fs::OpenOptionsExt;
    let source = File::open(from)?;
    let size = source.metadata()?.len();
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    let remove = RemoveOnDrop(Some(to.to_owned()));
    let reflinked = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
    if !reflinked {
        target.set_len(size)?;
        for_each_extent(&source, size, |from, to| {
            let mut at = from;
            while at < to {
                let (mut read_at, mut write_at) = (at, at);
                let want = usize::try_from(to - at).unwrap_or(usize::MAX);
                match rustix::fs::copy_file_range(&source, Some(&mut read_at), &target, Some(&mut write_at), want) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => at += count as u64,
                    Err(rustix::io::Errno::INTR) => {}
                    // Between some file systems the kernel does not copy.
                    Err(rustix::io::Errno::XDEV | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => {
                        let mut buffer = vec![0u8; 256 * BLOCK];
                        while at < to {
                            let want = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
                            let part = buffer.get_mut(..want).unwrap_or_default();
                            let count = read_full(&source, part, at)?;
                            if count == 0 {
                                return Err(io::ErrorKind::UnexpectedEof.into());
                            }
                            target.write_all_at(part.get(..count).unwrap_or_default(), at)?;
                            at += count as u64;
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(at)
        })?;
    }
    if min_size > size {
        target.set_len(min_size)?;
    }
    remove.keep();
    Ok(reflinked)
}

struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_ignores_holes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (sparse, dense) = (dir.path().join("sparse"), dir.path().join("dense"));
        let file = File::create(&sparse).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"data", 5 << 20).unwrap();
        let mut bytes = vec![0u8; 8 << 20];
        bytes[5 << 20..(5 << 20) + 4].copy_from_slice(b"data");
        std::fs::write(&dense, &bytes).unwrap();
        let whole = digest(&sparse).unwrap();
        assert_eq!(digest(&dense).unwrap(), whole);
        // Anything else changes it: a byte, a place, the size.
        file.write_all_at(b"1", (8 << 20) - 1).unwrap();
        let changed = digest(&sparse).unwrap();
        assert_ne!(changed, whole);
        file.write_all_at(&[0], (8 << 20) - 1).unwrap();
        assert_eq!(digest(&sparse).unwrap(), whole);
        file.set_len((8 << 20) + 1).unwrap();
        assert_ne!(digest(&sparse).unwrap(), whole);
    }

    #[test]
    fn a_clone_has_the_same_data_and_the_same_holes() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0u64, 10 << 20, (20 << 20) + 77, (64 << 20) - 3] {
            file.write_all_at(b"abc", at).unwrap();
        }
        clone(&from, &to, 0).unwrap();
        assert_eq!(digest(&to).unwrap(), digest(&from).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        // Never over something that exists, and never partly.
        assert_eq!(clone(&from, &to, 0).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let larger = dir.path().join("larger");
        clone(&from, &larger, 100 << 20).unwrap();
        assert_eq!(std::fs::metadata(&larger).unwrap().len(), 100 << 20);
    }
}
