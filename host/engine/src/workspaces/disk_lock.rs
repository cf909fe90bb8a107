//! Who reads a record's disk, told by locks (flock) on the disk itself.
//!
//! A lock belongs to the open file: it is there as long as the file or a copy of it is, in whichever process, and goes
//! with the last of them. The disk may be unlinked under it, so that a workspace that is being read can be reset or
//! deleted. The VM process does not lock its disk this way, and QEMU's own locks (OFD) do not meet these.

use std::{fs::File, io};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// Marks a disk as being read for as long as `disk` lives. Returns false when somebody is about to write to it.
///
/// # Errors
/// What the file system says.
pub(super) fn share(disk: &File) -> io::Result<bool> {
    take(disk, FlockOperation::NonBlockingLockShared)
}

/// Returns whether nobody reads the disk. `disk` then keeps readers away for as long as it lives.
///
/// # Errors
/// What the file system says.
pub(super) fn try_alone(disk: &File) -> io::Result<bool> {
    take(disk, FlockOperation::NonBlockingLockExclusive)
}

fn take(disk: &File, how: FlockOperation) -> io::Result<bool> {
    match flock(disk, how) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_by_many_or_written_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.1");
        std::fs::write(&path, b"disk").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (reader, other, writer) = (File::open(&path).unwrap(), File::open(&path).unwrap(), open());
        assert!(share(&reader).unwrap() && share(&other).unwrap());
        assert!(!try_alone(&writer).unwrap());
        // A copy keeps it, as a blob of a tool does.
        let copy = reader.try_clone().unwrap();
        drop((reader, other));
        assert!(!try_alone(&writer).unwrap());
        drop(copy);
        assert!(try_alone(&writer).unwrap());
        assert!(!share(&File::open(&path).unwrap()).unwrap());
    }
}
