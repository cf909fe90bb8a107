//! Room that is kept for making room.
//!
//! To delete a workspace is what frees the disk of the state directory, and it writes to the state database first. So a
//! file takes some of that disk while there is plenty, and is removed when a change that ends or removes something
//! finds the disk full.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::FallocateFlags;

/// Bytes of the reserve: the database's index takes 32 KiB, and what a removal changes takes a few pages of its log.
const BYTES: u64 = 256 << 10;
/// Bytes that are free when the reserve is made: it is to be there before the disk is full, not to be what fills it.
const PLENTY: u64 = 16 << 20;

/// The reserve of a state directory.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    given_up: AtomicBool,
}

impl Reserve {
    /// Names the reserve of a state directory; makes nothing.
    pub(super) fn new(state: &Path) -> Self {
        Self { path: state.join("reserve"), given_up: AtomicBool::new(false) }
    }

    /// Makes the reserve when it is not there and the disk has plenty. That it cannot be made fails nothing.
    pub(super) fn keep(&self) {
        if self.is_there() {
            return;
        }
        let Some(state) = self.path.parent() else { return };
        if rustix::fs::statvfs(state).is_ok_and(|free| free.f_bavail.saturating_mul(free.f_frsize) >= PLENTY) {
            self.make();
        }
    }

    /// Removes the reserve; returns whether that made room.
    pub(super) fn give_up(&self) -> bool {
        let gone = fs::remove_file(&self.path).is_ok();
        if gone {
            tracing::info!(reserve = %self.path.display(), "the disk is full: giving up what was kept for this");
            self.given_up.store(true, Ordering::Relaxed);
        }
        gone
    }

    fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|there| there.len() >= BYTES)
    }

    fn make(&self) {
        match make(&self.path) {
            Ok(()) => self.given_up.store(false, Ordering::Relaxed),
            Err(error) => {
                let _ = fs::remove_file(&self.path);
                tracing::debug!(reserve = %self.path.display(), %error, "no room is kept");
            }
        }
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // What it was given up for may have been only the database's index, which goes with its last user.
        if self.given_up.load(Ordering::Relaxed) && !self.is_there() {
            self.make();
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BYTES) {
        Ok(()) => Ok(()),
        // A file system that cannot promise room.
        Err(rustix::io::Errno::OPNOTSUPP) => io::copy(&mut io::Read::take(io::repeat(0), BYTES), &mut file)
            .and_then(|_| file.flush())
            .and_then(|()| file.sync_data()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_reserve_takes_room_until_it_is_given_up() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("reserve");
        let reserve = Reserve::new(state.path());
        assert!(!reserve.give_up(), "there is none yet");
        reserve.keep();
        let made = fs::metadata(&path).unwrap();
        assert!(made.blocks() * 512 >= BYTES, "{} blocks", made.blocks());
        reserve.keep();
        assert_eq!(fs::metadata(&path).unwrap().ino(), made.ino());
        assert!(reserve.give_up());
        assert!(!path.exists() && !reserve.give_up());
        // What a crash left half-made is completed, and what was given up is made again in the end.
        fs::write(&path, b"").unwrap();
        reserve.keep();
        assert!(reserve.is_there() && reserve.give_up());
        drop(reserve);
        assert!(path.exists());
    }
}
