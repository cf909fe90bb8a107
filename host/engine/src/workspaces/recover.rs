//! What is done about a record that was left in the middle of a change, and about one whose machine or time is gone.

use std::{ffi::OsStr, fs, path::Path};

use super::{
    RecordState, Workspaces, expired,
    failpoint::point,
    lock::RecordLock,
    none,
    rows::{Intent, Record},
    secrets::is_retired,
    store::Store,
    unix_now,
};
use crate::{
    error::{EngineError, ErrorCode},
    run_dir,
    vmm_process::MachineConfig,
};

impl Workspaces {
    /// Returns the row as it is now: a change that nobody is making any more is undone, a machine that ended is noted,
    /// an expired record is removed.
    ///
    /// # Errors
    /// `not_found` for one that is being made or was never finished, `expired`.
    pub(super) async fn refresh(&self, record: Record) -> Result<Record, EngineError> {
        let settled = matches!(record.state, RecordState::Created | RecordState::Started | RecordState::Stopped)
            && record.intent.is_none();
        let over = record.expires_at <= unix_now();
        let dead = record.state == RecordState::Started && !self.machine_lives(&record);
        if settled && !over && !dead {
            return Ok(record);
        }
        let Some(lock) = RecordLock::try_take(&self.inner.dir, &record.id)? else {
            // Somebody is changing it: an observer sees the old state until they are done.
            return match record.state {
                RecordState::Creating | RecordState::Deleting => Err(none(&record.id, record.kind)),
                _ => Ok(record),
            };
        };
        // It may have changed between the look and the lock.
        let Some(record) = self.look(|store| store.get(&record.id))? else {
            lock.remove();
            return Err(none(&record.id, record.kind));
        };
        let (id, kind) = (record.id.clone(), record.kind);
        let Some(record) = self.settle(record).await? else {
            lock.remove();
            return Err(none(&id, kind));
        };
        if record.expires_at <= unix_now() {
            self.remove(record, lock).await?;
            return Err(expired(&id, kind));
        }
        Ok(record)
    }

    /// Undoes or finishes the change that a record was left in, and notes a machine that ended. The caller holds the
    /// lock. Returns `None` when nothing is left of the record.
    pub(super) async fn settle(&self, mut record: Record) -> Result<Option<Record>, EngineError> {
        if matches!(record.state, RecordState::Creating | RecordState::Deleting) {
            tracing::info!(record = %record.id, "removing what an unfinished change left behind");
            self.erase(&record).await?;
            return Ok(None);
        }
        let mut changed = false;
        if let Some(intent) = record.intent.take() {
            if let Some(machine_id) = intent.machine_id() {
                self.end_machine(machine_id).await?;
            }
            changed = true;
        }
        if record.state == RecordState::Started && !self.machine_lives(&record) {
            record.state = RecordState::Stopped;
            if let Some(machine_id) = record.machine_id.take() {
                // A killed process keeps its lock a moment longer than itself, so a sweep may have left its directory.
                self.inner.engine.end_by_lock(&machine_id).await?;
            }
            changed = true;
        }
        if changed {
            self.sweep_files(&record)?;
            self.db_to_free(|store| store.update(&record))?;
        }
        Ok(Some(record))
    }

    /// Removes a record: first from an observer's eyes, then its machine, its files and its row.
    pub(super) async fn remove(&self, mut record: Record, lock: RecordLock) -> Result<(), EngineError> {
        point("delete-locked");
        record.state = RecordState::Deleting;
        self.db_to_free(|store| store.update(&record))?;
        point("delete-announced");
        self.erase(&record).await?;
        point("delete-erased");
        lock.remove();
        self.inner.reserve.keep();
        Ok(())
    }

    /// Ends a machine by its id and returns when nothing of it is left. One that is gone is no error.
    pub(super) async fn end_machine(&self, machine_id: &str) -> Result<(), EngineError> {
        match self.inner.engine.machine(machine_id).await {
            Ok(machine) => machine.end().await,
            Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::Timeout) => {
                // A VM process that does not listen yet is not found either: wait for its word, or for its end.
                self.inner.engine.end_by_lock(machine_id).await
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the files of a record's directory that no row names.
    pub(super) fn sweep_files(&self, record: &Record) -> Result<(), EngineError> {
        let dir = self.record_dir(&record.id);
        let snapshots = self.look(|store| store.snapshots(&record.id))?;
        let secrets = self.look(|store| store.secrets(&record.id))?;
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(EngineError::io(format_args!("read `{}`", dir.display()), &e)),
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let known = record.disk.as_deref().is_some_and(|disk| name == OsStr::new(disk))
                || snapshots.iter().any(|snapshot| name == OsStr::new(&snapshot.file))
                || secrets.iter().any(|secret| name == OsStr::new(&secret.file))
                || record.machine_id.as_deref().is_some_and(|machine| is_retired(&name, machine));
            if !known && let Err(e) = fs::remove_file(entry.path()) {
                tracing::warn!(file = %entry.path().display(), error = %e, "leftover file cannot be removed");
            }
        }
        Ok(())
    }

    fn machine_lives(&self, record: &Record) -> bool {
        record.machine_id.as_deref().is_some_and(|machine| run_dir::is_live(&self.inner.engine.paths().run, machine))
    }

    /// Whether a machine runs on a disk of a directory, or may do so.
    fn is_run_on(&self, dir: &Path) -> bool {
        let run = &self.inner.engine.paths().run;
        run_dir::live(run).into_iter().any(|machine| match MachineConfig::read(&run.join(machine)) {
            Ok(config) => config.disk.is_some_and(|disk| disk.starts_with(dir)),
            // It is of another pyro, or ends just now.
            Err(_) => true,
        })
    }

    /// Undoes or finishes what other processes left in the middle, of records of any kind, and removes files that belong
    /// to no record. What fails is left for the next look.
    pub(super) async fn tidy(&self) {
        let unfinished = self.look(Store::unfinished).unwrap_or_default();
        for record in unfinished {
            let id = record.id.clone();
            if let Err(error) = self.refresh(record).await
                && !matches!(error.code(), ErrorCode::NotFound | ErrorCode::Expired)
            {
                tracing::warn!(record = %id, %error, "an unfinished change cannot be undone yet");
            }
        }
        let Ok(entries) = fs::read_dir(&self.inner.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str().map(|name| name.strip_suffix(".lock").unwrap_or(name)) else { continue };
            // Only a record's lock makes sure that nobody is making it just now.
            let orphan = |this: &Self| matches!(this.look(|store| store.get(id)), Ok(None));
            if run_dir::valid_id(id)
                && orphan(self)
                && let Ok(Some(lock)) = RecordLock::try_take(&self.inner.dir, id)
                && orphan(self)
            {
                let dir = self.record_dir(id);
                // No row, and yet a machine runs: the row is what is missing, as from a database that was put back.
                if self.is_run_on(&dir) {
                    tracing::warn!(record = %id, "a machine may run on the disk of a record that is not there");
                    continue;
                }
                let _ = fs::remove_dir_all(dir);
                lock.remove();
            }
        }
    }

    /// Removes what there is of a record; its row goes last, so that it can be found until nothing is left.
    pub(super) async fn erase(&self, record: &Record) -> Result<(), EngineError> {
        let intended = record.intent.as_ref().and_then(Intent::machine_id);
        for machine in record.machine_id.as_deref().into_iter().chain(intended) {
            self.end_machine(machine).await?;
        }
        point("delete-ended");
        let dir = self.record_dir(&record.id);
        match fs::remove_dir_all(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(EngineError::io(format_args!("remove `{}`", dir.display()), &e)),
        }
        self.db_to_free(|store| store.remove(&record.id))
    }
}
