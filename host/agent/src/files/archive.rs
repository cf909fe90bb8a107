//! A tree as a tar, sent while it is made.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use pyro_agent_protocol::{DATA_CHUNK_BYTES, Done, FilePath, codes};
use rustix::fs::{AtFlags, FileType, Mode, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::confine::{Confined, subdirectory};
use super::tar::{Head, Kind, pad, write_end, write_head};
use super::{DEPTH_MAX, MODE_BITS, READ_FILE, refused, tree};
use crate::peer::{Fail, Peer};

/// Sends what is at a path.
///
/// # Errors
/// What to answer.
pub fn archive(request: &FilePath, peer: &mut Peer) -> Result<Done, Fail> {
    let path = Confined::new(&request.root, &request.path)?;
    let place = path.place()?;
    let refuse = |errno| refused("archive", &path.path, errno);
    let mut writer =
        Writer { out: Vec::with_capacity(DATA_CHUNK_BYTES), done: Done::default(), shown: path.path.clone(), peer };
    let name = place.name.as_deref().unwrap_or(c".");
    let stat = statat(&place.dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(refuse)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let dir = subdirectory(place.dir.as_fd(), name).map_err(refuse)?;
            writer.directory(dir.as_fd(), &mut Vec::new(), 0)?;
        }
        FileType::RegularFile | FileType::Symlink => writer.entry(place.dir.as_fd(), name, &mut Vec::new(), 0)?,
        _ => {
            let message = format!("`{}` is not a file, a directory or a symlink", path.path);
            return Err(Fail::new(codes::INVALID_ARGUMENT, message));
        }
    }
    write_end(&mut writer.out);
    writer.flush()?;
    Ok(writer.done)
}

struct Writer<'a> {
    /// What was not sent yet: at most a chunk and a header.
    out: Vec<u8>,
    done: Done,
    shown: String,
    peer: &'a mut Peer,
}

impl Writer<'_> {
    /// Writes what is in `dir`, whose path in the archive is `path`.
    fn directory(&mut self, dir: BorrowedFd<'_>, path: &mut Vec<u8>, depth: usize) -> Result<(), Fail> {
        if depth > DEPTH_MAX {
            let message = format!("`{}` has directories more than {DEPTH_MAX} deep", self.shown);
            return Err(Fail::new(codes::LIMIT_EXCEEDED, message));
        }
        let (names, _) = tree::sorted_names(dir, usize::MAX).map_err(|errno| self.refuse(path, errno))?;
        for name in names {
            self.entry(dir, &name, path, depth)?;
        }
        Ok(())
    }

    /// Writes the entry `name` of `dir`. What was removed since the directory was read is left out.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &mut Vec<u8>, depth: usize) -> Result<(), Fail> {
        let before = path.len();
        if before > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let result = match self.entry_at(dir, name, path, depth) {
            Err(Problem::Errno(Errno::NOENT | Errno::LOOP | Errno::NOTDIR)) => Ok(()),
            Err(Problem::Errno(errno)) => Err(self.refuse(path, errno)),
            Err(Problem::Fail(fail)) => Err(fail),
            Ok(()) => Ok(()),
        };
        path.truncate(before);
        result
    }

    fn entry_at(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &mut Vec<u8>, depth: usize) -> Result<(), Problem> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(dir, name, path)?,
            FileType::Directory => {
                let inner = subdirectory(dir, name)?;
                self.head(path, Kind::Directory, &stat)?;
                self.directory(inner.as_fd(), path, depth + 1)?;
            }
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new())?;
                self.head(path, Kind::Symlink(target.into_bytes()), &stat)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<(), Problem> {
        let file = openat(dir, name, READ_FILE, Mode::empty())?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.head(path, Kind::File(size), &stat)?;
        let mut left = size;
        while left > 0 {
            if self.out.len() >= DATA_CHUNK_BYTES {
                self.flush()?;
            }
            let start = self.out.len();
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(DATA_CHUNK_BYTES - start);
            self.out.resize(start + want, 0);
            let count = loop {
                match rustix::io::read(&file, self.out.get_mut(start..).unwrap_or_default()) {
                    Err(Errno::INTR) => {}
                    other => break other,
                }
            };
            match count {
                // It became shorter: the header's size stands, and the rest is zeroes.
                Ok(0) => {}
                Ok(count) => self.out.truncate(start + count),
                Err(errno) => {
                    self.out.truncate(start);
                    return Err(self.refuse(path, errno).into());
                }
            }
            left -= (self.out.len() - start) as u64;
        }
        pad(size, &mut self.out);
        self.done.bytes += size;
        Ok(())
    }

    fn head(&mut self, path: &[u8], kind: Kind, stat: &Stat) -> Result<(), Fail> {
        if self.out.len() >= DATA_CHUNK_BYTES {
            self.flush()?;
        }
        let mtime = u64::try_from(stat.st_mtime).unwrap_or(0);
        write_head(&Head { path: path.to_vec(), kind, mode: stat.st_mode & MODE_BITS, mtime }, &mut self.out);
        self.done.entries += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fail> {
        self.peer.send_data(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn refuse(&self, path: &[u8], errno: Errno) -> Fail {
        refused("archive", &format!("{}/{}", self.shown, String::from_utf8_lossy(path)), errno)
    }
}

enum Problem {
    Errno(Errno),
    Fail(Fail),
}

impl From<Errno> for Problem {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<Fail> for Problem {
    fn from(fail: Fail) -> Self {
        Self::Fail(fail)
    }
}
