//! Free room on a file system, asked before long work instead of after it.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::error::EnvironmentError;

/// Returns how many bytes this user may still write below `path`. The path need not exist: its nearest existing parent
/// is asked.
///
/// # Errors
/// What `statvfs` says.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let mut at: PathBuf = path.to_owned();
    loop {
        match rustix::fs::statvfs(&at) {
            Ok(stat) => return Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(rustix::io::Errno::NOENT) => {
                if !at.pop() || at.as_os_str().is_empty() {
                    return Err(io::ErrorKind::NotFound.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns how many bytes of memory programs may still take without swapping; 0 when the kernel does not say.
pub(crate) fn free_memory() -> u64 {
    std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let rest = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        })
        .map_or(0, |kib| kib.saturating_mul(1024))
}

/// Checks that `needed` bytes are free below `path`.
///
/// # Errors
/// [`EnvironmentError::DiskFull`] with both figures.
pub(crate) fn check(path: &Path, needed: u64) -> Result<(), EnvironmentError> {
    let free = free_bytes(path).map_err(|e| EnvironmentError::io("ask for the free space of", path, e))?;
    if free < needed {
        return Err(EnvironmentError::DiskFull { path: path.to_owned(), needed: Some(needed), free: Some(free) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_directory_is_on_its_parents_file_system() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_bytes(&dir.path().join("not/yet/there")).unwrap() > 0);
    }

    #[test]
    fn some_memory_is_free() {
        assert!(free_memory() > 1 << 20);
    }

    #[test]
    fn too_much_is_refused_with_both_figures() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path(), 1).unwrap();
        let error = check(dir.path(), u64::MAX).unwrap_err();
        assert_eq!(error.code(), crate::ErrorCode::DiskFull);
        let text = error.to_string();
        assert!(text.contains(&u64::MAX.to_string()) && text.contains("MiB free"), "{text}");
    }
}
