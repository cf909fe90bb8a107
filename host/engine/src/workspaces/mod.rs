//! Workspaces, and the machines of the `vm_*` tools: records that outlive every pyro process.
//!
//! ```text
//!   state/state.db                     one row per record: `store`
//!   state/reserve                      room for what frees a full disk: `reserve`
//!   state/records/<id>.lock            held while a record changes: `lock`
//!   state/records/<id>/disk.<n>        the root disk, raw
//!   state/records/<id>/tree.<uuid>.tar saved trees; the row `baseline` names the first
//!   state/records/<id>/secret.<uuid>   0600
//!   state/records/<id>/retired.<machine>.<uuid>
//!                                      0600: a secret that was replaced while that machine knew it
//!   state/records.lost-<time>/         the records that a state database which is gone had
//!   run/<machine>/                     the VM process, when the record is started
//! ```
//!
//! Every change is made under the record's lock, and the database row is written last: until then an observer sees the
//! old state. What a change makes before that (a machine, a disk, a tree) is announced in the row's `intent` or is a
//! file that no row names, so that whoever finds the record after a crash can remove it: `recover`. A change that its
//! caller cancels goes through the same door.
//!
//! Deliberately absent: tools and their words. This is what happened and what is; `plugins/workspace` says it.

mod disk_lock;
mod failpoint;
mod journal;
mod lifecycle;
mod lock;
mod recover;
mod reserve;
mod rows;
mod secrets;
mod snapshots;
mod store;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use rows::{CommandRow, NewCommand, RecordKind, RecordState, RecordView, SecretRow, Seed, SnapshotRow};
pub use secrets::{NewSecret, SECRETS_PATH, SecretKind};

use reserve::Reserve;
use rows::Record;
use store::{Store, StoreError};

use crate::{
    engine::Engine,
    error::{EngineError, ErrorCode},
    machine::Machine,
    paths::make_private_dir,
    run_dir,
    spec::MachineSpec,
};

/// Name of the snapshot that a workspace begins with.
pub const BASELINE: &str = "baseline";
/// Where a workspace's tree is in the guest.
pub const WORKSPACE_PATH: &str = "/workspace";

/// A record to make.
#[derive(Debug)]
pub struct NewRecord {
    /// What it is.
    pub kind: RecordKind,
    /// The machine's size, environment and lifetime.
    pub spec: MachineSpec,
    /// A person's name for it.
    pub name: Option<String>,
    /// Any order.
    pub labels: Vec<(String, String)>,
    /// The tree that a workspace begins with: a tar, read from its first byte, and where it came from. None is an empty
    /// tree.
    pub seed: Option<(File, Seed)>,
    /// What a workspace's processes may be given.
    pub secrets: Vec<NewSecret>,
}

/// A change of what a record is called and how long it lives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordUpdate {
    /// `Some(None)` clears the name.
    pub name: Option<Option<String>>,
    /// Set or replaced.
    pub set_labels: Vec<(String, String)>,
    /// Removed, after that.
    pub clear_labels: Vec<String>,
    /// A new lifetime in seconds, counted from now.
    pub ttl_seconds: Option<u64>,
}

/// What is known about a record.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordInfo {
    /// The row, with its state as the machine's lock tells it.
    pub record: RecordView,
    /// Commands so far.
    pub command_count: u64,
    /// The last of them.
    pub last_command: Option<CommandRow>,
    /// Its secrets, without their values.
    pub secrets: Vec<SecretRow>,
}

/// The records of one state directory; cheap to clone.
#[derive(Debug, Clone)]
pub struct Workspaces {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    store: Store,
    /// Dropped after the store: what that gives back, this may take.
    reserve: Reserve,
    dir: PathBuf,
}

impl Workspaces {
    /// Opens the records of an engine's state directory, making the database when there is none.
    ///
    /// # Errors
    /// `io` when the state directory cannot be used, `disk_full`, `internal` when the database is damaged or of a newer
    /// pyro.
    pub fn open(engine: Engine) -> Result<Self, EngineError> {
        let state = engine.paths().state.clone();
        let dir = state.join("records");
        for path in [&state, &dir] {
            make_private_dir(path).map_err(|e| EngineError::io(format_args!("use `{}`", path.display()), &e))?;
        }
        let (database, reserve) = (database(&state), Reserve::new(&state));
        let store = || Store::open(&database, || set_aside(&dir));
        let store = match store() {
            Err(error) if error.is_full() && reserve.give_up() => store(),
            opened => opened.inspect(|_| reserve.keep()),
        };
        let store = store.map_err(|e| store_error(&database, &e))?;
        Ok(Self { inner: Arc::new(Inner { engine, store, reserve, dir }) })
    }

    /// Returns what is known about a record, after looking whether its machine lives and its time is over.
    ///
    /// # Errors
    /// `not_found`, `expired` (the record is then removed), `io`, `internal`.
    pub async fn info(&self, id: &str, kind: RecordKind) -> Result<RecordInfo, EngineError> {
        let record = self.current(id, kind).await?;
        self.describe(record)
    }

    /// Returns all records of a kind, the most recent activity first. Removes those whose time is over.
    ///
    /// # Errors
    /// `io`, `internal`.
    pub async fn list(&self, kind: RecordKind) -> Result<Vec<RecordInfo>, EngineError> {
        self.tidy().await;
        let mut infos = Vec::new();
        for record in self.look(|store| store.all(kind))? {
            match self.refresh(record).await {
                Ok(record) => infos.push(self.describe(record)?),
                Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::Expired) => {}
                Err(error) => return Err(error),
            }
        }
        infos.sort_by(|a, b| {
            let key = |info: &RecordInfo| (info.record.last_activity_at, info.record.created_at);
            key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal).then_with(|| a.record.id.cmp(&b.record.id))
        });
        Ok(infos)
    }

    /// Removes every record of a kind whose time is over; returns their ids.
    ///
    /// # Errors
    /// `io`, `internal`.
    pub async fn reap(&self, kind: RecordKind) -> Result<Vec<String>, EngineError> {
        self.tidy().await;
        let mut reaped = Vec::new();
        for record in self.look(|store| store.all(kind))? {
            let id = record.id.clone();
            match self.refresh(record).await {
                Err(error) if error.code() == ErrorCode::Expired => reaped.push(id),
                Err(error) if error.code() != ErrorCode::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(reaped)
    }

    /// Returns the running machine of a record.
    ///
    /// # Errors
    /// `invalid_state` when it is not started, and as [`Self::info`].
    pub async fn machine(&self, id: &str, kind: RecordKind) -> Result<Machine, EngineError> {
        let record = self.current(id, kind).await?;
        self.machine_of(&record).await
    }

    async fn machine_of(&self, record: &Record) -> Result<Machine, EngineError> {
        let machine = match (&record.state, &record.machine_id) {
            (RecordState::Started, Some(machine)) => machine,
            _ => return Err(not_started(record)),
        };
        self.inner.engine.machine(machine).await.map_err(|error| match error.code() {
            // It ended between the look and the call.
            ErrorCode::NotFound => not_started(record),
            _ => error,
        })
    }

    /// Changes name, labels or lifetime.
    ///
    /// # Errors
    /// `invalid_argument` for a lifetime that no machine may have, and as [`Self::info`].
    pub async fn update(&self, id: &str, kind: RecordKind, change: &RecordUpdate) -> Result<RecordInfo, EngineError> {
        let (_lock, mut record) = self.locked(id, kind).await?;
        if let Some(name) = &change.name {
            record.name.clone_from(name);
        }
        for (key, value) in &change.set_labels {
            record.labels.retain(|(known, _)| known != key);
            record.labels.push((key.clone(), value.clone()));
        }
        record.labels.retain(|(key, _)| !change.clear_labels.contains(key));
        record.labels.sort();
        let longer = match change.ttl_seconds {
            Some(ttl) => {
                let ttl = Duration::from_secs(ttl);
                MachineSpec { ttl, ..MachineSpec::default() }.check()?;
                let longer = unix_now() + ttl.as_secs_f64() > record.expires_at;
                record.ttl_seconds = ttl.as_secs();
                record.expires_at = unix_now() + ttl.as_secs_f64();
                Some(longer)
            }
            None => None,
        };
        record.last_activity_at = unix_now();
        // The machine must never outlive its record, nor end before it: the later of two ends is written first.
        if longer == Some(true) {
            self.move_expiry(&record).await?;
        }
        self.db(|store| store.update(&record))?;
        if longer == Some(false) {
            self.move_expiry(&record).await?;
        }
        self.describe(record)
    }

    /// Adds a command to the history; returns its sequence number.
    ///
    /// # Errors
    /// `internal` when the record is gone or the database fails.
    pub fn record_command(&self, id: &str, command: &NewCommand<'_>) -> Result<u64, EngineError> {
        self.db(|store| store.add_command(id, command))
    }

    /// Returns at most `limit` commands with a sequence above `after`, in order.
    ///
    /// # Errors
    /// `internal` when the database fails.
    pub fn commands(&self, id: &str, after: u64, limit: u32) -> Result<Vec<CommandRow>, EngineError> {
        self.look(|store| store.commands(id, after, limit))
    }

    /// Returns what was kept of a command's stdout and stderr.
    ///
    /// # Errors
    /// `not_found`, `internal`.
    pub fn command_output(&self, id: &str, sequence: u64) -> Result<(Vec<u8>, Vec<u8>), EngineError> {
        self.look(|store| store.command_output(id, sequence))?
            .ok_or_else(|| EngineError::new(ErrorCode::NotFound, format!("workspace `{id}` has no command {sequence}")))
    }

    /// Returns where a record's files are.
    fn record_dir(&self, id: &str) -> PathBuf {
        self.inner.dir.join(id)
    }

    /// Reads from the database, which waits for nobody.
    fn look<T>(&self, act: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, EngineError> {
        act(&self.inner.store).map_err(|e| self.store_error(&e))
    }

    /// Changes the database. It waits for the disk, and for other processes.
    fn db<T>(&self, act: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, EngineError> {
        self.write(act).map_err(|e| self.store_error(&e))
    }

    /// As [`Self::db`], for what ends or removes something: when the disk is full it uses the room that is kept for it.
    fn db_to_free<T>(&self, act: impl Fn(&Store) -> Result<T, StoreError>) -> Result<T, EngineError> {
        let done = match self.write(&act) {
            Err(error) if error.is_full() && self.inner.reserve.give_up() => self.write(&act),
            done => done,
        };
        done.map_err(|e| self.store_error(&e))
    }

    fn write<T>(&self, act: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let store = &self.inner.store;
        match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| act(store)),
            _ => act(store),
        }
    }

    fn store_error(&self, error: &StoreError) -> EngineError {
        store_error(&database(&self.inner.engine.paths().state), error)
    }

    async fn move_expiry(&self, record: &Record) -> Result<(), EngineError> {
        let Some(machine) = record.machine_id.as_deref().filter(|_| record.state == RecordState::Started) else {
            return Ok(());
        };
        match self.inner.engine.machine(machine).await {
            Ok(machine) => machine.set_expiry(record.expires_at).await,
            // It ended meanwhile, which the next look notes.
            Err(error) if error.code() == ErrorCode::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn describe(&self, record: Record) -> Result<RecordInfo, EngineError> {
        let (command_count, last_command) = self.look(|store| store.command_summary(&record.id))?;
        let secrets = self.look(|store| store.secrets(&record.id))?;
        Ok(RecordInfo { record: record.view, command_count, last_command, secrets })
    }

    /// Returns the row as it is now, or why there is none.
    async fn current(&self, id: &str, kind: RecordKind) -> Result<Record, EngineError> {
        let record = self.row(id, kind)?;
        self.refresh(record).await
    }

    fn row(&self, id: &str, kind: RecordKind) -> Result<Record, EngineError> {
        if !run_dir::valid_id(id) {
            return Err(none(id, kind));
        }
        match self.look(|store| store.get(id))? {
            Some(record) if record.kind == kind && record.state != RecordState::Deleting => Ok(record),
            _ => Err(none(id, kind)),
        }
    }
}

/// Returns where the database of a state directory is.
fn database(state: &Path) -> PathBuf {
    state.join("state.db")
}

/// Moves away what there is of records when the database that knew them is gone. It may only have been moved, so its
/// disks are not rubbish.
fn set_aside(dir: &Path) -> io::Result<()> {
    let is_record = |entry: &fs::DirEntry| {
        entry.file_name().to_str().is_some_and(run_dir::valid_id) && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    let records = fs::read_dir(dir)?.flatten().filter(is_record).count();
    if records == 0 {
        return Ok(());
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let aside = dir.with_extension(format!("lost-{seconds}"));
    fs::rename(dir, &aside)?;
    tracing::warn!(
        "the state database is new, and {records} workspaces or vms are there that it does not know: what there is of \
         them is now in `{}`; remove it when nobody needs it",
        aside.display()
    );
    make_private_dir(dir)
}

fn store_error(database: &Path, error: &StoreError) -> EngineError {
    use rusqlite::ErrorCode as Sqlite;

    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    let text = format!("{error}{source}");
    let at = database.display();
    let sqlite = match error {
        StoreError::Sqlite(error) => error.sqlite_error_code(),
        StoreError::Records(_)
        | StoreError::Unreadable { .. }
        | StoreError::Newer { .. }
        | StoreError::Exists { .. } => None,
    };
    match (error, sqlite) {
        _ if error.is_full() => EngineError::new(ErrorCode::DiskFull, format!("no space left: `{at}`: {text}"))
            .with_hint("delete a workspace, for which some room is kept, or free some on the disk of this file")
            .retry_may_help(),
        (_, Some(Sqlite::NotADatabase | Sqlite::DatabaseCorrupt)) => EngineError::new(
            ErrorCode::Internal,
            format!("`{at}` is damaged: {text}"),
        )
        .with_hint(
            "move this file and its -wal and -shm away: pyro then makes a new one, and the workspaces of the old one \
                 are lost to it",
        ),
        (_, Some(Sqlite::ReadOnly | Sqlite::CannotOpen | Sqlite::PermissionDenied)) => {
            EngineError::new(ErrorCode::Io, format!("`{at}` cannot be written: {text}"))
                .with_hint("give this user the directory of this file, or set PYRO_HOME to another place")
        }
        (StoreError::Exists { .. }, _) => EngineError::new(ErrorCode::AlreadyExists, text),
        (StoreError::Newer { .. }, _) => {
            EngineError::new(ErrorCode::Internal, text).with_hint("use the newer pyro, or another PYRO_HOME")
        }
        (StoreError::Records(source), _) => EngineError::io(format_args!("{error} beside `{at}`"), source),
        (StoreError::Sqlite(_) | StoreError::Unreadable { .. }, _) => {
            EngineError::new(ErrorCode::Internal, format!("`{at}`: {text}"))
        }
    }
}

fn noun(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Workspace => "workspace",
        RecordKind::Machine => "vm",
    }
}

fn none(id: &str, kind: RecordKind) -> EngineError {
    let hint = match kind {
        RecordKind::Workspace => "workspace_list shows the workspaces; one is removed when its time to live is over",
        RecordKind::Machine => "a vm is removed when its time to live is over",
    };
    EngineError::new(ErrorCode::NotFound, format!("{} '{}' does not exist", noun(kind), id.escape_debug()))
        .with_hint(hint)
}

fn expired(id: &str, kind: RecordKind) -> EngineError {
    EngineError::new(ErrorCode::Expired, format!("{} '{id}' expired and was automatically deleted", noun(kind)))
        .with_hint("create a new one with a larger ttl_seconds")
}

fn not_started(record: &Record) -> EngineError {
    let state = match record.state {
        RecordState::Created => "created",
        _ => "stopped",
    };
    EngineError::new(
        ErrorCode::InvalidState,
        format!("{} {} must be in 'started' state, not '{state}'", noun(record.kind), record.id),
    )
    .with_hint("start it first")
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
