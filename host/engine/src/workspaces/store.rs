//! The rows that survive: workspaces and lifecycle machines, their commands and
//! snapshots, in one SQLite database (WAL) that several pyro processes share.
//!
//! Only this module knows SQL. It holds no policy: what may follow what is
//! decided by the callers, who hold the record's lock while they change it.
//! Large files (disks, trees, secret values) stay beside the database; a row
//! names them, and a file that no row names is rubbish.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::rows::{CommandRow, NewCommand, Record, RecordKind, RecordState, RecordView, SecretRow, SnapshotRow};

/// The version of the tables below; a database of a newer pyro is refused.
const SCHEMA_VERSION: i64 = 1;

/// How long a writer waits for another process's transaction.
const BUSY: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
CREATE TABLE records (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    intent TEXT,
    name TEXT,
    labels TEXT NOT NULL,
    environment TEXT NOT NULL,
    environment_version TEXT NOT NULL,
    vcpu_count INTEGER NOT NULL,
    mem_mib INTEGER NOT NULL,
    ttl_seconds INTEGER NOT NULL,
    created_at REAL NOT NULL,
    last_activity_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    execution_mode TEXT NOT NULL,
    machine_id TEXT,
    disk TEXT,
    seed TEXT NOT NULL,
    reset_count INTEGER NOT NULL DEFAULT 0,
    last_reset_at REAL,
    meta TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE TABLE commands (
    record_id TEXT NOT NULL REFERENCES records(id) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    command TEXT NOT NULL,
    cwd TEXT NOT NULL,
    exit_code INTEGER,
    duration_ms INTEGER NOT NULL,
    execution_mode TEXT NOT NULL,
    recorded_at REAL NOT NULL,
    stdout BLOB NOT NULL,
    stderr BLOB NOT NULL,
    PRIMARY KEY (record_id, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots (
    record_id TEXT NOT NULL REFERENCES records(id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    file TEXT NOT NULL,
    created_at REAL NOT NULL,
    entry_count INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (record_id, name)
) STRICT;
CREATE TABLE secrets (
    record_id TEXT NOT NULL REFERENCES records(id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    source_kind TEXT NOT NULL,
    file TEXT NOT NULL,
    PRIMARY KEY (record_id, name)
) STRICT;
";

/// A failure of the state database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused something.
    #[error("the state database failed")]
    Sqlite(#[from] rusqlite::Error),
    /// A column does not hold what this version writes.
    #[error("the state database holds an unreadable {column}")]
    Unreadable {
        /// Which column.
        column: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The database was written by a newer pyro.
    #[error("the state database has version {found}, and this pyro knows up to {SCHEMA_VERSION}")]
    Newer {
        /// Its version.
        found: i64,
    },
    /// A row of that key is there already.
    #[error("{what} exists already")]
    Exists {
        /// What the key names.
        what: String,
    },
    /// The database is new, and the records that are there already cannot be moved away.
    #[error("set aside the records of a lost state database")]
    Records(#[source] std::io::Error),
}

impl StoreError {
    /// Returns whether the database had no room. Its index of the log is a file of its own that grows by another way,
    /// whose refusals SQLite calls an I/O error.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Sqlite(error) => error.sqlite_error().is_some_and(|error| {
                error.code == rusqlite::ErrorCode::DiskFull
                    || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
            }),
            Self::Records(error) => error.kind() == std::io::ErrorKind::StorageFull,
            Self::Unreadable { .. } | Self::Newer { .. } | Self::Exists { .. } => false,
        }
    }
}

/// What was kept of stdout and stderr.
type Kept = (Vec<u8>, Vec<u8>);

/// The database, opened.
#[derive(Debug)]
pub struct Store {
    /// For what only reads: it waits for no writer. Dropped first, because the last connection to be closed removes the log,
    /// and this one may not.
    reader: Mutex<Connection>,
    // Calls are short; SQLite's own locks are what orders processes.
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the database at `path`, making it when it is not there. `anew` runs before a database that is made can be
    /// used by anybody.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, is damaged, or was written by a newer pyro.
    pub fn open(path: &Path, anew: impl FnOnce() -> std::io::Result<()>) -> Result<Self, StoreError> {
        // SQLite makes its other files with the mode of this one. A failure is SQLite's to tell.
        let made = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        drop(made.and_then(|file| file.set_permissions(Permissions::from_mode(0o600))));
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        // Of a workspace that is deleted no command and no output is left in free pages.
        connection.pragma_update(None, "secure_delete", true)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version < SCHEMA_VERSION {
            // Another process may be doing the same: look again inside.
            let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if version == 0 {
                anew().map_err(StoreError::Records)?;
                transaction.execute_batch(SCHEMA)?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            transaction.commit()?;
        } else if version > SCHEMA_VERSION {
            return Err(StoreError::Newer { found: version });
        }
        let reader =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        reader.busy_timeout(BUSY)?;
        Ok(Self { reader: Mutex::new(reader), connection: Mutex::new(connection) })
    }

    /// Adds a record.
    ///
    /// # Errors
    ///
    /// `Exists` when there is one of that id.
    pub fn insert(&self, record: &Record) -> Result<(), StoreError> {
        let added = self.lock().execute(
            "INSERT OR IGNORE INTO records (id, kind, state, intent, name, labels, environment, environment_version, vcpu_count,
                mem_mib, ttl_seconds, created_at, last_activity_at, expires_at, execution_mode, machine_id, disk, seed,
                reset_count, last_reset_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
            params![
                record.id,
                write("kind", &record.kind)?,
                write("state", &record.state)?,
                record.intent.as_ref().map(|intent| write("intent", intent)).transpose()?,
                record.name,
                write("labels", &record.labels)?,
                record.environment,
                record.environment_version,
                record.vcpu_count,
                record.mem_mib,
                record.ttl_seconds.cast_signed(),
                record.created_at,
                record.last_activity_at,
                record.expires_at,
                record.execution_mode,
                record.machine_id,
                record.disk,
                write("seed", &record.seed)?,
                record.reset_count.cast_signed(),
                record.last_reset_at,
            ],
        )?;
        if added == 0 {
            return Err(StoreError::Exists { what: format!("a record of id {}", record.id) });
        }
        Ok(())
    }

    /// Writes every changeable column of a record. Returns whether it was there.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn update(&self, record: &Record) -> Result<bool, StoreError> {
        Ok(update(&self.lock(), record)? > 0)
    }

    /// Writes a record and forgets its commands, as a reset does: in one transaction.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn update_after_reset(&self, record: &Record) -> Result<(), StoreError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        update(&transaction, record)?;
        transaction.execute("DELETE FROM commands WHERE record_id = ?1", [&record.id])?;
        transaction.commit()?;
        Ok(())
    }

    /// Returns a record.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn get(&self, id: &str) -> Result<Option<Record>, StoreError> {
        let connection = self.reader();
        let mut statement = connection.prepare_cached("SELECT * FROM records WHERE id = ?1")?;
        let mut rows = statement.query([id])?;
        rows.next()?.map(record).transpose()
    }

    /// Returns all records of a kind, in no order that means something.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn all(&self, kind: RecordKind) -> Result<Vec<Record>, StoreError> {
        let connection = self.reader();
        let mut statement = connection.prepare_cached("SELECT * FROM records WHERE kind = ?1 ORDER BY id")?;
        let mut rows = statement.query([write("kind", &kind)?])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            records.push(record(row)?);
        }
        Ok(records)
    }

    /// Returns the records, of any kind, that are in the middle of a change.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn unfinished(&self) -> Result<Vec<Record>, StoreError> {
        let connection = self.reader();
        let mut statement =
            connection.prepare_cached("SELECT * FROM records WHERE intent IS NOT NULL OR state IN (?1, ?2)")?;
        let mut rows =
            statement.query([write("state", &RecordState::Creating)?, write("state", &RecordState::Deleting)?])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            records.push(record(row)?);
        }
        Ok(records)
    }

    /// Removes a record and everything that hangs on it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn remove(&self, id: &str) -> Result<(), StoreError> {
        self.lock().execute("DELETE FROM records WHERE id = ?1", [id])?;
        Ok(())
    }

    /// Adds a command to the history and marks the activity; returns its
    /// sequence number.
    ///
    /// # Errors
    ///
    /// When the database fails, also when the record is gone.
    pub fn add_command(&self, id: &str, command: &NewCommand<'_>) -> Result<u64, StoreError> {
        let mut connection = self.lock();
        // It need not survive a power failure, as what the command did on the disk may not either; and to wait for the disk
        // takes longer than many commands. Whatever is written next takes it along.
        connection.pragma_update(None, "synchronous", "normal")?;
        let added = insert_command(&mut connection, id, command);
        connection.pragma_update(None, "synchronous", "full")?;
        added
    }

    /// Returns at most `limit` commands with a sequence above `after`, in order.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn commands(&self, id: &str, after: u64, limit: u32) -> Result<Vec<CommandRow>, StoreError> {
        let connection = self.reader();
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {COMMAND_COLUMNS} FROM commands WHERE record_id = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3"
        ))?;
        let rows = statement.query_map(params![id, after.cast_signed(), limit], command)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns how many commands there are, and the last.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn command_summary(&self, id: &str) -> Result<(u64, Option<CommandRow>), StoreError> {
        let last: Option<CommandRow> = self
            .reader()
            .prepare_cached(&format!(
                "SELECT {COMMAND_COLUMNS} FROM commands WHERE record_id = ?1 ORDER BY sequence DESC LIMIT 1"
            ))?
            .query_row([id], command)
            .optional()?;
        // They are numbered from 1 without gaps.
        Ok((last.as_ref().map_or(0, |last| last.sequence), last))
    }

    /// Returns what was kept of a command's stdout and stderr.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn command_output(&self, id: &str, sequence: u64) -> Result<Option<Kept>, StoreError> {
        Ok(self
            .reader()
            .prepare_cached("SELECT stdout, stderr FROM commands WHERE record_id = ?1 AND sequence = ?2")?
            .query_row(params![id, sequence.cast_signed()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?)
    }

    /// Adds a snapshot whose file is complete.
    ///
    /// # Errors
    ///
    /// `Exists` when there is one of that name.
    pub fn add_snapshot(&self, id: &str, snapshot: &SnapshotRow) -> Result<(), StoreError> {
        let added = self.lock().execute(
            "INSERT OR IGNORE INTO snapshots (record_id, name, file, created_at, entry_count, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                id,
                snapshot.name,
                snapshot.file,
                snapshot.created_at,
                snapshot.entry_count.cast_signed(),
                snapshot.bytes.cast_signed(),
            ],
        )?;
        if added == 0 {
            return Err(StoreError::Exists { what: format!("snapshot {:?}", snapshot.name) });
        }
        Ok(())
    }

    /// Returns the snapshots, newest first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn snapshots(&self, id: &str) -> Result<Vec<SnapshotRow>, StoreError> {
        let connection = self.reader();
        let mut statement = connection.prepare_cached(
            "SELECT name, file, created_at, entry_count, bytes FROM snapshots WHERE record_id = ?1 ORDER BY created_at DESC, name",
        )?;
        let rows = statement.query_map([id], |row| {
            Ok(SnapshotRow {
                name: row.get(0)?,
                file: row.get(1)?,
                created_at: row.get(2)?,
                entry_count: row.get::<_, i64>(3)?.cast_unsigned(),
                bytes: row.get::<_, i64>(4)?.cast_unsigned(),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Removes a snapshot; returns whether it was there.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn remove_snapshot(&self, id: &str, name: &str) -> Result<bool, StoreError> {
        let removed = self.lock().execute("DELETE FROM snapshots WHERE record_id = ?1 AND name = ?2", [id, name])?;
        Ok(removed > 0)
    }

    /// Notes a secret, in the place of one of the same name.
    ///
    /// # Errors
    ///
    /// When the database fails, also when the record is gone.
    pub fn put_secret(&self, id: &str, secret: &SecretRow) -> Result<(), StoreError> {
        self.lock().execute(
            "INSERT INTO secrets (record_id, name, source_kind, file) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (record_id, name) DO UPDATE SET source_kind = excluded.source_kind, file = excluded.file",
            [id, &secret.name, &secret.source_kind, &secret.file],
        )?;
        Ok(())
    }

    /// Returns the secrets, sorted by name.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn secrets(&self, id: &str) -> Result<Vec<SecretRow>, StoreError> {
        let connection = self.reader();
        let mut statement = connection
            .prepare_cached("SELECT name, source_kind, file FROM secrets WHERE record_id = ?1 ORDER BY name")?;
        let rows = statement
            .query_map([id], |row| Ok(SecretRow { name: row.get(0)?, source_kind: row.get(1)?, file: row.get(2)? }))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets a secret; returns whether it was there.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub fn remove_secret(&self, id: &str, name: &str) -> Result<bool, StoreError> {
        let removed = self.lock().execute("DELETE FROM secrets WHERE record_id = ?1 AND name = ?2", [id, name])?;
        Ok(removed > 0)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a call rolled its transaction back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds a command under the next number, and returns that.
fn insert_command(connection: &mut Connection, id: &str, command: &NewCommand<'_>) -> Result<u64, StoreError> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let sequence: i64 = transaction.query_row(
        "SELECT COALESCE(MAX(sequence), 0) + 1 FROM commands WHERE record_id = ?1",
        [id],
        |row| row.get(0),
    )?;
    transaction.execute(
        "INSERT INTO commands (record_id, sequence, command, cwd, exit_code, duration_ms, execution_mode, recorded_at, stdout, stderr)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            id,
            sequence,
            command.command,
            command.cwd,
            command.exit_code,
            command.duration_ms.cast_signed(),
            command.execution_mode,
            command.recorded_at,
            command.stdout,
            command.stderr,
        ],
    )?;
    transaction.execute(
        "UPDATE records SET last_activity_at = MAX(last_activity_at, ?2) WHERE id = ?1",
        params![id, command.recorded_at],
    )?;
    transaction.commit()?;
    Ok(sequence.cast_unsigned())
}

const COMMAND_COLUMNS: &str = "sequence, command, cwd, exit_code, duration_ms, execution_mode, recorded_at";

fn update(connection: &Connection, record: &Record) -> Result<usize, StoreError> {
    Ok(connection.execute(
        "UPDATE records SET state = ?2, intent = ?3, name = ?4, labels = ?5, ttl_seconds = ?6, last_activity_at = ?7,
            expires_at = ?8, execution_mode = ?9, machine_id = ?10, disk = ?11, seed = ?12, reset_count = ?13,
            last_reset_at = ?14, environment_version = ?15
         WHERE id = ?1",
        params![
            record.id,
            write("state", &record.state)?,
            record.intent.as_ref().map(|intent| write("intent", intent)).transpose()?,
            record.name,
            write("labels", &record.labels)?,
            record.ttl_seconds.cast_signed(),
            record.last_activity_at,
            record.expires_at,
            record.execution_mode,
            record.machine_id,
            record.disk,
            write("seed", &record.seed)?,
            record.reset_count.cast_signed(),
            record.last_reset_at,
            record.environment_version,
        ],
    )?)
}

fn record(row: &Row<'_>) -> Result<Record, StoreError> {
    let intent: Option<String> = row.get("intent")?;
    Ok(Record {
        view: RecordView {
            id: row.get("id")?,
            kind: read("kind", &row.get::<_, String>("kind")?)?,
            state: read("state", &row.get::<_, String>("state")?)?,
            name: row.get("name")?,
            labels: read("labels", &row.get::<_, String>("labels")?)?,
            environment: row.get("environment")?,
            environment_version: row.get("environment_version")?,
            vcpu_count: row.get("vcpu_count")?,
            mem_mib: row.get("mem_mib")?,
            ttl_seconds: row.get::<_, i64>("ttl_seconds")?.cast_unsigned(),
            created_at: row.get("created_at")?,
            last_activity_at: row.get("last_activity_at")?,
            expires_at: row.get("expires_at")?,
            execution_mode: row.get("execution_mode")?,
            seed: read("seed", &row.get::<_, String>("seed")?)?,
            reset_count: row.get::<_, i64>("reset_count")?.cast_unsigned(),
            last_reset_at: row.get("last_reset_at")?,
        },
        intent: intent.map(|text| read("intent", &text)).transpose()?,
        machine_id: row.get("machine_id")?,
        disk: row.get("disk")?,
    })
}

fn command(row: &Row<'_>) -> rusqlite::Result<CommandRow> {
    Ok(CommandRow {
        sequence: row.get::<_, i64>(0)?.cast_unsigned(),
        command: row.get(1)?,
        cwd: row.get(2)?,
        exit_code: row.get(3)?,
        duration_ms: row.get::<_, i64>(4)?.cast_unsigned(),
        execution_mode: row.get(5)?,
        recorded_at: row.get(6)?,
    })
}

fn write<T: Serialize>(column: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Unreadable { column, source })
}

fn read<T: for<'de> Deserialize<'de>>(column: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Unreadable { column, source })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::rows::{Intent, sample};
    use super::*;

    fn command(text: &str) -> NewCommand<'_> {
        NewCommand {
            command: text,
            cwd: "/workspace",
            exit_code: Some(0),
            duration_ms: 3,
            execution_mode: "microvm_kvm",
            recorded_at: 2.5,
            stdout: b"out\xff",
            stderr: b"",
        }
    }

    fn open() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db"), || Ok(())).unwrap();
        (dir, store)
    }

    #[test]
    fn what_was_deleted_is_nowhere_in_the_files_and_they_are_private() {
        let (dir, store) = open();
        store.insert(&sample("a")).unwrap();
        let long = "a-command-of-its-own ".repeat(2000);
        for _ in 0..20 {
            store.add_command("a", &command(&long)).unwrap();
        }
        store.remove("a").unwrap();
        drop(store);
        let mut files = 0;
        for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
            let bytes = std::fs::read(entry.path()).unwrap();
            assert!(!bytes.windows(20).any(|part| part == b"a-command-of-its-own"), "{:?}", entry.file_name());
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
            files += 1;
        }
        assert!(files > 0);
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let (_dir, store) = open();
        let mut record = sample("0123456789ab");
        store.insert(&record).unwrap();
        assert_eq!(store.get(&record.id).unwrap().as_ref(), Some(&record));
        assert!(matches!(store.insert(&record), Err(StoreError::Exists { .. })));
        record.state = RecordState::Started;
        record.intent = Some(Intent::Reset { machine_id: "m".to_owned(), disk: "disk.2".to_owned() });
        record.machine_id = Some("m".to_owned());
        record.last_reset_at = Some(9.0);
        assert!(store.update(&record).unwrap());
        assert_eq!(store.all(RecordKind::Workspace).unwrap(), [record.clone()]);
        assert_eq!(store.all(RecordKind::Machine).unwrap(), []);
        store.remove(&record.id).unwrap();
        assert_eq!(store.get(&record.id).unwrap(), None);
        assert!(!store.update(&record).unwrap());
    }

    #[test]
    fn what_hangs_on_a_record_goes_with_it() {
        let (_dir, store) = open();
        store.insert(&sample("a")).unwrap();
        store.add_command("a", &command("one")).unwrap();
        let snapshot =
            SnapshotRow { name: "s".to_owned(), file: "f".to_owned(), created_at: 1.0, entry_count: 2, bytes: 3 };
        store.add_snapshot("a", &snapshot).unwrap();
        assert!(matches!(store.add_snapshot("a", &snapshot), Err(StoreError::Exists { .. })));
        let secret = SecretRow { name: "S".to_owned(), source_kind: "literal".to_owned(), file: "s.1".to_owned() };
        store.put_secret("a", &secret).unwrap();
        let again = SecretRow { file: "s.2".to_owned(), ..secret };
        store.put_secret("a", &again).unwrap();
        assert_eq!(store.secrets("a").unwrap(), [again]);
        store.remove("a").unwrap();
        store.insert(&sample("a")).unwrap();
        assert_eq!(store.command_summary("a").unwrap(), (0, None));
        assert_eq!(store.snapshots("a").unwrap(), []);
        assert_eq!(store.secrets("a").unwrap(), []);
        assert!(store.add_command("gone", &command("x")).is_err());
    }

    #[test]
    fn commands_are_numbered_without_gaps_by_many_writers() {
        let (dir, store) = open();
        store.insert(&sample("a")).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // As another process would: with a connection of its own.
                    let store = Store::open(&dir.path().join("state.db"), || Ok(())).unwrap();
                    for _ in 0..25 {
                        store.add_command("a", &command("x")).unwrap();
                    }
                });
            }
        });
        let numbers: Vec<u64> = store.commands("a", 0, 1000).unwrap().iter().map(|row| row.sequence).collect();
        assert_eq!(numbers, (1..=100).collect::<Vec<_>>());
        assert_eq!(store.commands("a", 98, 1).unwrap().len(), 1);
        assert_eq!(store.command_output("a", 7).unwrap().unwrap().0, b"out\xff");
        assert_eq!(store.command_output("a", 700).unwrap(), None);
        assert_eq!(store.command_summary("a").unwrap().0, 100);
        assert_eq!(store.get("a").unwrap().unwrap().last_activity_at, 2.5);
    }

    #[test]
    fn a_newer_database_is_refused() {
        let (dir, store) = open();
        store.lock().pragma_update(None, "user_version", 7).unwrap();
        let error = Store::open(&dir.path().join("state.db"), || Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "the state database has version 7, and this pyro knows up to 1");
    }

    #[test]
    fn a_damaged_database_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        std::fs::write(&path, vec![7_u8; 8192]).unwrap();
        assert!(matches!(Store::open(&path, || Ok(())), Err(StoreError::Sqlite(_))));
    }
}
