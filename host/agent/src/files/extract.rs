//! A tar over a tree, all or nothing.
//!
//! ```text
//! receive: entries ─► a hidden directory inside the destination      nothing else changes
//! check:   every staged entry fits over what is there
//! commit:  new names are renamed in, others swapped with what they replace
//! ```
//!
//! A commit that fails, because a program of the guest changed the tree in the same moment, is undone by renaming back.
//! Symlinks are unpacked whatever they point to, but nothing is ever unpacked through one.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyro_agent_protocol::{DATA_CHUNK_BYTES, Done, FilePath, HostFrame, codes};
use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, mkdirat, openat,
    renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::confine::{Confined, Made, subdirectory};
use super::staging::Stage;
use super::tar::{BLOCK, Head, HeadReader, Kind};
use super::{DEPTH_MAX, DIRECTORY, NEW_FILE, refused, tree};
use crate::peer::{Fail, Peer};

/// Unpacks the archive that the host sends.
///
/// # Errors
/// What to answer; nothing is changed then.
pub fn extract(request: &FilePath, peer: &mut Peer) -> Result<Done, Fail> {
    let path = Confined::new(&request.root, &request.path)?;
    let mut made = Made::default();
    let result = path.directory_made(&mut made).and_then(|destination| {
        let staged = Stage::announce(destination.as_fd(), &path.path)?;
        let stage = staged.name();
        mkdirat(&destination, stage, Mode::from_raw_mode(0o700))
            .map_err(|errno| refused("unpack into", &path.path, errno))?;
        let result = unpack(&destination, stage, &path.path, peer);
        tree::remove_tree(destination.as_fd(), stage);
        result
    });
    if result.is_err() {
        made.remove();
    }
    result
}

fn unpack(destination: &OwnedFd, stage: &CStr, shown: &str, peer: &mut Peer) -> Result<Done, Fail> {
    let stage = subdirectory(destination.as_fd(), stage).map_err(|errno| refused("unpack into", shown, errno))?;
    let mut staging = Staging { chain: Chain::new(&stage)?, source: Source::new(peer), done: Done::default() };
    staging.receive()?;
    let Staging { done, source, .. } = staging;
    source.peer.check()?;
    let mut merge = Merge { shown, path: Vec::new(), undo: Vec::new() };
    merge.check(stage.as_fd(), destination.as_fd())?;
    if let Err(failure) = merge.commit(stage.as_fd(), destination.as_fd()) {
        merge.undo_all(&stage, destination);
        return Err(failure);
    }
    Ok(done)
}

/// The archive's bytes, out of the host's frames.
struct Source<'a> {
    peer: &'a mut Peer,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<'a> Source<'a> {
    fn new(peer: &'a mut Peer) -> Self {
        Self { peer, chunk: Vec::new(), at: 0, ended: false }
    }

    /// Returns bytes that are there, at least one and at most `most`; none at the end.
    fn some(&mut self, most: usize) -> Result<&[u8], Fail> {
        while self.at >= self.chunk.len() && !self.ended {
            match self.peer.next()? {
                HostFrame::Data(bytes) => {
                    self.chunk = bytes;
                    self.at = 0;
                }
                HostFrame::DataEof => self.ended = true,
                _ => return Err(Fail::new(codes::PROTOCOL_VIOLATION, "a frame that is no part of an archive")),
            }
        }
        let start = self.at;
        self.at = self.chunk.len().min(start.saturating_add(most));
        Ok(self.chunk.get(start..self.at).unwrap_or_default())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Fail> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let bytes = self.some(rest.len())?;
            if bytes.is_empty() {
                return Err(bad("it ends in the middle of an entry"));
            }
            let (now, later) = rest.split_at_mut(bytes.len().min(rest.len()));
            now.copy_from_slice(bytes);
            rest = later;
        }
        Ok(())
    }
}

struct Staging<'a> {
    chain: Chain<'a>,
    source: Source<'a>,
    done: Done,
}

impl Staging<'_> {
    fn receive(&mut self) -> Result<(), Fail> {
        let mut heads = HeadReader::default();
        while let Some(head) = heads.next(|buffer| self.source.fill(buffer), |reason| bad(&reason))? {
            self.entry(&head)?;
        }
        // Tar pads archives to records; what follows the end means nothing.
        while !self.source.some(DATA_CHUNK_BYTES)?.is_empty() {}
        Ok(())
    }

    fn entry(&mut self, head: &Head) -> Result<(), Fail> {
        let shown = String::from_utf8_lossy(&head.path).into_owned();
        let mut names = entry_names(&head.path, &shown)?;
        let Some(name) = names.pop() else {
            // The archive's own root, as `tar -C dir .` writes it.
            return if head.kind == Kind::Directory { Ok(()) } else { Err(bad(&format!("`{shown}` names no file"))) };
        };
        let refuse = |errno| refused("unpack", &shown, errno);
        let dir = self.chain.enter(&names, true).map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => not_in_directory(&shown),
            errno => refuse(errno),
        })?;
        match &head.kind {
            Kind::Directory => {
                match mkdirat(dir, &name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(refuse(errno)),
                }
                let flags = DIRECTORY.difference(rustix::fs::OFlags::PATH);
                let made = openat(dir, &name, flags, Mode::empty()).map_err(|errno| match errno {
                    Errno::LOOP | Errno::NOTDIR => bad(&format!("`{shown}` is a directory and something else in it")),
                    errno => refuse(errno),
                })?;
                fchmod(&made, Mode::from_raw_mode(head.mode)).map_err(refuse)?;
            }
            Kind::Symlink(target) => {
                let target = CString::new(target.as_slice())
                    .ok()
                    .filter(|target| !target.is_empty())
                    .ok_or_else(|| bad(&format!("the target of `{shown}` is empty or has a NUL byte")))?;
                make_room(dir, &name, &shown)?;
                symlinkat(&target, dir, &name).map_err(refuse)?;
            }
            Kind::File(size) => {
                make_room(dir, &name, &shown)?;
                let file = openat(dir, &name, NEW_FILE, Mode::from_raw_mode(0o600)).map_err(refuse)?;
                let mut file = File::from(file);
                let mut left = *size;
                while left > 0 {
                    let bytes = self.source.some(usize::try_from(left).unwrap_or(usize::MAX))?;
                    if bytes.is_empty() {
                        return Err(bad(&format!("it ends in the middle of `{shown}`")));
                    }
                    file.write_all(bytes).map_err(|error| refuse(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
                    left -= bytes.len() as u64;
                }
                let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
                let mut padding = [0; BLOCK];
                if over > 0 {
                    self.source.fill(padding.get_mut(over..).unwrap_or_default())?;
                }
                fchmod(&file, Mode::from_raw_mode(head.mode)).map_err(refuse)?;
                set_mtime(&file, head.mtime);
                self.done.bytes += size;
            }
        }
        self.done.entries += 1;
        Ok(())
    }
}

/// Directories below a base, of which the last path's stay open: archives list what is in a directory together.
struct Chain<'a> {
    base: &'a OwnedFd,
    open: Vec<(CString, OwnedFd)>,
}

impl<'a> Chain<'a> {
    fn new(base: &'a OwnedFd) -> Result<Self, Fail> {
        Ok(Self { base, open: Vec::new() })
    }

    /// Returns the directory with this path; with `make`, makes what is missing of it.
    fn enter(&mut self, names: &[CString], make: bool) -> Result<BorrowedFd<'_>, Errno> {
        let same = self.open.iter().zip(names).take_while(|((open, _), name)| open == *name).count();
        self.open.truncate(same);
        for name in names.iter().skip(same) {
            let dir = self.open.last().map_or(self.base.as_fd(), |(_, fd)| fd.as_fd());
            let next = match subdirectory(dir, name) {
                Err(Errno::NOENT) if make => {
                    mkdirat(dir, name, Mode::from_raw_mode(0o755))?;
                    subdirectory(dir, name)?
                }
                other => other?,
            };
            self.open.push((name.clone(), next));
        }
        Ok(self.open.last().map_or(self.base.as_fd(), |(_, fd)| fd.as_fd()))
    }
}

/// Moves a staged tree over another.
struct Merge<'a> {
    shown: &'a str,
    /// Where the walk is, relative to both trees.
    path: Vec<CString>,
    undo: Vec<Step>,
}

/// A step that was taken.
struct Step {
    path: Vec<CString>,
    name: CString,
    flags: RenameFlags,
}

impl Merge<'_> {
    /// Checks that every staged entry fits over what is there.
    fn check(&mut self, stage: BorrowedFd<'_>, destination: BorrowedFd<'_>) -> Result<(), Fail> {
        tree::for_each_name::<Trouble>(stage, |name, staged| {
            let there = match statat(destination, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => return Ok(()),
                other => FileType::from_raw_mode(other?.st_mode),
            };
            let invalid = |what: &str| {
                let shown = self.shown_path(name);
                Trouble::Fail(Fail::new(codes::INVALID_ARGUMENT, format!("cannot unpack `{shown}`: {what}")))
            };
            match (staged, there) {
                (FileType::Directory, FileType::Directory) => {
                    let (inner_stage, inner) = (subdirectory(stage, name)?, subdirectory(destination, name)?);
                    self.path.push(name.to_owned());
                    self.check(inner_stage.as_fd(), inner.as_fd())?;
                    self.path.pop();
                    Ok(())
                }
                (FileType::Directory, FileType::Symlink) => {
                    Err(Trouble::Fail(not_in_directory(&self.shown_path(name))))
                }
                (FileType::Directory, _) => Err(invalid("there is a file in the place of a directory")),
                (_, FileType::Directory) => Err(invalid("there is a directory in the place of a file")),
                _ => Ok(()),
            }
        })
        .map_err(|trouble| self.explain(trouble))
    }

    /// Moves every staged entry to its place.
    fn commit(&mut self, stage: BorrowedFd<'_>, destination: BorrowedFd<'_>) -> Result<(), Fail> {
        // Read as a whole first: a directory that changes while it is read may show an entry twice.
        let mut names = Vec::new();
        let listed = tree::for_each_name::<Errno>(stage, |name, staged| {
            names.push((name.to_owned(), staged));
            Ok(())
        });
        listed.map_err(|errno| self.explain(errno.into()))?;
        names
            .iter()
            .try_for_each(|(name, staged)| {
                let there = match statat(destination, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
                    Err(Errno::NOENT) => None,
                    Err(errno) => return Err(errno.into()),
                };
                let flags = match (staged, there) {
                    (FileType::Directory, Some(FileType::Directory)) => {
                        let (inner_stage, inner) = (subdirectory(stage, name)?, subdirectory(destination, name)?);
                        self.path.push(name.clone());
                        self.commit(inner_stage.as_fd(), inner.as_fd())?;
                        self.path.pop();
                        return Ok(());
                    }
                    (_, None) => RenameFlags::NOREPLACE,
                    (FileType::Directory, Some(_)) | (_, Some(FileType::Directory)) => return Err(Errno::EXIST.into()),
                    (_, Some(_)) => RenameFlags::EXCHANGE,
                };
                renameat_with(stage, name, destination, name, flags)?;
                self.undo.push(Step { path: self.path.clone(), name: name.clone(), flags });
                Ok(())
            })
            .map_err(|trouble| self.explain(trouble))
    }

    fn undo_all(&mut self, stage: &OwnedFd, destination: &OwnedFd) {
        let mut stage = Chain { base: stage, open: Vec::new() };
        let mut destination = Chain { base: destination, open: Vec::new() };
        for step in std::mem::take(&mut self.undo).into_iter().rev() {
            if let (Ok(stage), Ok(destination)) = (stage.enter(&step.path, false), destination.enter(&step.path, false))
            {
                let _ = renameat_with(destination, &step.name, stage, &step.name, step.flags);
            }
        }
    }

    fn explain(&self, trouble: Trouble) -> Fail {
        let here = || self.path.iter().fold(self.shown.to_owned(), |path, name| path + "/" + &super::lossy(name));
        match trouble {
            Trouble::Fail(fail) => fail,
            Trouble::Errno(Errno::NOENT | Errno::EXIST | Errno::LOOP | Errno::NOTDIR) => {
                Fail::new(codes::IO, format!("`{}` was changed by another program at the same time", here()))
            }
            Trouble::Errno(Errno::XDEV) => {
                Fail::new(codes::INVALID_ARGUMENT, format!("another file system is mounted below `{}`", here()))
            }
            Trouble::Errno(errno) => refused("unpack into", &here(), errno),
        }
    }

    fn shown_path(&self, name: &CStr) -> String {
        self.path.iter().map(CString::as_c_str).chain([name]).map(super::lossy).collect::<Vec<_>>().join("/")
    }
}

enum Trouble {
    Errno(Errno),
    Fail(Fail),
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<Fail> for Trouble {
    fn from(fail: Fail) -> Self {
        Self::Fail(fail)
    }
}

/// Removes an earlier entry of the same name: the last one counts.
fn make_room(dir: BorrowedFd<'_>, name: &CStr, shown: &str) -> Result<(), Fail> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => Err(bad(&format!("`{shown}` is a directory and something else in it"))),
        Err(errno) => Err(refused("unpack", shown, errno)),
    }
}

fn entry_names(path: &[u8], shown: &str) -> Result<Vec<CString>, Fail> {
    if path.is_empty() {
        return Err(bad("an entry has no name"));
    }
    if path.starts_with(b"/") {
        return Err(bad(&format!("`{shown}` is an absolute name")));
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        if name == b".." {
            return Err(bad(&format!("`{shown}` contains `..`")));
        }
        names.push(CString::new(name).map_err(|_| bad(&format!("`{shown}` contains a NUL byte")))?);
    }
    if names.len() > DEPTH_MAX {
        return Err(bad(&format!("an entry is more than {DEPTH_MAX} directories deep")));
    }
    Ok(names)
}

fn set_mtime(file: &File, mtime: u64) {
    let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(0), tv_nsec: 0 };
    // A file system that has no such time leaves its own.
    let _ = futimens(file, &Timestamps { last_access: keep, last_modification: time });
}

fn bad(reason: &str) -> Fail {
    Fail::new(codes::INVALID_ARGUMENT, format!("the archive cannot be unpacked: {reason}"))
}

fn not_in_directory(shown: &str) -> Fail {
    Fail::new(codes::DENIED, format!("cannot unpack `{shown}`: it would be unpacked through a symlink or a file"))
}
