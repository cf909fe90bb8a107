//! What is not complete yet, under names of its own beside what it is to become.
//!
//! Before such a name is made, a symlink of that name in [`RECORDS`] says where it is. A machine that dies in the middle
//! leaves both, in the order of the file system's journal, and the next start removes what the symlinks tell, before anybody
//! asks for anything. Nothing else is removed: a file of a user that merely has such a name was never announced.
//!
//! While it is there, no list and no archive has it.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use pyro_agent_protocol::codes;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::{DIRECTORY, READ_DIRECTORY, refused, tree};
use crate::peer::Fail;

/// Where the symlinks are, on the root file system.
pub const RECORDS: &CStr = c"/var/lib/pyro-staging";

/// How the names begin; 16 hexadecimal digits follow.
const PREFIX: &[u8] = b".pyro-";

/// The directory of the symlinks, once it was opened or made.
static DIR: OnceLock<OwnedFd> = OnceLock::new();
/// The directory to use, on a system of our own.
static PLACE: OnceLock<CString> = OnceLock::new();
/// Names in use.
static ACTIVE: Mutex<BTreeSet<CString>> = Mutex::new(BTreeSet::new());

/// A name for what is not complete yet. Dropping it says that nothing has it any more.
#[derive(Debug)]
pub struct Stage {
    name: CString,
    recorded: bool,
}

impl Stage {
    /// Announces a name in `dir`.
    ///
    /// # Errors
    /// What to answer: `disk_full`, `internal`.
    pub fn announce(dir: BorrowedFd<'_>, shown: &str) -> Result<Self, Fail> {
        let name = random_name()?;
        let recorded = record(dir, &name).map_err(|errno| refused("prepare a change of", shown, errno))?;
        ACTIVE.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        Ok(Self { name, recorded })
    }

    /// Returns the name.
    pub fn name(&self) -> &CStr {
        &self.name
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        ACTIVE.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        if let Some(dir) = DIR.get().filter(|_| self.recorded) {
            let _ = unlinkat(dir, &self.name, AtFlags::empty());
        }
    }
}

/// True for a name under which something is being made.
pub fn is_active(name: &CStr) -> bool {
    name.to_bytes().starts_with(PREFIX) && ACTIVE.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
}

/// Removes what a machine that died left, and remembers from now on what is made. Returns how much was removed.
pub fn start(records: &CStr) -> usize {
    let mut removed = 0;
    if let Ok(dir) = openat(CWD, records, DIRECTORY, Mode::empty()) {
        let mut names = Vec::new();
        let _ = tree::for_each_name::<Errno>(dir.as_fd(), |name, _| {
            names.push(name.to_owned());
            Ok(())
        });
        for name in names {
            removed += usize::from(is_staged_name(&name) && remove_left(&dir, &name).is_ok());
            let _ = unlinkat(&dir, &name, AtFlags::empty());
        }
    }
    let _ = PLACE.set(records.to_owned());
    removed
}

/// Removes what one symlink tells of.
fn remove_left(records: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let target = readlinkat(records, name, Vec::new())?;
    let target = Path::new(std::ffi::OsStr::from_bytes(target.to_bytes()));
    let (Some(parent), Some(last)) = (target.parent(), target.file_name()) else { return Err(Errno::INVAL) };
    if last.as_bytes() != name.to_bytes() || !parent.is_absolute() {
        return Err(Errno::INVAL);
    }
    // The path had no symlink in it when it was announced.
    let parent = openat2(CWD, parent, DIRECTORY, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    tree::remove_tree(parent.as_fd(), name);
    Ok(())
}

/// Makes the symlink for `name` in `dir`. Returns false where nothing is remembered.
fn record(dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    use std::os::fd::AsRawFd;
    let Some(place) = PLACE.get() else { return Ok(false) };
    let records = match DIR.get() {
        Some(records) => records,
        None => {
            match mkdirat(CWD, place, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            let opened = openat(CWD, place, READ_DIRECTORY.union(OFlags::CLOEXEC), Mode::empty())?;
            DIR.get_or_init(|| opened)
        }
    };
    let path = rustix::fs::readlink(format!("/proc/self/fd/{}", dir.as_raw_fd()), Vec::new())?.into_bytes();
    let mut path = OsString::from_vec(path);
    path.push("/");
    path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
    match symlinkat(&path, records, name) {
        Ok(()) => Ok(true),
        // Deeper than a symlink can tell: it is made all the same.
        Err(Errno::NAMETOOLONG) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn is_staged_name(name: &CStr) -> bool {
    name.to_bytes()
        .strip_prefix(PREFIX)
        .is_some_and(|digits| digits.len() == 16 && digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// Returns a name that nothing else has.
fn random_name() -> Result<CString, Fail> {
    let mut random = [0u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK)
        .map_err(|errno| Fail::new(codes::INTERNAL, format!("no random bytes: {errno}")))?;
    let name = [PREFIX, format!("{:016x}", u64::from_ne_bytes(random)).as_bytes()].concat();
    CString::new(name).map_err(|_| Fail::new(codes::INTERNAL, "a name with a zero byte"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_was_announced_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().canonicalize().unwrap();
        let (records, tree) = (path.join("records"), path.join("tree"));
        fs::create_dir_all(tree.join("in")).unwrap();
        fs::create_dir(&records).unwrap();
        // As a machine leaves them that dies in the middle: a directory, a file, and one that was not made yet.
        let [dir, file, none, users] = ["0123456789abcdef", "0000000000000001", "0000000000000002", "00000000000000aa"]
            .map(|x| format!(".pyro-{x}"));
        fs::create_dir_all(tree.join("in").join(&dir).join("deep")).unwrap();
        fs::write(tree.join("in").join(&dir).join("deep/part"), "part").unwrap();
        fs::write(tree.join(&file), "part").unwrap();
        for (name, at) in [(&dir, tree.join("in").join(&dir)), (&file, tree.join(&file)), (&none, tree.join(&none))] {
            symlink(at, records.join(name)).unwrap();
        }
        // A user's, and lies: another name, another place, a way through a symlink.
        fs::write(tree.join(&users), "mine").unwrap();
        fs::write(tree.join("plain"), "mine").unwrap();
        symlink(tree.join("plain"), records.join(".pyro-00000000000000bb")).unwrap();
        symlink(tree.join("plain"), records.join("plain")).unwrap();
        symlink(&tree, path.join("way")).unwrap();
        symlink(path.join("way").join(&users), records.join(&users)).unwrap();

        let place = CString::new(records.as_os_str().as_bytes()).unwrap();
        assert_eq!(start(&place), 3);
        let names = |path: &Path| {
            let mut names: Vec<String> =
                fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&tree), [users.as_str(), "in", "plain"]);
        assert_eq!(names(&tree.join("in")), [""; 0]);
        assert_eq!(names(&records), [""; 0]);

        // From now on what is made is announced, and is in no list.
        let at = openat(CWD, &tree, DIRECTORY, Mode::empty()).unwrap();
        let stage = Stage::announce(at.as_fd(), "tree").unwrap();
        let name = stage.name().to_str().unwrap().to_owned();
        fs::write(tree.join(&name), "part").unwrap();
        assert_eq!(fs::read_link(records.join(&name)).unwrap(), tree.join(&name));
        let (listed, _) = tree::sorted_names(at.as_fd(), 9).unwrap();
        assert_eq!(listed.len(), 3, "{listed:?}");
        fs::remove_file(tree.join(&name)).unwrap();
        drop(stage);
        assert_eq!(names(&records), [""; 0]);
    }
}
