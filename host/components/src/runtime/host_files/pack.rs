//! Writing a tar that every reader of pyro takes: regular files, directories and symlinks with relative names, each
//! once, within bounds.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use pyro_engine::{EngineError, ErrorCode};
use tar::{EntryType, Header};

/// Most members of a tree.
const MAX_ENTRIES: u64 = 500_000;

/// Most bytes of content of a tree.
const MAX_BYTES: u64 = 16 << 30;

/// Most bytes of all names together.
const MAX_NAME_BYTES: usize = 64 << 20;

/// Longest name of a member.
const MAX_NAME: usize = 4096;

/// Deepest nesting.
pub(super) const MAX_DEPTH: usize = 128;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    /// A directory that only the names of its members have told of.
    Implied,
    Symlink,
}

/// A tar being written.
pub(super) struct Packer {
    tar: tar::Builder<BufWriter<File>>,
    seen: HashMap<Vec<u8>, Kind>,
    name_bytes: usize,
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// What is kept of a member besides its name and content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    /// Unix seconds.
    pub(super) mtime: u64,
}

impl Packer {
    pub(super) fn new() -> Result<Packer, EngineError> {
        let file = tempfile::tempfile().map_err(|error| EngineError::io("make a temporary file", &error))?;
        let tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
        Ok(Packer { tar, seen: HashMap::new(), name_bytes: 0, entries: 0, bytes: 0 })
    }

    /// Adds a directory; one that is there already is no error.
    pub(super) fn directory(&mut self, name: &[u8], attributes: Attributes) -> Result<(), EngineError> {
        let (name, known) = self.member(name, Kind::Directory)?;
        if known {
            return Ok(());
        }
        let mut header = header(EntryType::Directory, attributes, 0);
        let name = [name.as_slice(), b"/"].concat();
        self.write(|tar| tar.append_data(&mut header, path(&name), io::empty()))
    }

    /// Adds a regular file of exactly `size` bytes; `cut_short` is the error of a content that ends before.
    pub(super) fn file(
        &mut self,
        name: &[u8],
        attributes: Attributes,
        size: u64,
        content: impl Read,
        cut_short: impl FnOnce() -> EngineError,
    ) -> Result<(), EngineError> {
        let (name, _) = self.member(name, Kind::File)?;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > MAX_BYTES {
            return Err(too_large(format!("the tree has more than {} GiB of content", MAX_BYTES >> 30)));
        }
        let mut header = header(EntryType::Regular, attributes, size);
        let mut content = Exactly { inner: content.take(size), left: size, ended: false };
        let done = self.write(|tar| tar.append_data(&mut header, path(&name), &mut content));
        if content.ended { done.map_err(|_| cut_short()) } else { done }
    }

    /// Adds a symlink.
    pub(super) fn symlink(&mut self, name: &[u8], attributes: Attributes, target: &[u8]) -> Result<(), EngineError> {
        let (name, _) = self.member(name, Kind::Symlink)?;
        check_target(&name, target)?;
        let mut header = header(EntryType::Symlink, attributes, 0);
        self.write(|tar| tar.append_link(&mut header, path(&name), path(target)))
    }

    /// Returns the tar, to be read from its start.
    pub(super) fn finish(self) -> Result<File, EngineError> {
        let finish = || {
            let mut file = self.tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.flush()?;
            io::Seek::rewind(&mut file)?;
            Ok(file)
        };
        finish().map_err(|error: io::Error| EngineError::io("write an archive", &error))
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut tar::Builder<BufWriter<File>>) -> io::Result<()>,
    ) -> Result<(), EngineError> {
        write(&mut self.tar).map_err(|error| EngineError::io("write an archive", &error))
    }

    /// Checks a member against its name and those before it; returns its plain name, and whether it was there.
    fn member(&mut self, name: &[u8], kind: Kind) -> Result<(Vec<u8>, bool), EngineError> {
        let shown = String::from_utf8_lossy(name).escape_debug().take(200).collect::<String>();
        let invalid = |what: String| {
            EngineError::new(ErrorCode::InvalidArgument, what)
                .with_hint("an archive holds files, directories and symlinks with relative names")
        };
        if name.is_empty() || name.contains(&0) || name.len() > MAX_NAME {
            return Err(invalid(format!("unsafe archive member path: '{shown}' is empty or too long")));
        }
        if name.starts_with(b"/") {
            return Err(invalid(format!("unsafe archive member path: '{shown}' is absolute")));
        }
        let parts: Vec<&[u8]> =
            name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        if parts.contains(&b"..".as_slice()) {
            return Err(invalid(format!("unsafe archive member path: '{shown}' contains `..`")));
        }
        if parts.is_empty() {
            // `./` is the tree itself.
            return match kind {
                Kind::Directory => Ok((Vec::new(), true)),
                _ => Err(invalid(format!("unsafe archive member path: '{shown}' names nothing"))),
            };
        }
        if parts.len() > MAX_DEPTH {
            return Err(too_large(format!("'{shown}' is nested more than {MAX_DEPTH} deep")));
        }
        let plain = parts.join(&b'/');
        for end in plain.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at) {
            let Some(parent) = plain.get(..end) else { continue };
            match self.seen.get(parent) {
                Some(Kind::Symlink) => {
                    return Err(invalid(format!("archive member '{shown}' lies behind a symlink")));
                }
                Some(Kind::File) => return Err(invalid(format!("archive member '{shown}' lies below a file"))),
                Some(Kind::Directory | Kind::Implied) => {}
                None => {
                    self.name_bytes += parent.len();
                    self.seen.insert(parent.to_vec(), Kind::Implied);
                }
            }
        }
        match (self.seen.get(&plain), kind) {
            (None, _) | (Some(Kind::Implied), Kind::Directory) => {}
            (Some(Kind::Directory), Kind::Directory) => return Ok((plain, true)),
            (Some(Kind::Implied), _) => {
                return Err(invalid(format!("archive member '{shown}' has members below it, and is no directory")));
            }
            (Some(_), _) => return Err(invalid(format!("archive member '{shown}' is there twice"))),
        }
        self.entries += 1;
        self.name_bytes += plain.len();
        if self.entries > MAX_ENTRIES || self.name_bytes > MAX_NAME_BYTES {
            return Err(too_large(format!("the tree has more than {MAX_ENTRIES} members, or too long names")));
        }
        self.seen.insert(plain.clone(), kind);
        Ok((plain, false))
    }
}

/// Refuses a symlink that could lead out of the tree it is in.
pub(super) fn check_target(name: &[u8], target: &[u8]) -> Result<(), EngineError> {
    let leads_out = target.is_empty()
        || target.len() > MAX_NAME
        || target.contains(&0)
        || target.starts_with(b"/")
        || target.split(|byte| *byte == b'/').any(|part| part == b"..");
    if !leads_out {
        return Ok(());
    }
    let (name, target) = (String::from_utf8_lossy(name), String::from_utf8_lossy(target));
    let message = format!("symlink '{}' has the target '{}'", name.escape_debug(), target.escape_debug());
    Err(EngineError::new(ErrorCode::InvalidArgument, message)
        .with_hint("a target must be relative and must not contain `..`"))
}

fn too_large(message: String) -> EngineError {
    EngineError::new(ErrorCode::LimitExceeded, message).with_hint("choose a smaller tree")
}

fn header(kind: EntryType, attributes: Attributes, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(attributes.mode & 0o777);
    header.set_mtime(attributes.mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header
}

fn path(bytes: &[u8]) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// A content that is an error when it ends early: the header has named its size.
struct Exactly<R> {
    inner: R,
    left: u64,
    /// It ended early.
    ended: bool,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(count as u64);
        if count == 0 && !buffer.is_empty() && self.left > 0 {
            self.ended = true;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}
