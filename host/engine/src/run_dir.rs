//! One directory per running machine, and the proof that it runs.
//!
//! ```text
//! RUN/.lock          held while directories are counted, made or swept
//! RUN/ID/lock        held (flock) by the VM process as long as it lives
//! RUN/ID/...         sockets, logs and the disk of the machine
//! ```
//!
//! The kernel drops a lock when its holder is gone, however it went, so a lock that can be taken proves that nobody is
//! there; a process id proves nothing, because it is reused. The lock of a new directory is taken by its maker and
//! handed to the VM process as an open file, so that there is no moment in which a live machine looks dead.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    error::{EngineError, ErrorCode},
    vmm_process::cgroup,
};

const LOCK: &str = "lock";

/// The directory of a machine that is being made, with its lock.
#[derive(Debug)]
pub(crate) struct RunDir {
    /// The machine's id, which is the directory's name.
    pub id: String,
    /// The directory.
    pub path: PathBuf,
    /// Holds the lock; whoever holds a copy of this open file keeps the directory alive.
    pub lock: File,
}

impl RunDir {
    /// Makes the directory of a new machine, unless `limit` machines run already. Leftovers are swept first.
    ///
    /// # Errors
    /// `limit_exceeded`, `io`, `disk_full`.
    pub(crate) fn create(run: &Path, limit: Option<u32>) -> Result<Self, EngineError> {
        // Ids are random; a directory that exists already belongs to somebody else.
        for _ in 0..16 {
            if let Some(dir) = Self::create_as(run, &new_id(), limit)? {
                return Ok(dir);
            }
        }
        Err(EngineError::new(ErrorCode::Internal, "no free machine id after 16 tries"))
    }

    /// As [`Self::create`], with a given id. Returns `None` when there is a directory of that name already.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) fn create_as(run: &Path, id: &str, limit: Option<u32>) -> Result<Option<Self>, EngineError> {
        let _guard = lock_all(run)?;
        let live = sweep_locked(run)?;
        if let Some(limit) = limit
            && live.len() >= limit as usize
        {
            return Err(EngineError::new(
                ErrorCode::LimitExceeded,
                format!("{} machines run already, and the limit is {limit}", live.len()),
            )
            .with_hint("end a machine or raise max_machines")
            .retry_may_help());
        }
        let path = run.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
            Err(e) => return Err(EngineError::io(format_args!("create `{}`", path.display()), &e)),
        }
        let lock = open_lock(&path.join(LOCK))
            .and_then(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).map(|()| lock).map_err(Into::into));
        match lock {
            Ok(lock) => Ok(Some(Self { id: id.to_owned(), path, lock })),
            Err(e) => {
                let _ = fs::remove_dir_all(&path);
                Err(EngineError::io(format_args!("lock `{}`", path.display()), &e))
            }
        }
    }
}

/// Returns a new random id: twelve hexadecimal digits.
pub(crate) fn new_id() -> String {
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(12);
    id
}

/// Removes the directories of machines that are gone and returns the ids of those that live.
///
/// # Errors
/// `io` when the run directory cannot be read.
pub(crate) fn sweep(run: &Path) -> Result<Vec<String>, EngineError> {
    let _guard = lock_all(run)?;
    sweep_locked(run)
}

/// Returns the ids of the machines that live, and changes nothing. None when the directory cannot be read.
pub(crate) fn live(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut live: Vec<String> = names.filter(|id| is_live(run, id)).collect();
    live.sort();
    live
}

/// Returns whether a machine with this id lives.
pub(crate) fn is_live(run: &Path, id: &str) -> bool {
    valid_id(id) && lock_state(&run.join(id)) == LockState::Held
}

/// Returns whether `id` can be the name of a machine, and so is safe to use in a path.
pub(crate) fn valid_id(id: &str) -> bool {
    id.len() == 12 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn sweep_locked(run: &Path) -> Result<Vec<String>, EngineError> {
    let failed = |e: &std::io::Error| EngineError::io(format_args!("read `{}`", run.display()), e);
    let mut live = Vec::new();
    for entry in fs::read_dir(run).map_err(|e| failed(&e))? {
        let entry = entry.map_err(|e| failed(&e))?;
        let Some(id) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        if !valid_id(&id) {
            continue;
        }
        let path = entry.path();
        match lock_state(&path) {
            LockState::Held => live.push(id),
            LockState::Free => {
                tracing::info!(machine = %id, "removing what a machine left behind");
                cgroup::remove_leftover(&path, &id);
                if let Err(e) = fs::remove_dir_all(&path)
                    && e.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(machine = %id, error = %e, "leftover directory cannot be removed");
                }
            }
        }
    }
    live.sort();
    Ok(live)
}

#[derive(Debug, PartialEq, Eq)]
enum LockState {
    Held,
    Free,
}

fn lock_state(dir: &Path) -> LockState {
    // Directories and their locks are made under the global lock, so one without a lock is a leftover too.
    let Ok(file) = OpenOptions::new().read(true).write(true).open(dir.join(LOCK)) else {
        return LockState::Free;
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => LockState::Free,
        Err(_) => LockState::Held,
    }
}

fn lock_all(run: &Path) -> Result<File, EngineError> {
    let path = run.join(".lock");
    let failed = |e: &std::io::Error| EngineError::io(format_args!("lock `{}`", path.display()), e);
    let file = open_lock(&path).map_err(|e| failed(&e))?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed(&e.into())),
        }
    }
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_lives_as_long_as_its_lock() {
        let run = tempfile::tempdir().unwrap();
        let first = RunDir::create(run.path(), None).unwrap();
        let second = RunDir::create(run.path(), None).unwrap();
        assert!(valid_id(&first.id));
        assert!(is_live(run.path(), &first.id));

        // A copy of the open file keeps the lock, as the VM process does.
        let handed_on = second.lock.try_clone().unwrap();
        let (first_path, second_path, second_id) = (first.path.clone(), second.path.clone(), second.id.clone());
        drop(first);
        drop(second);
        fs::write(first_path.join("disk"), b"left behind").unwrap();
        assert_eq!(sweep(run.path()).unwrap(), [second_id]);
        assert!(!first_path.exists());
        assert!(second_path.exists());

        drop(handed_on);
        assert!(sweep(run.path()).unwrap().is_empty());
        assert!(!second_path.exists());
    }

    #[test]
    fn the_limit_counts_live_machines_only() {
        let run = tempfile::tempdir().unwrap();
        let first = RunDir::create(run.path(), Some(2)).unwrap();
        let _second = RunDir::create(run.path(), Some(2)).unwrap();
        let error = RunDir::create(run.path(), Some(2)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::LimitExceeded);
        assert_eq!(error.message(), "2 machines run already, and the limit is 2");
        assert!(error.retryable());
        drop(first);
        RunDir::create(run.path(), Some(2)).unwrap();
    }

    #[test]
    fn what_is_not_a_machine_is_left_alone() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir(run.path().join("notes")).unwrap();
        fs::create_dir(run.path().join("ABCDEF012345")).unwrap();
        assert!(sweep(run.path()).unwrap().is_empty());
        assert!(run.path().join("notes").exists());
        assert!(run.path().join("ABCDEF012345").exists());
        assert!(!is_live(run.path(), "../../etc"));
        assert!(!valid_id(""));
    }

    #[test]
    fn a_directory_without_a_lock_is_a_leftover() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir(run.path().join("0123456789ab")).unwrap();
        assert!(sweep(run.path()).unwrap().is_empty());
        assert!(!run.path().join("0123456789ab").exists());
    }
}
