//! Paths of the host, resolved beneath the roots of a profile.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use pyro_engine::{EngineError, ErrorCode};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

/// The directories of one key of `[host]`.
#[derive(Debug)]
pub(crate) struct Roots<'r> {
    key: &'static str,
    roots: &'r [PathBuf],
}

/// A path beneath an open root.
#[derive(Debug)]
pub(super) struct Confined {
    pub(super) root: OwnedFd,
    /// Of plain names only; empty is the root itself.
    pub(super) relative: PathBuf,
    /// The whole path, for messages.
    pub(super) shown: String,
}

impl<'r> Roots<'r> {
    pub(crate) fn reading(roots: &'r [PathBuf]) -> Roots<'r> {
        Roots { key: "read", roots }
    }

    pub(crate) fn writing(roots: &'r [PathBuf]) -> Roots<'r> {
        Roots { key: "write", roots }
    }

    /// Finds the root that `path` is below. Nothing at the path itself is looked at.
    pub(super) fn find(&self, path: &str) -> Result<Confined, EngineError> {
        if path.is_empty() {
            return Err(EngineError::new(ErrorCode::InvalidArgument, "the host path is empty").with_hint("pass a path"));
        }
        let wanted = absolute(path)?;
        let shown = wanted.display().to_string();
        // The longest root that fits, so that the shortest part is left to resolve.
        let mut best: Option<(PathBuf, &PathBuf)> = None;
        for root in self.roots {
            let canonical = root.canonicalize().ok();
            for alias in [plain(root), canonical].into_iter().flatten() {
                if let Ok(relative) = wanted.strip_prefix(&alias)
                    && best.as_ref().is_none_or(|(found, _)| relative.as_os_str().len() < found.as_os_str().len())
                {
                    best = Some((relative.to_owned(), root));
                }
            }
        }
        let Some((relative, root)) = best else { return Err(self.outside(&wanted)) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty()).map_err(|errno| {
            let message = format!("`{}` of the profile's `[host] {}`: {errno}", root.display(), self.key);
            EngineError::new(ErrorCode::NotFound, message).with_hint("make this directory, or name another")
        })?;
        Ok(Confined { root, relative, shown })
    }

    /// Returns the content of a regular file of at most `most` bytes.
    pub(crate) fn read(&self, path: &str, most: usize) -> Result<Zeroizing<Vec<u8>>, EngineError> {
        let confined = self.find(path)?;
        let file = confined.open(OFlags::RDONLY)?;
        let io = |error: io::Error| EngineError::io(format_args!("read `{}`", confined.shown), &error);
        if !file.metadata().map_err(io)?.is_file() {
            let message = format!("`{}` is not a regular file", confined.shown);
            return Err(EngineError::new(ErrorCode::InvalidArgument, message).with_hint("name a regular file"));
        }
        // One piece from the start, so that no copy of it is left behind by a vector that grows.
        let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
        file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() > most {
            let message = format!("`{}` has more than {most} bytes", confined.shown);
            return Err(EngineError::new(ErrorCode::InvalidArgument, message).with_hint("name a smaller file"));
        }
        Ok(bytes)
    }

    fn outside(&self, wanted: &Path) -> EngineError {
        let shown = wanted.display();
        // No more than is needed, and never all of the host.
        let above = wanted.parent().filter(|above| !wanted.is_dir() && above.parent().is_some());
        let directory = above.unwrap_or(wanted).display();
        let message = match self.roots {
            [] => format!("host path `{shown}` is out of reach: the profile has no `[host] {}`", self.key),
            _ => format!("host path `{shown}` is outside the profile's `[host] {}`", self.key),
        };
        EngineError::new(ErrorCode::Denied, message).with_hint(format!(
            "to allow it, write in the profile:\n[host]\n{} = [{:?}]",
            self.key,
            directory.to_string()
        ))
    }
}

impl Confined {
    /// Opens what is at the path, beneath the root. Neither a pipe nor a device holds it up.
    pub(super) fn open(&self, flags: OFlags) -> Result<File, EngineError> {
        let relative = if self.relative.as_os_str().is_empty() { Path::new(".") } else { &self.relative };
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        beneath(&self.root, relative, flags).map(File::from).map_err(|errno| self.error(errno))
    }

    /// What went wrong at this path.
    pub(super) fn error(&self, errno: Errno) -> EngineError {
        let shown = &self.shown;
        match errno {
            Errno::NOENT | Errno::NOTDIR => EngineError::new(ErrorCode::NotFound, format!("`{shown}` does not exist"))
                .with_hint("check the path; a relative one starts where pyro was started"),
            Errno::XDEV | Errno::LOOP => {
                let message =
                    format!("host path `{shown}` leads out of the profile's `[host]` roots through a symlink");
                EngineError::new(ErrorCode::Denied, message).with_hint("name the file itself, below a root")
            }
            errno => EngineError::io(format_args!("open `{shown}`"), &errno.into()),
        }
    }
}

/// Opens a path beneath a directory: no symlink and no `..` leads out of it.
pub(super) fn beneath(directory: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(&directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel could not tell whether a `..` stayed beneath, because something was renamed.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The absolute path, without `.` and `..`; `~/` is the home directory.
fn absolute(path: &str) -> Result<PathBuf, EngineError> {
    let invalid =
        |message: String| EngineError::new(ErrorCode::InvalidArgument, message).with_hint("pass another path");
    let path = match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    };
    let path = std::path::absolute(&path).map_err(|error| invalid(format!("`{}`: {error}", path.display())))?;
    plain(&path).ok_or_else(|| invalid(format!("`{}` leads above the root directory", path.display())))
}

/// An absolute path with its `.` and `..` worked out by their names.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                if !plain.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn code(result: Result<impl std::fmt::Debug, EngineError>) -> &'static str {
        result.unwrap_err().code().as_str()
    }

    #[test]
    fn only_what_is_beneath_a_root_is_read() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir_all(at("root/sub")).unwrap();
        std::fs::create_dir(at("rootless")).unwrap();
        std::fs::write(at("root/sub/file"), "inside").unwrap();
        std::fs::write(at("secret"), "outside").unwrap();
        std::fs::write(at("rootless/file"), "outside").unwrap();
        symlink("../secret", at("root/up")).unwrap();
        symlink(at("secret"), at("root/absolute")).unwrap();
        symlink("sub/file", at("root/within")).unwrap();
        symlink("..", at("root/parent")).unwrap();
        symlink("loop", at("root/loop")).unwrap();
        let roots = [at("root")];
        let read = |path: &str| {
            let roots = Roots::reading(&roots);
            roots.read(at(path).to_str().unwrap(), 100).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        assert_eq!(read("root/sub/file").unwrap(), "inside");
        assert_eq!(read("root/sub/../sub/./file").unwrap(), "inside");
        assert_eq!(read("root/within").unwrap(), "inside");
        for path in ["secret", "rootless/file", "root/../secret", "root/up", "root/absolute", "root/parent/secret"] {
            assert_eq!(code(read(path)), "denied", "{path}");
        }
        assert_eq!(code(read("root/loop")), "denied");
        assert_eq!(code(read("root/none")), "not_found");
        assert_eq!(code(read("root/sub")), "invalid_argument");
        assert_eq!(code(Roots::reading(&roots).read(at("root/sub/file").to_str().unwrap(), 3)), "invalid_argument");
        assert_eq!(code(Roots::reading(&roots).read("", 3)), "invalid_argument");
        rustix::fs::mknodat(rustix::fs::CWD, at("root/pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(code(read("root/pipe")), "invalid_argument");
    }

    #[test]
    fn a_refusal_names_the_key() {
        let none = Roots::reading(&[]).read("/etc/hostname", 100).unwrap_err();
        assert_eq!(none.message(), "host path `/etc/hostname` is out of reach: the profile has no `[host] read`");
        assert_eq!(none.hint().unwrap(), "to allow it, write in the profile:\n[host]\nread = [\"/etc\"]");
        let roots = [PathBuf::from("/var/empty-of-pyro")];
        let other = Roots::writing(&roots).find("/etc/../etc/passwd").unwrap_err();
        assert_eq!(other.message(), "host path `/etc/passwd` is outside the profile's `[host] write`");
        assert_eq!(code(Roots::writing(&roots).find("/var/empty-of-pyro/x")), "not_found");
    }

    #[test]
    fn a_root_that_is_a_symlink_is_where_it_leads() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        std::fs::create_dir(home.join("real")).unwrap();
        std::fs::write(home.join("real/file"), "x").unwrap();
        symlink("real", home.join("alias")).unwrap();
        let roots = [home.join("alias")];
        for path in ["alias/file", "real/file"] {
            let path = home.join(path);
            assert!(Roots::reading(&roots).read(path.to_str().unwrap(), 10).is_ok(), "{}", path.display());
        }
    }
}
