//! Saved trees of a workspace, and its disk.

use std::{
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt,
    time::{Duration, Instant},
};

use super::{
    BASELINE, RecordKind, RecordState, SnapshotRow, WORKSPACE_PATH, Workspaces, disk_lock,
    failpoint::point,
    lifecycle::{blocking, new_tree},
    rows::{Intent, Record},
    unix_now,
};
use crate::{
    error::{EngineError, ErrorCode},
    members::for_each_member,
};

impl Workspaces {
    /// Saves the tree of a started workspace under a name.
    ///
    /// # Errors
    /// `invalid_argument` for the baseline's name, `already_exists`, `invalid_state`, `disk_full`.
    pub async fn create_snapshot(&self, id: &str, name: &str) -> Result<SnapshotRow, EngineError> {
        if name == BASELINE {
            return Err(EngineError::new(
                ErrorCode::InvalidArgument,
                format!("snapshot_name '{BASELINE}' is reserved"),
            )
            .with_hint("choose another name"));
        }
        let (this, id, name) = (self.clone(), id.to_owned(), name.to_owned());
        self.change(move |_cancel| async move {
            let (_lock, mut record) = this.locked(&id, RecordKind::Workspace).await?;
            if this.look(|store| store.snapshots(&id))?.iter().any(|snapshot| snapshot.name == name) {
                return Err(EngineError::new(
                    ErrorCode::AlreadyExists,
                    format!("snapshot '{}' already exists in workspace '{id}'", name.escape_debug()),
                )
                .with_hint("choose another name, or delete that one first"));
            }
            let saved = this.save(&mut record, name).await;
            this.or_undo(&id, saved).await
        })
        .await
    }

    async fn save(&self, record: &mut Record, name: String) -> Result<SnapshotRow, EngineError> {
        let machine = self.machine_of(record).await?;
        record.intent = Some(Intent::Files);
        self.db(|store| store.update(record))?;
        point("snapshot-announced");
        let file = new_tree();
        let path = self.record_dir(&record.id).join(&file);
        let failed = |e: &io::Error| EngineError::io(format_args!("save `{}`", path.display()), e);
        let into =
            File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(|e| failed(&e))?;
        let saved = into.try_clone().map_err(|e| failed(&e))?;
        machine.archive(WORKSPACE_PATH, WORKSPACE_PATH, into).await?;
        point("snapshot-saved");
        let (entry_count, bytes) = blocking("save a snapshot", move || {
            saved.sync_data().and_then(|()| count(saved)).map_err(|e| EngineError::io("save a snapshot", &e))
        })
        .await?;
        let snapshot = SnapshotRow { name, file, created_at: unix_now(), entry_count, bytes };
        self.db(|store| store.add_snapshot(&record.id, &snapshot))?;
        point("snapshot-added");
        record.intent = None;
        record.last_activity_at = snapshot.created_at;
        self.db(|store| store.update(record))?;
        Ok(snapshot)
    }

    /// Returns the snapshots: the baseline, then the newest first.
    ///
    /// # Errors
    /// `not_found`, `expired`.
    pub async fn snapshots(&self, id: &str) -> Result<Vec<SnapshotRow>, EngineError> {
        self.current(id, RecordKind::Workspace).await?;
        let mut snapshots = self.look(|store| store.snapshots(id))?;
        snapshots.sort_by_key(|snapshot| snapshot.name != BASELINE);
        Ok(snapshots)
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// `invalid_argument` for the baseline, `not_found`.
    pub async fn delete_snapshot(&self, id: &str, name: &str) -> Result<(), EngineError> {
        if name == BASELINE {
            return Err(EngineError::new(ErrorCode::InvalidArgument, "cannot delete the baseline snapshot")
                .with_hint("it goes with its workspace"));
        }
        let (this, id, name) = (self.clone(), id.to_owned(), name.to_owned());
        self.change(move |_cancel| async move {
            let (_lock, mut record) = this.locked(&id, RecordKind::Workspace).await?;
            this.snapshot(&id, &name)?;
            record.intent = Some(Intent::Files);
            this.db(|store| store.update(&record))?;
            point("unsnapshot-announced");
            this.db(|store| store.remove_snapshot(&id, &name))?;
            point("unsnapshot-removed");
            this.sweep_files(&record)?;
            record.intent = None;
            record.last_activity_at = unix_now();
            this.db(|store| store.update(&record)).map(drop)
        })
        .await
    }

    /// Returns the tar of a snapshot. The open file stays readable when the snapshot is removed.
    ///
    /// # Errors
    /// `not_found`, `expired`, `io`.
    pub async fn read_snapshot(&self, id: &str, name: &str) -> Result<File, EngineError> {
        self.current(id, RecordKind::Workspace).await?;
        let snapshot = self.snapshot(id, name)?;
        self.open_file(&self.record_dir(id).join(snapshot.file))
    }

    /// Returns the raw root disk of a workspace that is not started: an ext4 file system. As long as the open file
    /// lives, or a copy of it, the workspace does not start on that disk.
    ///
    /// # Errors
    /// `invalid_state` while it is started, `conflict` while it is being started, `not_found`, `expired`, `io`.
    pub async fn disk(&self, id: &str) -> Result<File, EngineError> {
        let record = self.current(id, RecordKind::Workspace).await?;
        stopped(&record)?;
        let name = record.view.id.clone();
        let file = self.open_file(&self.record_dir(&name).join(record.disk.clone().unwrap_or_default()))?;
        if !disk_lock::share(&file).map_err(|e| EngineError::io(format_args!("lock the disk of '{name}'"), &e))? {
            return Err(being_started(&record));
        }
        // A start announces itself before it looks for readers. So one that did not see this lock is in the row by now,
        // and one that is not in the row yet sees it.
        let now = self.row(id, RecordKind::Workspace)?;
        stopped(&now)?;
        match now.intent {
            Some(Intent::Start { .. }) => Err(being_started(&now)),
            // Reset and stopped again meanwhile: what is open here is the disk that was.
            _ if now.disk != record.disk => Err(being_started(&now)),
            _ => Ok(file),
        }
    }

    /// Refuses to start on a disk that is being read: a reader would see it half written.
    pub(super) async fn unread(&self, record: &Record, disk: &str) -> Result<(), EngineError> {
        let path = self.record_dir(&record.id).join(disk);
        let failed = |e: &io::Error| EngineError::io(format_args!("lock `{}`", path.display()), e);
        let file = File::options().read(true).write(true).open(&path).map_err(|e| failed(&e))?;
        let begun = Instant::now();
        while !disk_lock::try_alone(&file).map_err(|e| failed(&e))? {
            if begun.elapsed() > READER_WAIT {
                return Err(EngineError::new(
                    ErrorCode::Conflict,
                    format!("the disk of workspace '{}' is being read", record.id),
                )
                .with_hint("wait for workspace_disk_export to end, or cancel it")
                .retry_may_help());
            }
            tokio::time::sleep(READER_PAUSE).await;
        }
        Ok(())
    }
}

/// How long a start waits for those who read its disk, and the pause between two looks. A list or a file is read in
/// less; an export may take minutes.
const READER_WAIT: Duration = Duration::from_secs(1);
const READER_PAUSE: Duration = Duration::from_millis(20);

fn stopped(record: &Record) -> Result<(), EngineError> {
    if record.state == RecordState::Started {
        return Err(EngineError::new(
            ErrorCode::InvalidState,
            format!("workspace '{}' must be stopped before its disk is read", record.id),
        )
        .with_hint("stop it with workspace_stop"));
    }
    Ok(())
}

fn being_started(record: &Record) -> EngineError {
    EngineError::new(ErrorCode::Conflict, format!("workspace '{}' is being started", record.id))
        .with_hint("stop it with workspace_stop before its disk is read")
        .retry_may_help()
}

/// Returns how many entries a tar has, and the bytes of its files. The names of its entries are not looked at.
fn count(file: File) -> io::Result<(u64, u64)> {
    let mut counts = (0, 0u64);
    for_each_member(
        file,
        |error| error,
        |entry| {
            // The root of the tree is not an entry of it.
            if entry.path_bytes().iter().any(|byte| !matches!(byte, b'.' | b'/')) {
                counts.0 += 1;
                // That of a sparse file is whatever its header says.
                counts.1 = counts.1.saturating_add(entry.size());
            }
            Ok(())
        },
    )?;
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted() {
        let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
        let mut add = |name: &str, kind, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).unwrap();
        };
        add("./", tar::EntryType::Directory, b"");
        add("a", tar::EntryType::Directory, b"");
        add("a/b", tar::EntryType::Regular, b"12345");
        add(&"long/".repeat(60), tar::EntryType::Regular, &[7; 1000]);
        let file = tar.into_inner().unwrap();
        assert_eq!(count(file).unwrap(), (3, 1005));
    }

    #[test]
    fn rubbish_is_an_error() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'x'; 2048]).unwrap();
        assert!(count(file).is_err());
    }

    #[test]
    fn a_guest_cannot_make_a_name_that_fills_the_memory() {
        let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
        let long = vec![b'n'; 2 << 20];
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(long.len() as u64);
        header.set_cksum();
        tar.append(&header, long.as_slice()).unwrap();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
        let error = count(tar.into_inner().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "a member has more than 1024 KiB of headers");
    }
}
