//! A set of changes, all or none.
//!
//! New contents are written beside their targets first, under names of their own. When the host has sent everything, each
//! is swapped with what it replaces, which keeps the old content under the temporary name until all are done: a change
//! that fails swaps those before it back. A change that was made for a certain content is made to no other; sets are
//! committed one at a time, so that of two for the same content one comes too late.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use pyro_agent_protocol::{ContentSum, DATA_CHUNK_BYTES, Done, FileApplyRequest, FileChangeHead, HostFrame, codes};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, RenameFlags, Uid, fchmod, fchown, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use super::confine::{Confined, Made, Place};
use super::staging::Stage;
use super::{MODE_BITS, NEW_FILE, READ_FILE, refused};
use crate::peer::{Fail, Peer};

/// The permission bits of a file that was not there.
const NEW_MODE: u32 = 0o644;
/// The most changes of a set: each holds a descriptor until the end.
const CHANGES_MAX: usize = 4096;

/// Makes the changes that the host sends.
///
/// # Errors
/// What to answer; nothing is changed then.
pub fn apply(request: &FileApplyRequest, peer: &mut Peer) -> Result<Done, Fail> {
    let mut set = Set::default();
    let result = set.receive(&request.root, peer).and_then(|()| set.commit());
    set.tidy(result.is_ok());
    result.map(|()| Done { entries: set_len(&set), ..Done::default() })
}

#[derive(Default)]
struct Set {
    changes: Vec<Change>,
    made: Made,
}

struct Change {
    dir: OwnedFd,
    name: CString,
    /// The new content before the commit, the old one after it.
    temporary: Stage,
    path: String,
    action: Action,
    /// What the file must have.
    replaces: Option<ContentSum>,
    committed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Add,
    Replace,
    Delete,
}

fn set_len(set: &Set) -> u64 {
    set.changes.len() as u64
}

impl Set {
    fn receive(&mut self, root: &str, peer: &mut Peer) -> Result<(), Fail> {
        let mut open: Option<(File, u64)> = None;
        loop {
            let left = open.as_ref().map_or(0, |(_, left)| *left);
            match peer.next()? {
                HostFrame::Data(bytes) if bytes.len() as u64 <= left => {
                    if let Some((file, left)) = &mut open {
                        file.write_all(&bytes).map_err(|error| self.not_written(&error))?;
                        *left -= bytes.len() as u64;
                    }
                }
                HostFrame::Change(head) if left == 0 => {
                    drop(open.take());
                    if self.changes.len() >= CHANGES_MAX {
                        let message = format!("more than {CHANGES_MAX} changes at once");
                        return Err(Fail::new(codes::LIMIT_EXCEEDED, message));
                    }
                    open = self.prepare(root, &head)?;
                }
                HostFrame::DataEof if left == 0 => return Ok(()),
                _ => return Err(Fail::new(codes::PROTOCOL_VIOLATION, "a change and its content do not fit")),
            }
        }
    }

    /// Checks a change and makes the file for its content.
    fn prepare(&mut self, root: &str, head: &FileChangeHead) -> Result<Option<(File, u64)>, Fail> {
        let path = Confined::new(root, &head.path)?;
        let refuse = |errno| refused("change", &path.path, errno);
        let invalid = |what| Fail::new(codes::INVALID_ARGUMENT, format!("cannot change `{}`: {what}", path.path));
        let place = match head.content_bytes {
            Some(_) => path.place_with_parents(&mut self.made)?,
            None => path.place()?,
        };
        let Place { dir, name: Some(name) } = place else {
            return Err(invalid("it is the root"));
        };
        if head.mode.is_some_and(|mode| mode & !MODE_BITS != 0) {
            return Err(invalid("its mode has more than permission bits"));
        }
        let old = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(refuse(errno)),
        };
        let old_kind = old.map(|stat| FileType::from_raw_mode(stat.st_mode));
        let action = match (head.content_bytes, old_kind) {
            (_, None) if head.replaces.is_some() => return Err(conflict(&path.path)),
            (None, None) => return Err(refuse(Errno::NOENT)),
            (_, Some(FileType::Directory)) => return Err(invalid("it is a directory")),
            (None, Some(_)) => Action::Delete,
            (Some(_), None) => Action::Add,
            (Some(_), Some(FileType::RegularFile)) => Action::Replace,
            (Some(_), Some(_)) => return Err(invalid("it is not a regular file")),
        };
        let temporary = Stage::announce(dir.as_fd(), &path.path)?;
        let mut file = None;
        let mut set = Ok(());
        if let Some(length) = head.content_bytes {
            let fd = openat(&dir, temporary.name(), NEW_FILE, Mode::from_raw_mode(0o600)).map_err(refuse)?;
            let mode = head.mode.or(old.map(|stat| stat.st_mode & MODE_BITS)).unwrap_or(NEW_MODE);
            if let Some(old) = old {
                let _ = fchown(&fd, Some(Uid::from_raw(old.st_uid)), Some(Gid::from_raw(old.st_gid)));
            }
            // After the owner, because a change of owner clears the set-id bits.
            set = fchmod(&fd, Mode::from_raw_mode(mode));
            file = Some((File::from(fd), length));
        }
        // Known from here on, so that it is removed when anything fails.
        let (path, replaces) = (path.path.clone(), head.replaces);
        self.changes.push(Change { dir, name, temporary, path: path.clone(), action, replaces, committed: false });
        set.map_err(|errno| refused("change", &path, errno))?;
        Ok(file)
    }

    fn commit(&mut self) -> Result<(), Fail> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(change) = self.changes.iter().find(|change| !change.is_as_expected()) {
            return Err(conflict(&change.path));
        }
        for at in 0..self.changes.len() {
            let Some(change) = self.changes.get_mut(at) else { break };
            match change.swap() {
                Ok(()) => change.committed = true,
                Err(errno) => {
                    let failure = match errno {
                        Errno::EXIST | Errno::NOENT => conflict(&change.path),
                        errno => refused("change", &change.path, errno),
                    };
                    for change in self.changes.iter_mut().rev().filter(|change| change.committed) {
                        change.swap_back();
                        change.committed = false;
                    }
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// Removes what the outcome leaves under temporary names.
    fn tidy(&mut self, done: bool) {
        for change in &self.changes {
            let _ = unlinkat(&change.dir, change.temporary.name(), AtFlags::empty());
        }
        if !done {
            std::mem::take(&mut self.made).remove();
        }
    }

    fn not_written(&self, error: &std::io::Error) -> Fail {
        let path = self.changes.last().map_or("", |change| change.path.as_str());
        refused("write", path, Errno::from_io_error(error).unwrap_or(Errno::IO))
    }
}

fn conflict(path: &str) -> Fail {
    Fail::new(codes::CONFLICT, format!("`{path}` was changed by another program at the same time"))
}

impl Change {
    /// Tells whether the file has what the change was made for.
    fn is_as_expected(&self) -> bool {
        let Some(expected) = self.replaces else { return true };
        let Ok(file) = openat(&self.dir, &self.name, READ_FILE, Mode::empty()) else { return false };
        let mut file = File::from(file).take(expected.bytes.saturating_add(1));
        let (mut sum, mut buffer) = (ContentSum::default(), vec![0; DATA_CHUNK_BYTES]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return sum == expected,
                Ok(count) => sum.add(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    fn swap(&self) -> Result<(), Errno> {
        let dir = self.dir.as_fd();
        match self.action {
            Action::Add => renameat_with(dir, self.temporary.name(), dir, &self.name, RenameFlags::NOREPLACE),
            Action::Replace => renameat_with(dir, self.temporary.name(), dir, &self.name, RenameFlags::EXCHANGE),
            Action::Delete => renameat_with(dir, &self.name, dir, self.temporary.name(), RenameFlags::NOREPLACE),
        }
    }

    fn swap_back(&self) {
        let dir = self.dir.as_fd();
        let _ = match self.action {
            Action::Add => renameat_with(dir, &self.name, dir, self.temporary.name(), RenameFlags::NOREPLACE),
            Action::Replace => renameat_with(dir, &self.name, dir, self.temporary.name(), RenameFlags::EXCHANGE),
            Action::Delete => renameat_with(dir, self.temporary.name(), dir, &self.name, RenameFlags::NOREPLACE),
        };
    }
}
