//! Looking at files: one entry, a list, a part of a file.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use pyro_agent_protocol::{
    DATA_CHUNK_BYTES, Done, FileEntry, FileKind, FileListRequest, FilePath, FileReadRequest, GuestFrame, codes,
};
use rustix::fs::{AtFlags, FileType, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;

use super::confine::{Confined, subdirectory};
use super::{DEPTH_MAX, MODE_BITS, READ_FILE, lossy, refused, tree};
use crate::peer::{Fail, Peer};

/// Entries are sent when their names have so many bytes. JSON makes at most six of each, and a frame takes 256 KiB.
const BATCH_BYTES: usize = 16 * 1024;
/// What is deeper is left out of a list, which is then not complete.
const PATH_MAX: usize = 16 * 1024;

/// Sends the entry at a path.
///
/// # Errors
/// What to answer.
pub fn stat(request: &FilePath, peer: &mut Peer) -> Result<Done, Fail> {
    let path = Confined::new(&request.root, &request.path)?;
    let place = path.place()?;
    let name = place.name.as_deref().unwrap_or(c".");
    let entry =
        entry(place.dir.as_fd(), name, path.path.clone()).map_err(|errno| refused("stat", &path.path, errno))?;
    peer.send(&GuestFrame::Entries(vec![entry]))?;
    Ok(Done::default())
}

/// Sends the entries below a path.
///
/// # Errors
/// What to answer.
pub fn list(request: &FileListRequest, peer: &mut Peer) -> Result<Done, Fail> {
    let path = Confined::new(&request.root, &request.path)?;
    let place = path.place()?;
    let name = place.name.as_deref().unwrap_or(c".");
    let top = entry(place.dir.as_fd(), name, path.path.clone()).map_err(|errno| refused("list", &path.path, errno))?;
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let mut list = Listing {
        recursive: request.recursive,
        room: limit,
        truncated: false,
        batch: Vec::new(),
        batch_bytes: 0,
        peer,
    };
    if top.kind == FileKind::Directory {
        let dir = subdirectory(place.dir.as_fd(), name).map_err(|errno| refused("list", &path.path, errno))?;
        let prefix = if path.path == "/" { "" } else { path.path.as_str() };
        list.directory(dir.as_fd(), prefix, 0)?;
    } else {
        list.add(top)?;
    }
    list.flush()?;
    Ok(Done { truncated: list.truncated, ..Done::default() })
}

/// Sends a part of a file.
///
/// # Errors
/// What to answer.
pub fn read(request: &FileReadRequest, peer: &mut Peer) -> Result<Done, Fail> {
    let path = Confined::new(&request.root, &request.path)?;
    let refuse = |errno| refused("read", &path.path, errno);
    let no_file = || Fail::new(codes::INVALID_ARGUMENT, format!("`{}` is not a regular file", path.path));
    let file = match path.followed()?.open(READ_FILE) {
        Ok(file) => file,
        // A socket; a device without a driver.
        Err(Errno::NXIO | Errno::NODEV) => return Err(no_file()),
        Err(errno) => return Err(refuse(errno)),
    };
    let stat = fstat(&file).map_err(refuse)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(no_file());
    }
    let mut buffer = vec![0; DATA_CHUNK_BYTES];
    let (mut offset, mut left) = (request.offset, request.length);
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..want).unwrap_or_default();
        match rustix::io::pread(&file, part, offset) {
            // An offset past what the kernel can count is past the file's end too.
            Ok(0) | Err(Errno::INVAL) => break,
            Ok(count) => {
                peer.send_data(buffer.get(..count).unwrap_or_default())?;
                let count = count as u64;
                offset = offset.saturating_add(count);
                left = left.saturating_sub(count);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(refuse(errno)),
        }
    }
    Ok(Done { bytes: u64::try_from(stat.st_size).unwrap_or(0), ..Done::default() })
}

struct Listing<'a> {
    recursive: bool,
    /// Entries that may still be sent.
    room: usize,
    truncated: bool,
    batch: Vec<FileEntry>,
    batch_bytes: usize,
    peer: &'a mut Peer,
}

impl Listing<'_> {
    fn directory(&mut self, dir: BorrowedFd<'_>, prefix: &str, depth: usize) -> Result<(), Fail> {
        self.peer.check()?;
        let (names, more) = tree::sorted_names(dir, self.room).map_err(|errno| refused("list", prefix, errno))?;
        for name in names {
            if self.room == 0 {
                self.truncated = true;
                return Ok(());
            }
            let path = format!("{prefix}/{}", lossy(&name));
            if path.len() > PATH_MAX || depth > DEPTH_MAX {
                self.truncated = true;
                continue;
            }
            // What was removed in the meantime is not in the list.
            let Ok(entry) = entry(dir, &name, path.clone()) else { continue };
            let is_directory = entry.kind == FileKind::Directory;
            self.add(entry)?;
            if is_directory
                && self.recursive
                && let Ok(inner) = subdirectory(dir, &name)
            {
                self.directory(inner.as_fd(), &path, depth + 1)?;
            }
        }
        self.truncated |= more;
        Ok(())
    }

    fn add(&mut self, entry: FileEntry) -> Result<(), Fail> {
        if self.room == 0 {
            self.truncated = true;
            return Ok(());
        }
        self.room -= 1;
        self.batch_bytes += entry.path.len() + entry.link_target.as_ref().map_or(0, String::len) + 64;
        self.batch.push(entry);
        if self.batch_bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Fail> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() { Ok(()) } else { self.peer.send(&GuestFrame::Entries(batch)) }
    }
}

fn entry(dir: BorrowedFd<'_>, name: &CStr, path: String) -> Result<FileEntry, Errno> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = kind(&stat);
    let link_target = match kind {
        FileKind::Symlink => Some(lossy(&readlinkat(dir, name, Vec::new())?)),
        _ => None,
    };
    let size = match kind {
        FileKind::File | FileKind::Symlink => u64::try_from(stat.st_size).unwrap_or(0),
        FileKind::Directory | FileKind::Other => 0,
    };
    Ok(FileEntry { path, kind, size, mode: stat.st_mode & MODE_BITS, mtime_ms: mtime_ms(&stat), link_target })
}

fn kind(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

fn mtime_ms(stat: &Stat) -> u64 {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    #[expect(clippy::unnecessary_cast, reason = "its type depends on the C library")]
    let nanoseconds = stat.st_mtime_nsec as u64;
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}
