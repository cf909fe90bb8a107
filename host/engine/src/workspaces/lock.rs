//! One lock per record, held across processes while a record changes.
//!
//! A record found with an unfinished change and a free lock was left by a process that died: whoever gets the lock
//! finishes or undoes the change. The lock is a file beside the record's directory, because it must outlive it.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use crate::error::{EngineError, ErrorCode};

/// How long a change waits for another one of the same record. Longer than a boot, which is the longest step.
const WAIT: Duration = Duration::from_secs(90);
/// The first and the longest pause between two tries. A free lock is taken without a pause.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// The lock of one record, released when dropped.
#[derive(Debug)]
pub(super) struct RecordLock {
    _file: File,
    path: PathBuf,
}

impl RecordLock {
    /// Takes the lock when it is free.
    ///
    /// # Errors
    /// `io`.
    pub(super) fn try_take(dir: &Path, id: &str) -> Result<Option<Self>, EngineError> {
        let path = dir.join(format!("{id}.lock"));
        let failed = |e: &std::io::Error| EngineError::io(format_args!("lock `{}`", path.display()), e);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failed(&e))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => return Ok(None),
            Err(e) => return Err(failed(&e.into())),
        }
        // The one who held it may have removed the file with the record: then this is a lock on nothing.
        let same = match (file.metadata(), fs::metadata(&path)) {
            (Ok(held), Ok(there)) => held.ino() == there.ino() && held.dev() == there.dev(),
            _ => false,
        };
        Ok(same.then_some(Self { _file: file, path }))
    }

    /// Takes the lock, waiting for whoever holds it.
    ///
    /// # Errors
    /// `timeout` when it is held for too long, `io`.
    pub(super) async fn take(dir: &Path, id: &str) -> Result<Self, EngineError> {
        let begun = Instant::now();
        let mut pause = PAUSE.0;
        loop {
            if let Some(lock) = Self::try_take(dir, id)? {
                return Ok(lock);
            }
            if begun.elapsed() > WAIT {
                return Err(EngineError::new(
                    ErrorCode::Timeout,
                    format!("`{id}` is being changed by another call for more than {} s", WAIT.as_secs()),
                )
                .retry_may_help());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Removes the lock's file with its record.
    pub(super) fn remove(self) {
        // A file that stays behind is empty and harmless.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RecordLock::take(dir.path(), "a").await.unwrap();
        assert!(RecordLock::try_take(dir.path(), "a").unwrap().is_none());
        assert!(RecordLock::try_take(dir.path(), "b").unwrap().is_some());
        drop(lock);
        assert!(RecordLock::try_take(dir.path(), "a").unwrap().is_some());
    }

    #[tokio::test]
    async fn a_removed_lock_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RecordLock::take(dir.path(), "a").await.unwrap();
        let waiting = dir.path().to_owned();
        let waiter = tokio::spawn(async move { RecordLock::take(&waiting, "a").await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        lock.remove();
        let taken = waiter.await.unwrap().unwrap();
        assert!(RecordLock::try_take(dir.path(), "a").unwrap().is_none());
        drop(taken);
    }
}
