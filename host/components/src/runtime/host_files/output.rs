//! Output under construction: staged beside its place, renamed there when it is whole.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pyro_engine::{EngineError, ErrorCode};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, flock};
use rustix::io::Errno;

use super::super::blob::Blob;
use super::confined::{Confined, Roots, beneath};
use super::pack::{MAX_DEPTH, check_target};

/// Most members of one output.
const MAX_ENTRIES: u64 = 1_000_000;

/// Most bytes of one output.
const MAX_BYTES: u64 = 64 << 30;

/// Bytes copied at a time.
const CHUNK: usize = 64 << 10;

/// A block of zeroes this long becomes a hole: most file systems have none that are smaller.
const BLOCK: usize = 4 << 10;

/// How the names of stages begin. A random number in hexadecimal follows.
const STAGE: &str = ".pyro-output-";

/// Digits of that number.
const STAGE_DIGITS: usize = 16;

/// The name of the output inside its stage.
const ROOT: &str = "output";

/// An output whose stage is removed when it is dropped uncommitted.
#[derive(Debug)]
pub(super) struct Output {
    /// The directory that the output will be in.
    parent: OwnedFd,
    /// Its name there.
    name: PathBuf,
    shown: String,
    stage: Stage,
    /// The file opened last, and how much of it is written.
    file: Option<(File, u64)>,
    entries: u64,
    bytes: u64,
    committed: bool,
}

/// A directory beside the place, of this output alone, and the directories that were made for the place.
///
/// It is locked while its output is made. One that nobody locks was left by a killed process, and goes with the next
/// output that is made beside it.
#[derive(Debug)]
struct Stage {
    parent: OwnedFd,
    name: String,
    directory: OwnedFd,
    made: Vec<(OwnedFd, PathBuf)>,
    keep_made: bool,
}

impl Output {
    /// Opens an output for `path`, where nothing may be yet. Parents are made.
    pub(super) fn open(roots: &Roots<'_>, path: &str) -> Result<Output, EngineError> {
        let confined = roots.find(path)?;
        let exists = || {
            EngineError::new(ErrorCode::AlreadyExists, format!("output_path already exists: {}", confined.shown))
                .with_hint("choose a path where nothing is")
        };
        let Some(name) = confined.relative.file_name().map(PathBuf::from) else { return Err(exists()) };
        if confined.relative.iter().any(|part| is_stage(part.as_bytes())) {
            let message = format!("`{}` has a name of an output under construction", confined.shown);
            return Err(EngineError::new(ErrorCode::InvalidArgument, message)
                .with_hint("choose a path without such a name: pyro removes what is left there"));
        }
        let directory = OFlags::PATH | OFlags::DIRECTORY;
        let mut parent = duplicate(&confined.root).map_err(|errno| confined.error(errno))?;
        let mut made = Vec::new();
        let mut prefix = PathBuf::new();
        for part in confined.relative.parent().into_iter().flat_map(Path::components) {
            prefix.push(part);
            // From the root each time: a symlink in the middle may lead up, as long as it stays beneath.
            let opened = match beneath(&confined.root, &prefix, directory) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                        Ok(()) => {
                            let at = duplicate(&parent).map_err(|errno| confined.error(errno))?;
                            made.push((at, PathBuf::from(part.as_os_str())));
                        }
                        // Somebody else made it.
                        Err(Errno::EXIST) => {}
                        Err(errno) => {
                            remove_made(&made);
                            return Err(confined.error(errno));
                        }
                    }
                    beneath(&confined.root, &prefix, directory)
                }
                opened => opened,
            };
            parent = opened.map_err(|errno| {
                remove_made(&made);
                if errno == Errno::NOTDIR { not_a_directory(&confined, &prefix) } else { confined.error(errno) }
            })?;
        }
        match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => {
                remove_made(&made);
                return Err(exists());
            }
            Err(Errno::NOENT) => {}
            Err(errno) => {
                remove_made(&made);
                return Err(confined.error(errno));
            }
        }
        let stage = Stage::make(&parent, made)
            .map_err(|errno| EngineError::io(format_args!("write beside `{}`", confined.shown), &errno.into()))?;
        Ok(Output { parent, name, shown: confined.shown, stage, file: None, entries: 0, bytes: 0, committed: false })
    }

    /// Makes a directory; one that is there already gets the mode.
    pub(super) fn directory(&mut self, path: &str, mode: u32) -> Result<(), EngineError> {
        self.file = None;
        let (parent, name) = self.place(path)?;
        // Its owner must be able to fill and to remove it.
        let mode = Mode::from_raw_mode((mode & 0o777) | 0o700);
        match rustix::fs::mkdirat(&parent, &name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.failed(path, errno)),
        }
        let made = open_plain(&parent, Path::new(&name), OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|made| rustix::fs::fchmod(made, mode));
        made.map_err(|errno| self.failed(path, errno))
    }

    /// Makes an empty file, which what is written next goes to.
    pub(super) fn file(&mut self, path: &str, mode: u32) -> Result<(), EngineError> {
        self.file = None;
        let (parent, name) = self.place(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let file = rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o600))
            .and_then(|file| rustix::fs::fchmod(&file, mode).map(|()| file))
            .map_err(|errno| self.failed(path, errno))?;
        self.file = Some((file.into(), 0));
        Ok(())
    }

    /// Makes a symlink that stays within the output.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> Result<(), EngineError> {
        self.file = None;
        check_target(path.as_bytes(), target.as_bytes())?;
        let (parent, name) = self.place(path)?;
        rustix::fs::symlinkat(target, &parent, &name).map_err(|errno| self.failed(path, errno))
    }

    /// Appends to the file made last. Blocks of zeroes become holes.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), EngineError> {
        self.grow(data.len() as u64)?;
        let shown = &self.shown;
        let Some((file, at)) = &mut self.file else { return Err(no_file()) };
        let length = data.len() as u64;
        let mut written = write_sparse(file, *at, data);
        if data.last() == Some(&0) {
            written = written.and_then(|()| file.set_len(*at + length));
        }
        written.map_err(|error| EngineError::io(format_args!("write `{shown}`"), &error))?;
        *at += length;
        Ok(())
    }

    /// Appends a range of a blob to the file made last. Blocks of zeroes become holes.
    pub(super) fn write_blob(&mut self, data: &Blob, offset: u64, length: u64) -> Result<(), EngineError> {
        let length = length.min(data.len().saturating_sub(offset));
        self.grow(length)?;
        let shown = &self.shown;
        let Some((file, at)) = &mut self.file else { return Err(no_file()) };
        let copy = || {
            let mut done = 0;
            while done < length {
                let piece = usize::try_from(length - done).unwrap_or(CHUNK).min(CHUNK);
                let bytes = data.read(offset + done, piece)?;
                if bytes.is_empty() {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                write_sparse(file, *at + done, &bytes)?;
                done += bytes.len() as u64;
            }
            file.set_len(*at + done)
        };
        copy().map_err(|error| EngineError::io(format_args!("write `{shown}`"), &error))?;
        *at += length;
        Ok(())
    }

    /// Moves the output to its place.
    pub(super) fn commit(&mut self) -> Result<(), EngineError> {
        if self.committed {
            return Err(EngineError::new(ErrorCode::InvalidState, "the output is committed already"));
        }
        let io = |error: std::io::Error| EngineError::io(format_args!("write `{}`", self.shown), &error);
        if let Some((file, _)) = self.file.take() {
            file.sync_all().map_err(io)?;
        }
        let renamed =
            rustix::fs::renameat_with(&self.stage.directory, ROOT, &self.parent, &self.name, RenameFlags::NOREPLACE);
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let message = format!("output_path already exists: {}", self.shown);
                return Err(EngineError::new(ErrorCode::AlreadyExists, message)
                    .with_hint("something was put there meanwhile; choose another path"));
            }
            Err(Errno::NOENT) => {
                return Err(EngineError::new(ErrorCode::InvalidState, "nothing was written to the output")
                    .with_hint("make the root first: `directory(\"\")` or `file(\"\")`"));
            }
            Err(errno) => return Err(io(errno.into())),
        }
        self.committed = true;
        self.stage.keep_made = true;
        // It is empty now; what cannot be removed here is removed with the handle.
        let _ = rustix::fs::unlinkat(&self.stage.parent, &self.stage.name, AtFlags::REMOVEDIR);
        // The name is what a crash must not lose.
        if let Ok(parent) = open_plain(&self.parent, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY) {
            let _ = rustix::fs::fsync(parent);
        }
        Ok(())
    }

    fn grow(&mut self, by: u64) -> Result<(), EngineError> {
        self.bytes = self.bytes.saturating_add(by);
        if self.bytes > MAX_BYTES {
            let message = format!("the output has more than {} GiB", MAX_BYTES >> 30);
            return Err(EngineError::new(ErrorCode::LimitExceeded, message).with_hint("export less"));
        }
        Ok(())
    }

    /// Returns where a member goes: its directory in the stage, made when missing, and its name there.
    fn place(&mut self, path: &str) -> Result<(OwnedFd, std::ffi::OsString), EngineError> {
        self.entries += 1;
        if self.committed {
            return Err(EngineError::new(ErrorCode::InvalidState, "the output is committed already"));
        }
        if self.entries > MAX_ENTRIES {
            let message = format!("the output has more than {MAX_ENTRIES} members");
            return Err(EngineError::new(ErrorCode::LimitExceeded, message).with_hint("export less"));
        }
        let parts: Vec<&str> = if path.is_empty() { Vec::new() } else { path.split('/').collect() };
        let bad = parts
            .iter()
            .any(|part| part.is_empty() || *part == "." || *part == ".." || part.len() > 255 || part.contains('\0'));
        if bad || path.len() > 4096 || parts.len() > MAX_DEPTH {
            let shown: String = path.escape_debug().take(200).collect();
            let message = format!("`{shown}` is not a relative path of plain names");
            return Err(EngineError::new(ErrorCode::InvalidArgument, message)
                .with_hint("leave out `/` at its start, `.` and `..`"));
        }
        let Some((last, above)) = parts.split_last() else {
            let stage = duplicate(&self.stage.directory).map_err(|errno| self.failed(path, errno))?;
            return Ok((stage, ROOT.into()));
        };
        let mut directory = duplicate(&self.stage.directory).map_err(|errno| self.failed(path, errno))?;
        for part in std::iter::once(&ROOT).chain(above) {
            match rustix::fs::mkdirat(&directory, *part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.failed(path, errno)),
            }
            directory = open_plain(&directory, Path::new(part), OFlags::PATH | OFlags::DIRECTORY)
                .map_err(|errno| self.failed(path, errno))?;
        }
        Ok((directory, OsStr::from_bytes(last.as_bytes()).to_owned()))
    }

    fn failed(&self, path: &str, errno: Errno) -> EngineError {
        let shown = &self.shown;
        match errno {
            Errno::EXIST => EngineError::new(ErrorCode::AlreadyExists, format!("`{path}` is in the output already"))
                .with_hint("write each member once"),
            Errno::LOOP | Errno::NOTDIR | Errno::XDEV => EngineError::new(
                ErrorCode::InvalidArgument,
                format!("`{path}` lies below a file or symlink of the output"),
            )
            .with_hint("write a member only below directories"),
            errno => EngineError::io(format_args!("write `{shown}/{path}`"), &errno.into()),
        }
    }
}

fn no_file() -> EngineError {
    EngineError::new(ErrorCode::InvalidState, "no file is open for writing").with_hint("call `file` first")
}

fn not_a_directory(confined: &Confined, prefix: &Path) -> EngineError {
    let below = confined.relative.iter().count().saturating_sub(prefix.iter().count());
    let shown = Path::new(&confined.shown).ancestors().nth(below).unwrap_or(prefix).display();
    let message = format!("`{shown}` is not a directory, so `{}` cannot be made below it", confined.shown);
    EngineError::new(ErrorCode::NotFound, message).with_hint("choose a path below a directory")
}

/// Writes all but the blocks of zeroes, which a new file has anyway. The file's length is the caller's to set.
fn write_sparse(file: &File, at: u64, data: &[u8]) -> std::io::Result<()> {
    // Where the blocks of the file begin in the data.
    let first = usize::try_from(at.next_multiple_of(BLOCK as u64) - at).unwrap_or(BLOCK).min(data.len());
    let (head, rest) = data.split_at(first);
    // What is not written yet, as neighbours in one piece: where it begins and ends.
    let (mut from, mut to) = (0, 0);
    for block in std::iter::once(head).chain(rest.chunks(BLOCK)) {
        if block.iter().any(|byte| *byte != 0) {
            to += block.len();
            continue;
        }
        file.write_all_at(data.get(from..to).unwrap_or_default(), at + from as u64)?;
        to += block.len();
        from = to;
    }
    file.write_all_at(data.get(from..).unwrap_or_default(), at + from as u64)
}

/// Copies a descriptor. Programs that are started meanwhile must not keep it: with it they would keep the stage's lock.
fn duplicate(descriptor: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, 0)
}

/// Opens a member of a directory; a symlink is not followed.
fn open_plain(directory: &OwnedFd, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(directory, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Whether a name is that of an output under construction.
pub(super) fn is_stage(name: &[u8]) -> bool {
    name.strip_prefix(STAGE.as_bytes()).is_some_and(|digits| {
        digits.len() == STAGE_DIGITS && digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

impl Stage {
    fn make(parent: &OwnedFd, made: Vec<(OwnedFd, PathBuf)>) -> Result<Stage, Errno> {
        sweep(parent);
        let opened = (0..10)
            .find_map(|_| Stage::locked(parent).transpose())
            .unwrap_or(Err(Errno::AGAIN))
            .and_then(|(name, directory)| Ok((duplicate(parent)?, name, directory)));
        match opened {
            Ok((parent, name, directory)) => Ok(Stage { parent, name, directory, made, keep_made: false }),
            Err(errno) => {
                remove_made(&made);
                Err(errno)
            }
        }
    }

    /// Makes a directory and locks it; `None` when somebody took it for a leftover in between.
    fn locked(parent: &OwnedFd) -> Result<Option<(String, OwnedFd)>, Errno> {
        let mut random = [0; STAGE_DIGITS / 2];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let name = format!("{STAGE}{}", hex::encode(random));
        rustix::fs::mkdirat(parent, &name, Mode::from_raw_mode(0o700))?;
        let directory = match open_plain(parent, Path::new(&name), OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened?,
        };
        // Another failure is a file system without locks: no stage on it is ever taken for a leftover.
        if flock(&directory, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Ok(None);
        }
        Ok(is_at(parent, &name, &directory).then_some((name, directory)))
    }
}

/// Whether an open directory is the one of that name.
fn is_at(parent: &OwnedFd, name: &str, directory: &OwnedFd) -> bool {
    let (Ok(open), Ok(there)) =
        (rustix::fs::fstat(directory), rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW))
    else {
        return false;
    };
    (open.st_dev, open.st_ino) == (there.st_dev, there.st_ino)
}

/// Removes the stages in a directory that were left by processes that are gone, as far as it can: no output fails for
/// what another one left.
fn sweep(parent: &OwnedFd) {
    let Ok(entries) = open_plain(parent, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY).and_then(Dir::new) else {
        return;
    };
    for entry in entries.flatten() {
        let Some(name) = entry.file_name().to_str().ok().filter(|name| is_stage(name.as_bytes())) else { continue };
        let Ok(directory) = open_plain(parent, Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
        let is_ours =
            rustix::fs::fstat(&directory).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
        // The lock is held until it is removed: its maker may be about to lock it, and must see that it is gone.
        if is_ours
            && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_at(parent, name, &directory)
        {
            remove(parent, name);
        }
    }
}

/// Removes a stage, through the open directory it is in: whatever was renamed on the way there, nothing else is removed.
fn remove(parent: &OwnedFd, name: &str) {
    let path = format!("/proc/self/fd/{}/{name}", parent.as_raw_fd());
    if let Err(error) = std::fs::remove_dir_all(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(name, "a staged output is left: {error}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        remove(&self.parent, &self.name);
        if !self.keep_made {
            remove_made(&self.made);
        }
    }
}

/// Removes the directories that were made for an output, as far as nothing is in them.
fn remove_made(made: &[(OwnedFd, PathBuf)]) {
    for (parent, name) in made.iter().rev() {
        let _ = rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use bytes::Bytes;

    use super::*;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Home {
            Home(tempfile::tempdir().unwrap())
        }

        fn open(&self, path: &str) -> Result<Output, EngineError> {
            Output::open(&Roots::writing(&[self.0.path().to_owned()]), self.0.path().join(path).to_str().unwrap())
        }

        /// Everything in it.
        fn names(&self) -> Vec<String> {
            let mut found = Vec::new();
            let mut open = vec![self.0.path().to_owned()];
            while let Some(directory) = open.pop() {
                for entry in std::fs::read_dir(directory).unwrap() {
                    let path = entry.unwrap().path();
                    found.push(path.strip_prefix(self.0.path()).unwrap().display().to_string());
                    if path.symlink_metadata().unwrap().is_dir() {
                        open.push(path);
                    }
                }
            }
            found.sort();
            found
        }
    }

    fn code(result: Result<impl std::fmt::Debug, EngineError>) -> &'static str {
        result.unwrap_err().code().as_str()
    }

    #[test]
    fn nothing_is_seen_before_the_commit_and_nothing_is_left_without_one() {
        let home = Home::new();
        let mut output = home.open("a/b/out").unwrap();
        output.file("x/y", 0o644).unwrap();
        output.write(b"text").unwrap();
        assert!(!home.0.path().join("a/b/out").exists());
        drop(output);
        assert_eq!(home.names(), Vec::<String>::new());
        let mut output = home.open("a/b/out").unwrap();
        output.file("", 0o750).unwrap();
        output.write(b"text").unwrap();
        output.commit().unwrap();
        assert_eq!(code(output.commit()), "invalid_state");
        assert_eq!(code(output.file("more", 0o600)), "invalid_state");
        drop(output);
        assert_eq!(home.names(), ["a", "a/b", "a/b/out"]);
        assert_eq!(std::fs::metadata(home.0.path().join("a/b/out")).unwrap().mode() & 0o777, 0o750);
    }

    #[test]
    fn what_comes_in_between_is_not_replaced() {
        let home = Home::new();
        let mut output = home.open("out").unwrap();
        output.directory("", 0o755).unwrap();
        std::fs::write(home.0.path().join("out"), "mine").unwrap();
        assert_eq!(code(output.commit()), "already_exists");
        drop(output);
        assert_eq!(std::fs::read(home.0.path().join("out")).unwrap(), b"mine");
        assert_eq!(home.names(), ["out"]);
        assert_eq!(code(home.open("out")), "already_exists");
        let mut empty = home.open("empty").unwrap();
        assert_eq!(code(empty.commit()), "invalid_state");
    }

    #[test]
    fn members_stay_within_the_output() {
        let home = Home::new();
        let mut output = home.open("out").unwrap();
        let long = "n".repeat(256);
        for path in ["/etc/x", "../x", "a/../../x", "a//b", "./a", "a/", long.as_str(), &"a/".repeat(200), "a\0b"] {
            assert_eq!(code(output.file(path, 0o644)), "invalid_argument", "{path}");
            assert_eq!(code(output.directory(path, 0o755)), "invalid_argument", "{path}");
        }
        for target in ["/etc", "../x", "a/../../x", ""] {
            assert_eq!(code(output.symlink("l", target)), "invalid_argument", "{target}");
        }
        output.directory("real", 0o755).unwrap();
        output.symlink("link", "real").unwrap();
        assert_eq!(code(output.file("link/x", 0o644)), "invalid_argument");
        assert_eq!(code(output.file("link", 0o644)), "already_exists");
        output.file("f", 0o644).unwrap();
        assert_eq!(code(output.file("f/x", 0o644)), "invalid_argument");
        assert_eq!(code(output.write(b"nowhere")), "invalid_state");
        output.commit().unwrap();
        assert_eq!(home.names(), ["out", "out/f", "out/link", "out/real"]);
    }

    #[test]
    fn zeroes_become_holes() {
        let home = Home::new();
        let mut output = home.open("out").unwrap();
        output.file("", 0o644).unwrap();
        output.write(b"head").unwrap();
        let mut disk = vec![0; 4 << 20];
        disk[2 << 20] = 1;
        let blob = Blob::memory(Bytes::from(disk.clone()));
        output.write_blob(&blob, 0, u64::MAX).unwrap();
        output.write_blob(&blob, u64::MAX, 1).unwrap();
        output.commit().unwrap();
        let path = home.0.path().join("out");
        assert_eq!(std::fs::read(&path).unwrap(), [b"head".as_slice(), &disk].concat());
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20, "it is not sparse");
    }

    #[test]
    fn zeroes_that_are_written_piece_by_piece_become_holes() {
        let home = Home::new();
        let mut data = vec![0; 4 << 20];
        for at in [0, 5000, BLOCK * 9 - 1, BLOCK * 9, 3 << 20] {
            data[at] = 1;
        }
        for (name, piece) in [("whole", data.len()), ("even", 1 << 16), ("odd", 100_003)] {
            let mut output = home.open(name).unwrap();
            output.file("", 0o644).unwrap();
            for piece in data.chunks(piece) {
                output.write(piece).unwrap();
                output.write(b"").unwrap();
            }
            output.commit().unwrap();
            let path = home.0.path().join(name);
            assert!(std::fs::read(&path).unwrap() == data, "{name}");
            assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20, "{name} is not sparse");
        }
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_output() {
        let home = Home::new();
        let at = |name: &str| home.0.path().join(name);
        let left = format!("{STAGE}0123456789abcdef");
        std::fs::create_dir_all(at(&left).join("output/sub")).unwrap();
        std::fs::write(at(&left).join("output/sub/file"), "half").unwrap();
        // None of these is one.
        std::fs::create_dir(at("mine")).unwrap();
        std::fs::write(at("mine/file"), "mine").unwrap();
        let others = [
            format!("{STAGE}0123456789abcde"),
            format!("{STAGE}0123456789ABCDEF"),
            format!("{STAGE}0123456789abcdef0"),
        ];
        others.iter().for_each(|name| std::fs::create_dir(at(name)).unwrap());
        std::os::unix::fs::symlink("mine", at(&format!("{STAGE}1111111111111111"))).unwrap();
        std::fs::write(at(&format!("{STAGE}2222222222222222")), "a file").unwrap();
        let before = home.names();
        let mut first = home.open("first").unwrap();
        first.file("x", 0o644).unwrap();
        assert!(!at(&left).exists());
        // The first one is locked, so the second one leaves it alone.
        let mut second = home.open("second").unwrap();
        second.file("", 0o644).unwrap();
        first.commit().unwrap();
        second.commit().unwrap();
        drop((first, second));
        let mut after: Vec<String> = before.into_iter().filter(|name| !name.starts_with(&left)).collect();
        // Its name begins as that of the one that is gone.
        after.push(others[2].clone());
        after.extend(["first", "first/x", "second"].map(str::to_owned));
        after.sort();
        assert_eq!(home.names(), after);
        assert_eq!(std::fs::read(at("mine/file")).unwrap(), b"mine");
    }

    #[test]
    fn a_stage_that_another_process_holds_stays() {
        let home = Home::new();
        let held = home.0.path().join(format!("{STAGE}0123456789abcdef"));
        std::fs::create_dir(&held).unwrap();
        let lock = File::open(&held).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        drop(home.open("out").unwrap());
        assert!(held.exists());
        drop(lock);
        drop(home.open("out").unwrap());
        assert!(!held.exists());
        let below = held.join("out");
        for path in [&held, &below] {
            assert_eq!(code(home.open(path.to_str().unwrap())), "invalid_argument");
        }
        assert_eq!(home.names(), Vec::<String>::new());
    }

    #[test]
    fn a_parent_that_is_a_file_is_named() {
        let home = Home::new();
        std::fs::write(home.0.path().join("plain"), "x").unwrap();
        let place = home.0.path().display();
        for path in ["plain/f", "plain/f/g"] {
            let error = home.open(path).unwrap_err();
            let message = format!("`{place}/plain` is not a directory, so `{place}/{path}` cannot be made below it");
            assert_eq!(error.message(), message);
            assert!(error.hint().is_some());
        }
        assert_eq!(home.names(), ["plain"]);
    }

    #[test]
    fn a_parent_that_leads_out_is_refused() {
        let home = Home::new();
        std::fs::create_dir(home.0.path().join("root")).unwrap();
        std::os::unix::fs::symlink("..", home.0.path().join("root/up")).unwrap();
        let roots = [home.0.path().join("root")];
        let path = home.0.path().join("root/up/new/out");
        assert_eq!(code(Output::open(&Roots::writing(&roots), path.to_str().unwrap())), "denied");
        assert_eq!(home.names(), ["root", "root/up"]);
    }
}
