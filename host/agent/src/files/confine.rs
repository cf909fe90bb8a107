//! Paths that may not leave a root.
//!
//! A path is followed one name at a time, each opened in the directory before it without following symlinks. A symlink's
//! target is read and followed the same way: an absolute one must lie below the root by its text, and `..` may not climb
//! above it. The kernel's own confinement (`openat2`) cannot do the first. The root itself is what its text says: no part
//! of it may be a symlink, which whoever may only use what is below it could have made.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyro_agent_protocol::codes;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use super::{DIRECTORY, refused};
use crate::peer::Fail;

/// Symlinks followed on one path, as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// A root and a path below it.
pub struct Confined {
    root: OwnedFd,
    root_names: Vec<Vec<u8>>,
    names: Vec<Vec<u8>>,
    /// The path as it is shown.
    pub path: String,
}

/// Where a path ends: a directory, and a name in it that was not followed.
pub struct Place {
    /// The directory.
    pub dir: OwnedFd,
    /// The name; `None` when the path is the root itself, which is then `dir`.
    pub name: Option<CString>,
}

/// Directories that were made on the way, to be removed when the work fails.
#[derive(Default)]
pub struct Made(Vec<(OwnedFd, CString)>);

/// What to do at the end of the path, and on the way to it.
struct Walk<'a> {
    follow_last: bool,
    make: Option<&'a mut Made>,
}

impl Confined {
    /// Opens `root` and checks that `path` is it or below it.
    ///
    /// # Errors
    /// `denied` when it is not or the root is reached through a symlink, `not_found` when there is no root,
    /// `invalid_argument` when they are not absolute paths without `..`.
    pub fn new(root: &str, path: &str) -> Result<Self, Fail> {
        let root_names = names("root", root)?;
        let all = names("path", path)?;
        let Some(names) = all.strip_prefix(root_names.as_slice()) else {
            return Err(Fail::new(codes::DENIED, format!("path `{path}` is not below `{root}`")));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat2(CWD, root, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(|errno| match errno {
            Errno::LOOP => Fail::new(codes::DENIED, format!("`{root}` leads through a symlink, so it is no root")),
            errno => refused("open", root, errno),
        })?;
        let shown = join(&all);
        Ok(Self { root: fd, names: names.to_vec(), root_names, path: shown })
    }

    /// Returns the place of the path, whose last name may not exist.
    ///
    /// # Errors
    /// `denied` when a symlink leaves the root; `not_found`.
    pub fn place(&self) -> Result<Place, Fail> {
        self.walk(Walk { follow_last: false, make: None })
    }

    /// Returns the place of the path, and makes the directories on the way to it.
    ///
    /// # Errors
    /// As [`place`](Self::place); what making a directory fails with.
    pub fn place_with_parents(&self, made: &mut Made) -> Result<Place, Fail> {
        self.walk(Walk { follow_last: false, make: Some(made) })
    }

    /// Returns the place of what the path leads to when a symlink at its end is followed too.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub fn followed(&self) -> Result<Place, Fail> {
        self.walk(Walk { follow_last: true, make: None })
    }

    /// Returns the directory at the path, followed, and makes it and those on the way to it.
    ///
    /// # Errors
    /// As [`place_with_parents`](Self::place_with_parents).
    pub fn directory_made(&self, made: &mut Made) -> Result<OwnedFd, Fail> {
        let place = self.walk(Walk { follow_last: true, make: Some(made) })?;
        let Some(name) = &place.name else { return Ok(place.dir) };
        self.step_into(place.dir.as_fd(), name, Some(made))
            .and_then(|(fd, kind)| if kind == FileType::Directory { Ok(fd) } else { Err(Errno::NOTDIR) })
            .map_err(|errno| match errno {
                Errno::NOTDIR => Fail::new(codes::INVALID_ARGUMENT, format!("`{}` is not a directory", self.path)),
                errno => refused("make", &self.path, errno),
            })
    }

    fn walk(&self, mut walk: Walk<'_>) -> Result<Place, Fail> {
        let refuse = |errno| refused("reach", &self.path, errno);
        let leaves = || Fail::new(codes::DENIED, format!("path `{}` leaves its root through a symlink", self.path));
        let root = || rustix::io::fcntl_dupfd_cloexec(&self.root, 3).map_err(refuse);
        let mut stack = vec![root()?];
        let mut todo: VecDeque<Vec<u8>> = self.names.iter().cloned().collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name.is_empty() || name == b"." {
                continue;
            }
            if name == b".." {
                stack.pop();
                if stack.is_empty() {
                    return Err(leaves());
                }
                continue;
            }
            let name = CString::new(name).map_err(|_| refuse(Errno::INVAL))?;
            let is_last = todo.iter().all(|name| name.is_empty() || name == b".");
            let dir = stack.last().ok_or_else(leaves)?.as_fd();
            if is_last && !(walk.follow_last && is_symlink(dir, &name)) {
                let dir = stack.pop().ok_or_else(leaves)?;
                return Ok(Place { dir, name: Some(name) });
            }
            let (fd, kind) = self.step_into(dir, &name, walk.make.as_deref_mut()).map_err(refuse)?;
            match kind {
                FileType::Directory => stack.push(fd),
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(refuse(Errno::LOOP));
                    }
                    let target = readlinkat(&fd, c"", Vec::new()).map_err(refuse)?;
                    let target = target.to_bytes();
                    let mut next: Vec<Vec<u8>> = target.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
                    if target.starts_with(b"/") {
                        next.retain(|name| !name.is_empty() && name != b".");
                        next = next.strip_prefix(self.root_names.as_slice()).ok_or_else(leaves)?.to_vec();
                        stack = vec![root()?];
                    }
                    for name in next.into_iter().rev() {
                        todo.push_front(name);
                    }
                }
                _ => return Err(refuse(Errno::NOTDIR)),
            }
        }
        let dir = stack.pop().ok_or_else(leaves)?;
        Ok(Place { dir, name: None })
    }

    /// Opens `name` in `dir` whatever it is; makes a directory of that name when there is nothing.
    fn step_into(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        make: Option<&mut Made>,
    ) -> Result<(OwnedFd, FileType), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match (openat(dir, name, flags, Mode::empty()), make) {
            (Err(Errno::NOENT), Some(made)) => {
                match mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => made.0.push((rustix::io::fcntl_dupfd_cloexec(dir, 3)?, name.to_owned())),
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                openat(dir, name, flags, Mode::empty())?
            }
            (other, _) => other?,
        };
        let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
        Ok((fd, kind))
    }
}

impl Place {
    /// Opens what is there, without following a symlink.
    ///
    /// # Errors
    /// What the system answers.
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat(&self.dir, self.name.as_deref().unwrap_or(c"."), flags, Mode::empty())
    }
}

impl Made {
    /// Removes the directories that are still empty.
    pub fn remove(self) {
        for (dir, name) in self.0.into_iter().rev() {
            let _ = rustix::fs::unlinkat(&dir, &name, AtFlags::REMOVEDIR);
        }
    }
}

/// Opens the directory `name` of `dir`; fails for anything else, symlinks too.
///
/// # Errors
/// What the system answers.
pub fn subdirectory(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(dir, name, DIRECTORY, Mode::empty())
}

fn is_symlink(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

fn names(what: &str, path: &str) -> Result<Vec<Vec<u8>>, Fail> {
    let invalid = |reason: &str| Fail::new(codes::INVALID_ARGUMENT, format!("{what} {path:?} {reason}"));
    if !path.starts_with('/') {
        return Err(invalid("is not absolute"));
    }
    if path.contains('\0') {
        return Err(invalid("contains a NUL byte"));
    }
    let names: Vec<Vec<u8>> =
        path.split('/').filter(|name| !name.is_empty() && *name != ".").map(|name| name.as_bytes().to_vec()).collect();
    if names.iter().any(|name| name == b"..") {
        return Err(invalid("contains `..`"));
    }
    Ok(names)
}

fn join(names: &[Vec<u8>]) -> String {
    if names.is_empty() {
        return "/".to_owned();
    }
    names.iter().fold(String::new(), |path, name| path + "/" + &String::from_utf8_lossy(name))
}
