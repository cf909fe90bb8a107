//! Directories: their names in order, and their removal.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, openat, statat, unlinkat};
use rustix::io::Errno;

use super::{DEPTH_MAX, READ_DIRECTORY};

/// Calls `each` with the names in `dir` and what the directory says they are, in no order.
///
/// # Errors
/// What the system answers, or `each`.
pub fn for_each_name<E: From<Errno>>(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, FileType) -> Result<(), E>,
) -> Result<(), E> {
    let readable = openat(dir, c".", READ_DIRECTORY, Mode::empty())?;
    let mut entries = Dir::new(readable)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not say.
            FileType::Unknown => FileType::from_raw_mode(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode),
            kind => kind,
        };
        each(name, kind)?;
    }
    Ok(())
}

/// Returns the first names in `dir`, in order, without what is being made there, at most `limit`; the flag says that there are more.
///
/// # Errors
/// What the system answers.
pub fn sorted_names(dir: BorrowedFd<'_>, limit: usize) -> Result<(BTreeSet<CString>, bool), Errno> {
    let mut names = BTreeSet::new();
    let mut more = false;
    for_each_name::<Errno>(dir, |name, _| {
        if super::staging::is_active(name) {
            return Ok(());
        }
        if names.len() >= limit {
            more = true;
            if names.last().is_none_or(|last: &CString| last.as_c_str() <= name) {
                return Ok(());
            }
            names.pop_last();
        }
        names.insert(name.to_owned());
        Ok(())
    })?;
    Ok((names, more))
}

/// Removes `name` of `dir` with everything in it. What cannot be removed stays.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &CStr) {
    remove_below(dir, name, 0);
}

fn remove_below(dir: BorrowedFd<'_>, name: &CStr, depth: usize) {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) if depth <= DEPTH_MAX + 1 => {}
        _ => return,
    }
    if let Ok(inner) = super::confine::subdirectory(dir, name) {
        let _ = for_each_name::<Errno>(inner.as_fd(), |name, _| {
            remove_below(inner.as_fd(), name, depth + 1);
            Ok(())
        });
    }
    let _ = unlinkat(dir, name, AtFlags::REMOVEDIR);
}
