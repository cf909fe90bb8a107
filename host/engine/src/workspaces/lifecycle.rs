//! Making, starting, stopping, resetting and deleting records. Each is one change: its steps run in a task of their
//! own, so that a caller who goes away leaves either the old or the new state, never something between.

use std::{
    fs::{DirBuilder, File},
    future::Future,
    io::{self, Seek},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    BASELINE, NewRecord, NewSecret, RecordInfo, RecordKind, RecordState, SnapshotRow, WORKSPACE_PATH, Workspaces,
    failpoint::point,
    journal,
    lock::RecordLock,
    none,
    rows::{Intent, Record, RecordView, Seed},
    secrets::check_all,
    unix_now,
};
use crate::{
    environments::Installed,
    error::{EngineError, ErrorCode},
    machine::Machine,
    progress::Progress,
    run_dir,
    spawn::ForRecord,
    spec::{ExecutionMode, Lifetime, MachineSpec},
};

/// How long a guest may take to end its processes and write its data.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);
/// A tar of nothing: two blocks of zeros.
const EMPTY_TAR: [u8; 1024] = [0; 1024];

/// What a workspace begins with.
struct Content {
    tree: Option<File>,
    secrets: Vec<NewSecret>,
}

impl Workspaces {
    /// Makes a record. A workspace is returned started, with its tree and baseline; a machine is returned created.
    ///
    /// # Errors
    /// Those of [`Engine::create_machine`](crate::Engine::create_machine); nothing is left after any of them.
    pub async fn create(&self, new: NewRecord, progress: &dyn Progress) -> Result<RecordInfo, EngineError> {
        self.inner.engine.check(&new.spec)?;
        check_all(&new.secrets)?;
        let installed = self.inner.engine.prepare(&new.spec.environment, progress).await?;
        if new.kind == RecordKind::Workspace {
            progress.report("booting", 0.0, None);
        }
        let this = self.clone();
        self.change(move |cancel| async move { this.create_now(new, &installed, &cancel).await }).await
    }

    async fn create_now(
        &self,
        new: NewRecord,
        installed: &Installed,
        cancel: &CancellationToken,
    ) -> Result<RecordInfo, EngineError> {
        let id = run_dir::new_id();
        let lock = RecordLock::take(&self.inner.dir, &id).await?;
        point("create-locked");
        let now = unix_now();
        let mut labels = new.labels;
        labels.sort();
        let (tree, seed) = match new.seed {
            Some((tree, seed)) => (Some(tree), seed),
            None => (None, Seed { mode: "empty".to_owned(), ..Seed::default() }),
        };
        let machine_id = run_dir::new_id();
        let mut record = Record {
            view: RecordView {
                id: id.clone(),
                kind: new.kind,
                state: RecordState::Creating,
                name: new.name,
                labels,
                environment: new.spec.environment,
                environment_version: installed.version.clone(),
                vcpu_count: new.spec.vcpu_count,
                mem_mib: new.spec.mem_mib,
                ttl_seconds: new.spec.ttl.as_secs(),
                created_at: now,
                last_activity_at: now,
                expires_at: now + new.spec.ttl.as_secs_f64(),
                execution_mode: ExecutionMode::Pending.as_str().to_owned(),
                seed,
                reset_count: 0,
                last_reset_at: None,
            },
            intent: (new.kind == RecordKind::Workspace).then(|| Intent::Start { machine_id: machine_id.clone() }),
            machine_id: None,
            disk: None,
        };
        self.db(|store| store.insert(&record))?;
        point("create-announced");
        let made = match new.kind {
            // It gets its disk when it is first started.
            RecordKind::Machine => self.make_dir(&id).map(|()| record.state = RecordState::Created),
            RecordKind::Workspace => {
                let content = Content { tree, secrets: new.secrets };
                self.fill(&mut record, installed, content, &machine_id, cancel).await
            }
        };
        point("create-made");
        if let Err(error) = made.and_then(|()| self.db(|store| store.update(&record)).map(drop)) {
            record.intent = Some(Intent::Start { machine_id });
            self.erase(&record).await?;
            lock.remove();
            return Err(error);
        }
        point("create-done");
        drop(lock);
        self.describe(record)
    }

    fn make_dir(&self, id: &str) -> Result<(), EngineError> {
        let dir = self.record_dir(id);
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|e| EngineError::io(format_args!("create `{}`", dir.display()), &e))
    }

    /// Makes the files of a new workspace and boots it.
    async fn fill(
        &self,
        record: &mut Record,
        installed: &Installed,
        content: Content,
        machine_id: &str,
        cancel: &CancellationToken,
    ) -> Result<(), EngineError> {
        self.make_dir(&record.id)?;
        let disk = next_disk(None);
        self.make_disk(record, installed, &disk).await?;
        point("create-disk");
        let seeded = content.tree.is_some();
        let baseline = self.add_baseline(record, content.tree).await?;
        for secret in &content.secrets {
            self.add_secret(&record.id, secret)?;
        }
        point("create-baseline");
        let machine = cancellable(cancel, self.boot(record, installed, machine_id, &disk, true)).await?;
        point("create-booted");
        if seeded {
            cancellable(cancel, unpack(&machine, &baseline)).await?;
        }
        record.disk = Some(disk);
        started(record, &machine);
        Ok(())
    }

    /// Boots a created or stopped record. One that is started is returned as it is.
    ///
    /// # Errors
    /// `not_found`, `expired`, `conflict` while its disk is being read, and those of a boot; the record is then as it
    /// was.
    pub async fn start(&self, id: &str, kind: RecordKind, progress: &dyn Progress) -> Result<RecordInfo, EngineError> {
        let record = self.current(id, kind).await?;
        if record.state == RecordState::Started {
            return self.describe(record);
        }
        let installed = self.inner.engine.prepare(&record.environment, progress).await?;
        progress.report("booting", 0.0, None);
        let (this, id) = (self.clone(), id.to_owned());
        self.change(move |cancel| async move {
            let (_lock, mut record) = this.locked(&id, kind).await?;
            if record.state == RecordState::Started {
                return this.describe(record);
            }
            let begun = this.start_now(&mut record, &installed, &cancel).await;
            this.or_undo(&id, begun).await?;
            this.describe(record)
        })
        .await
    }

    async fn start_now(
        &self,
        record: &mut Record,
        installed: &Installed,
        cancel: &CancellationToken,
    ) -> Result<(), EngineError> {
        let machine_id = run_dir::new_id();
        record.intent = Some(Intent::Start { machine_id: machine_id.clone() });
        self.db(|store| store.update(record))?;
        point("start-announced");
        let disk = match &record.disk {
            Some(disk) => {
                self.unread(record, disk).await?;
                disk.clone()
            }
            None => {
                let disk = next_disk(None);
                self.make_disk(record, installed, &disk).await?;
                disk
            }
        };
        point("start-disk");
        let machine = cancellable(cancel, self.boot(record, installed, &machine_id, &disk, true)).await;
        let machine =
            machine.map_err(|error| if record.disk.is_some() { of_used_disk(error, record.kind) } else { error })?;
        point("start-booted");
        record.disk = Some(disk);
        started(record, &machine);
        self.db(|store| store.update(record))?;
        point("start-done");
        Ok(())
    }

    /// Shuts the guest down and keeps the disk. One that is stopped is returned as it is.
    ///
    /// # Errors
    /// `not_found`, `expired`, `timeout`.
    pub async fn stop(&self, id: &str, kind: RecordKind) -> Result<RecordInfo, EngineError> {
        let (this, id) = (self.clone(), id.to_owned());
        self.change(move |_cancel| async move {
            let (_lock, mut record) = this.locked(&id, kind).await?;
            if let Some(machine_id) = record.machine_id.take() {
                point("stop-locked");
                this.shut_down(&machine_id).await?;
                point("stop-ended");
            }
            record.state = RecordState::Stopped;
            record.last_activity_at = unix_now();
            this.db_to_free(|store| store.update(&record))?;
            // Secrets that were replaced go with the machine that knew them. After a crash here the next change does it.
            this.sweep_files(&record)?;
            point("stop-done");
            this.describe(record)
        })
        .await
    }

    /// Gives a workspace a new machine from the pristine environment with the tree of a snapshot. Ends started; on any
    /// failure the workspace is as it was.
    ///
    /// # Errors
    /// `not_found` for the workspace or the snapshot, and those of a boot.
    pub async fn reset(
        &self,
        id: &str,
        snapshot: &str,
        progress: &dyn Progress,
    ) -> Result<(RecordInfo, SnapshotRow), EngineError> {
        let kind = RecordKind::Workspace;
        let environment = self.current(id, kind).await?.view.environment;
        // Said before anything is made.
        self.snapshot(id, snapshot)?;
        let installed = self.inner.engine.prepare(&environment, progress).await?;
        progress.report("booting", 0.0, None);
        let (this, id, name) = (self.clone(), id.to_owned(), snapshot.to_owned());
        self.change(move |cancel| async move {
            let (_lock, mut record) = this.locked(&id, kind).await?;
            let snapshot = this.snapshot(&id, &name)?;
            let old = record.machine_id.clone();
            let begun = this.reset_now(&mut record, &installed, &snapshot, &cancel).await;
            this.or_undo(&id, begun).await?;
            // From here on the new one is the workspace. What is left is tidying up, and the intent keeps it from being
            // forgotten.
            if let Err(error) = this.finish_reset(&mut record, old.as_deref()).await {
                tracing::warn!(record = %id, %error, "what a reset replaced cannot be removed yet");
            }
            Ok((this.describe(record)?, snapshot))
        })
        .await
    }

    async fn reset_now(
        &self,
        record: &mut Record,
        installed: &Installed,
        snapshot: &SnapshotRow,
        cancel: &CancellationToken,
    ) -> Result<(), EngineError> {
        let machine_id = run_dir::new_id();
        let disk = next_disk(record.disk.as_deref());
        record.intent = Some(Intent::Reset { machine_id: machine_id.clone(), disk: disk.clone() });
        self.db(|store| store.update(record))?;
        point("reset-announced");
        self.make_disk(record, installed, &disk).await?;
        point("reset-disk");
        // It takes the place of one that counts already.
        let counted = record.state != RecordState::Started;
        let machine = cancellable(cancel, self.boot(record, installed, &machine_id, &disk, counted)).await?;
        point("reset-booted");
        if snapshot.entry_count > 0 {
            let tree = self.open_file(&self.record_dir(&record.id).join(&snapshot.file))?;
            cancellable(cancel, unpack(&machine, &tree)).await?;
        }
        point("reset-unpacked");
        record.reset_count += 1;
        record.last_reset_at = Some(unix_now());
        record.environment_version.clone_from(&installed.version);
        let old = record.machine_id.take();
        let old_disk = record.disk.replace(disk);
        started(record, &machine);
        record.intent = match old {
            Some(machine_id) => Some(Intent::Reset { machine_id, disk: old_disk.unwrap_or_default() }),
            None => Some(Intent::Files),
        };
        self.db(|store| store.update_after_reset(record))?;
        point("reset-done");
        Ok(())
    }

    async fn finish_reset(&self, record: &mut Record, old: Option<&str>) -> Result<(), EngineError> {
        if let Some(old) = old {
            self.end_machine(old).await?;
        }
        point("reset-ended");
        self.sweep_files(record)?;
        record.intent = None;
        self.db(|store| store.update(record)).map(drop)
    }

    /// Removes a record and everything of it, in any state, also when its time is over.
    ///
    /// # Errors
    /// `not_found`, `io`.
    pub async fn delete(&self, id: &str, kind: RecordKind) -> Result<(), EngineError> {
        let (this, id) = (self.clone(), id.to_owned());
        self.change(move |_cancel| async move {
            let (lock, record) = this.settled(&id, kind).await?;
            this.remove(record, lock).await
        })
        .await
    }

    /// Makes a record's disk from the pristine environment.
    async fn make_disk(&self, record: &Record, installed: &Installed, name: &str) -> Result<(), EngineError> {
        let (installed, to) = (installed.clone(), self.record_dir(&record.id).join(name));
        blocking("copy the root file system", move || {
            installed.clone_rootfs(&to, 0)?;
            let disk = File::options().read(true).write(true).open(&to);
            disk.and_then(|disk| journal::add(&disk))
                .map_err(|e| EngineError::io(format_args!("prepare the disk `{}`", to.display()), &e))
        })
        .await
    }

    async fn boot(
        &self,
        record: &Record,
        installed: &Installed,
        machine_id: &str,
        disk: &str,
        counted: bool,
    ) -> Result<Machine, EngineError> {
        let spec = MachineSpec {
            environment: record.environment.clone(),
            vcpu_count: record.vcpu_count,
            mem_mib: record.mem_mib,
            ttl: Duration::from_secs(record.ttl_seconds),
            lifetime: Lifetime::Detached,
        };
        self.inner.engine.check(&spec)?;
        let machine = ForRecord {
            id: machine_id.to_owned(),
            disk: self.record_dir(&record.id).join(disk),
            expires_at: record.expires_at,
            counted,
        };
        let machine = self.inner.engine.boot_record(installed, spec, machine).await?;
        self.install_secrets(&record.id, &machine).await?;
        Ok(machine)
    }

    /// Asks the guest to end, and ends the machine when it does not.
    async fn shut_down(&self, machine_id: &str) -> Result<(), EngineError> {
        let Ok(machine) = self.inner.engine.machine(machine_id).await else {
            return self.end_machine(machine_id).await;
        };
        // A guest that is past answering is ended all the same; its disk is what it left on it.
        let asked = tokio::time::timeout(SHUTDOWN_LIMIT, async {
            machine.shut_down().await?;
            machine.ended().await;
            Ok::<(), EngineError>(())
        })
        .await;
        match asked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(machine = machine_id, %error, "the guest did not shut down and is ended");
            }
            Err(_) => tracing::warn!(machine = machine_id, "the guest did not shut down in time and is ended"),
        }
        machine.end().await
    }

    /// Runs a change in a task of its own. When the caller goes away the change is told to stop, and it then undoes
    /// itself.
    pub(super) async fn change<T, F>(&self, steps: impl FnOnce(CancellationToken) -> F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        let cancel = CancellationToken::new();
        let gone = cancel.clone().drop_guard();
        let done = tokio::spawn(steps(cancel)).await;
        gone.disarm();
        done.map_err(|e| EngineError::new(ErrorCode::Internal, format!("a change of a record did not end: {e}")))?
    }

    /// Brings a record whose change failed back to what the database says. The caller holds its lock.
    pub(super) async fn or_undo<T>(&self, id: &str, done: Result<T, EngineError>) -> Result<T, EngineError> {
        if done.is_err()
            && let Ok(Some(record)) = self.look(|store| store.get(id))
            && let Err(error) = self.settle(record).await
        {
            // The intent is still written down, so the next look tries again.
            tracing::warn!(record = id, %error, "a failed change cannot be undone yet");
        }
        done
    }

    /// Saves the tree that a workspace begins with; returns its file.
    async fn add_baseline(&self, record: &Record, tree: Option<File>) -> Result<File, EngineError> {
        let name = new_tree();
        let to = self.record_dir(&record.id).join(&name);
        let saved = blocking("save the baseline", move || {
            save_tree(tree, &to).map_err(|e| EngineError::io("save the baseline", &e))
        })
        .await?;
        let snapshot = SnapshotRow {
            name: BASELINE.to_owned(),
            file: name,
            created_at: record.created_at,
            entry_count: record.seed.entry_count,
            bytes: record.seed.bytes,
        };
        self.db(|store| store.add_snapshot(&record.id, &snapshot))?;
        Ok(saved)
    }

    pub(super) fn snapshot(&self, id: &str, name: &str) -> Result<SnapshotRow, EngineError> {
        let snapshots = self.look(|store| store.snapshots(id))?;
        snapshots.into_iter().find(|snapshot| snapshot.name == name).ok_or_else(|| {
            EngineError::new(
                ErrorCode::NotFound,
                format!("snapshot '{}' does not exist in workspace '{id}'", name.escape_debug()),
            )
            .with_hint("snapshot_list shows the snapshots")
        })
    }

    /// Takes the record's lock and returns the row as it is under it, with no unfinished change. A record whose time is
    /// over is removed instead.
    pub(super) async fn locked(&self, id: &str, kind: RecordKind) -> Result<(RecordLock, Record), EngineError> {
        let (lock, record) = self.settled(id, kind).await?;
        if record.expires_at <= unix_now() {
            self.remove(record, lock).await?;
            return Err(super::expired(id, kind));
        }
        Ok((lock, record))
    }

    /// As [`Self::locked`], but whose time is over is returned too.
    async fn settled(&self, id: &str, kind: RecordKind) -> Result<(RecordLock, Record), EngineError> {
        // A lock file is made only for a record that is there.
        self.row(id, kind)?;
        let lock = RecordLock::take(&self.inner.dir, id).await?;
        let settled = match self.row(id, kind) {
            Ok(record) => self.settle(record).await?,
            // Removed meanwhile, and its lock with it: this is a lock on nothing.
            Err(error) => {
                lock.remove();
                return Err(error);
            }
        };
        let Some(record) = settled else {
            lock.remove();
            return Err(none(id, kind));
        };
        Ok((lock, record))
    }
}

fn started(record: &mut Record, machine: &Machine) {
    record.state = RecordState::Started;
    record.intent = None;
    record.machine_id = Some(machine.id().to_owned());
    machine.info().execution_mode.as_str().clone_into(&mut record.execution_mode);
    record.last_activity_at = unix_now();
}

/// Adds what can be done when a guest gives up on a disk that was used before: most likely it is the disk.
fn of_used_disk(error: EngineError, kind: RecordKind) -> EngineError {
    match kind {
        RecordKind::Workspace if error.code() == ErrorCode::GuestPanic && error.hint().is_none() => {
            error.with_hint("workspace_reset makes a new disk; workspace_disk_export saves this one")
        }
        _ => error,
    }
}

/// Puts a tree into a machine.
async fn unpack(machine: &Machine, tree: &File) -> Result<(), EngineError> {
    let tree = tree.try_clone().map_err(|e| EngineError::io("read a tree", &e))?;
    machine.extract(WORKSPACE_PATH, WORKSPACE_PATH, tree).await.map(drop)
}

fn save_tree(tree: Option<File>, to: &Path) -> io::Result<File> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut saved = File::options().read(true).write(true).create_new(true).mode(0o600).open(to)?;
    match tree {
        Some(mut tree) => {
            tree.rewind()?;
            io::copy(&mut tree, &mut saved)?;
        }
        None => saved.write_all(&EMPTY_TAR)?,
    }
    saved.sync_data()?;
    Ok(saved)
}

/// Runs what waits for the disk on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &str,
    act: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(act)
        .await
        .map_err(|e| EngineError::new(ErrorCode::Internal, format!("{doing}: {e}")))?
}

/// Runs a step until it is done or the change is told to stop.
async fn cancellable<T>(
    cancel: &CancellationToken,
    step: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    tokio::select! {
        done = step => done,
        () = cancel.cancelled() => Err(EngineError::new(ErrorCode::Cancelled, "the caller went away")),
    }
}

/// Returns a new name for a saved tree.
pub(super) fn new_tree() -> String {
    format!("tree.{}.tar", uuid::Uuid::new_v4().simple())
}

/// The name of the disk that follows one named `disk.<n>`.
fn next_disk(current: Option<&str>) -> String {
    let number = current.and_then(|name| name.strip_prefix("disk.")).and_then(|number| number.parse::<u64>().ok());
    format!("disk.{}", number.unwrap_or(0) + 1)
}

impl Workspaces {
    pub(super) fn open_file(&self, path: &PathBuf) -> Result<File, EngineError> {
        File::open(path).map_err(|e| EngineError::io(format_args!("open `{}`", path.display()), &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_gives_up_on_its_own_disk_may_be_reset() {
        let told =
            |code, kind| of_used_disk(EngineError::new(code, "the guest gave up"), kind).hint().map(str::to_owned);
        let hint = told(ErrorCode::GuestPanic, RecordKind::Workspace).unwrap();
        assert!(hint.contains("workspace_reset") && hint.contains("workspace_disk_export"), "{hint}");
        assert_eq!(told(ErrorCode::LimitExceeded, RecordKind::Workspace), None);
        // A vm has neither.
        assert_eq!(told(ErrorCode::GuestPanic, RecordKind::Machine), None);
    }

    #[test]
    fn disks_are_numbered_on() {
        assert_eq!(next_disk(None), "disk.1");
        assert_eq!(next_disk(Some("disk.7")), "disk.8");
        assert_eq!(next_disk(Some("odd")), "disk.1");
    }

    #[test]
    fn a_tree_is_saved_from_its_first_byte() {
        use std::io::{Read, Seek, Write};
        let dir = tempfile::tempdir().unwrap();
        let mut tree = tempfile::tempfile().unwrap();
        tree.write_all(b"a tar").unwrap();
        let mut saved = save_tree(Some(tree), &dir.path().join("tree")).unwrap();
        let mut bytes = Vec::new();
        saved.rewind().unwrap();
        saved.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"a tar");
        save_tree(None, &dir.path().join("empty")).unwrap();
        assert_eq!(std::fs::read(dir.path().join("empty")).unwrap(), EMPTY_TAR);
    }
}
