//! Secrets of a workspace: values that its processes may be given, and that nobody gets back.
//!
//! On the host a value is a file of mode 0600 in the record's directory; the row names it, and is replaced as a whole.
//! In the guest it is a file in memory (`/run` is no part of any disk), put there when a machine is booted and when the
//! secret is set. A value that is replaced or removed stays on the host, to be kept out of every stream, for as long as the
//! machine lives that knew it. The bytes in this process are wiped when they are dropped.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use bytes::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};
use tar::{Builder, EntryType, Header};
use zeroize::Zeroizing;

use super::{
    RecordKind, RecordState, SecretRow, Workspaces,
    failpoint::point,
    lifecycle::blocking,
    rows::{Intent, Record},
    unix_now,
};
use crate::{
    error::{EngineError, ErrorCode},
    guest::{Content, FileChange},
    machine::Machine,
};

/// The directory of the values, in its parent. The parent is in memory, and a part of every system.
const SECRETS_DIR: &str = "pyro-secrets";
const SECRETS_PARENT: &str = "/run";
/// Where the guest has the values.
pub const SECRETS_PATH: &str = "/run/pyro-secrets";
/// Longest value in bytes.
const MAX_VALUE: usize = 64 * 1024;
/// Longest name in bytes.
const MAX_NAME: usize = 64;
/// Secrets of one workspace.
const MAX_SECRETS: usize = 64;

/// Replaced values that one machine may still know.
const MAX_RETIRED: usize = 256;
/// What the file of such a value begins with; the machine follows.
const RETIRED: &str = "retired.";

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// It was given as it is.
    Literal,
    /// It was read from a file of the host.
    File,
}

impl SecretKind {
    /// Returns `literal` or `file`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Literal => "literal",
            Self::File => "file",
        }
    }
}

/// A secret to keep.
pub struct NewSecret {
    /// A letter or `_`, then letters, digits and `_`; at most 64.
    pub name: String,
    /// UTF-8 of 1 to 65536 bytes.
    pub value: Zeroizing<Vec<u8>>,
    /// Where it came from.
    pub kind: SecretKind,
}

impl std::fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewSecret").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl NewSecret {
    fn check(&self) -> Result<(), EngineError> {
        let refused = |what: String| Err(EngineError::new(ErrorCode::InvalidArgument, what));
        let name = self.name.escape_debug();
        let first = self.name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !first || self.name.len() > MAX_NAME || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return refused(format!("secret name '{name}' must match ^[A-Za-z_][A-Za-z0-9_]{{0,63}}$"));
        }
        if self.value.is_empty() {
            return refused(format!("secret '{name}' is empty"));
        }
        if self.value.len() > MAX_VALUE {
            return refused(format!(
                "secret '{name}' has {} bytes, and at most {MAX_VALUE} are kept",
                self.value.len()
            ));
        }
        if std::str::from_utf8(&self.value).is_err() {
            return refused(format!("secret '{name}' is not valid UTF-8"));
        }
        Ok(())
    }
}

/// Checks the secrets that a workspace is to begin with.
pub(super) fn check_all(secrets: &[NewSecret]) -> Result<(), EngineError> {
    for (at, secret) in secrets.iter().enumerate() {
        secret.check()?;
        if secrets.iter().take(at).any(|other| other.name == secret.name) {
            return Err(EngineError::new(
                ErrorCode::InvalidArgument,
                format!("duplicate secret name: {}", secret.name),
            ));
        }
    }
    check_count(secrets.len())
}

fn check_count(count: usize) -> Result<(), EngineError> {
    if count > MAX_SECRETS {
        return Err(EngineError::new(
            ErrorCode::LimitExceeded,
            format!("a workspace has at most {MAX_SECRETS} secrets"),
        )
        .with_hint("remove one that is not needed"));
    }
    Ok(())
}

impl Workspaces {
    /// Returns the secrets of a workspace, without their values, sorted by name.
    ///
    /// # Errors
    /// `not_found`, `expired`.
    pub async fn secrets(&self, id: &str) -> Result<Vec<SecretRow>, EngineError> {
        self.current(id, RecordKind::Workspace).await?;
        self.look(|store| store.secrets(id))
    }

    /// Keeps a secret, in the place of one of that name. A started workspace's machine gets it at once.
    ///
    /// # Errors
    /// `invalid_argument`, `limit_exceeded`, `not_found`, `expired`, `disk_full`, and what giving it to the machine fails
    /// with; the secret is then kept all the same.
    pub async fn set_secret(&self, id: &str, secret: NewSecret) -> Result<SecretRow, EngineError> {
        secret.check()?;
        let (this, id) = (self.clone(), id.to_owned());
        self.change(move |_cancel| async move {
            let (_lock, mut record) = this.locked(&id, RecordKind::Workspace).await?;
            let known = this.look(|store| store.secrets(&id))?;
            let old = known.iter().find(|row| row.name == secret.name);
            if old.is_none() {
                check_count(known.len() + 1)?;
            }
            let kept = this.keep_secret(&mut record, &secret, old).await;
            let row = this.or_undo(&id, kept).await?;
            if let Some(machine) = this.machine_if_started(&record).await? {
                put(&machine, vec![(secret.name, Some(secret.value))]).await?;
            }
            Ok(row)
        })
        .await
    }

    async fn keep_secret(
        &self,
        record: &mut Record,
        secret: &NewSecret,
        old: Option<&SecretRow>,
    ) -> Result<SecretRow, EngineError> {
        record.intent = Some(Intent::Files);
        self.db(|store| store.update(record))?;
        point("secret-announced");
        if let Some(old) = old {
            self.retire(record, old)?;
        }
        let row = self.add_secret(&record.id, secret)?;
        point("secret-kept");
        self.sweep_files(record)?;
        record.intent = None;
        record.last_activity_at = unix_now();
        self.db(|store| store.update(record))?;
        Ok(row)
    }

    /// Keeps a value that is about to be replaced or removed for as long as the machine that knows it lives: its processes
    /// may print it later.
    fn retire(&self, record: &Record, old: &SecretRow) -> Result<(), EngineError> {
        let Some(machine) = record.machine_id.as_deref().filter(|_| record.state == RecordState::Started) else {
            return Ok(());
        };
        let dir = self.record_dir(&record.id);
        let failed = |e: &io::Error| EngineError::io("keep a replaced secret", e);
        if retired(&dir, machine).map_err(|e| failed(&e))?.len() >= MAX_RETIRED {
            let message = format!("secrets were replaced {MAX_RETIRED} times since the workspace was started");
            return Err(EngineError::new(ErrorCode::LimitExceeded, message)
                .with_hint("stop and start the workspace: no process knows an old value then"));
        }
        let name = format!("{RETIRED}{machine}.{}", uuid::Uuid::new_v4().simple());
        std::fs::hard_link(dir.join(&old.file), dir.join(name)).map_err(|e| failed(&e))
    }

    /// Writes the value, then the row that names it.
    pub(super) fn add_secret(&self, id: &str, secret: &NewSecret) -> Result<SecretRow, EngineError> {
        let file = format!("secret.{}", uuid::Uuid::new_v4().simple());
        let path = self.record_dir(id).join(&file);
        save(&path, &secret.value).map_err(|e| EngineError::io("keep a secret", &e))?;
        let row = SecretRow { name: secret.name.clone(), source_kind: secret.kind.as_str().to_owned(), file };
        self.db(|store| store.put_secret(id, &row))?;
        Ok(row)
    }

    /// Forgets a secret. A started workspace's machine loses it at once; a process that has it keeps it.
    ///
    /// # Errors
    /// `not_found`, `expired`.
    pub async fn remove_secret(&self, id: &str, name: &str) -> Result<(), EngineError> {
        let (this, id, name) = (self.clone(), id.to_owned(), name.to_owned());
        self.change(move |_cancel| async move {
            let (_lock, mut record) = this.locked(&id, RecordKind::Workspace).await?;
            let known = this.look(|store| store.secrets(&id))?;
            let Some(old) = known.iter().find(|row| row.name == name) else {
                return Err(EngineError::new(
                    ErrorCode::NotFound,
                    format!("secret '{}' does not exist in workspace '{id}'", name.escape_debug()),
                )
                .with_hint("secret_list shows the secrets"));
            };
            // First where it can be read.
            if let Some(machine) = this.machine_if_started(&record).await? {
                put(&machine, vec![(name.clone(), None)]).await?;
            }
            record.intent = Some(Intent::Files);
            this.db(|store| store.update(&record))?;
            point("unsecret-announced");
            let retired = this.retire(&record, old);
            this.or_undo(&id, retired).await?;
            this.db(|store| store.remove_secret(&id, &name))?;
            point("unsecret-removed");
            this.sweep_files(&record)?;
            record.intent = None;
            record.last_activity_at = unix_now();
            this.db(|store| store.update(&record)).map(drop)
        })
        .await
    }

    /// Returns every value that must not be seen of a workspace: those of its secrets, and those that were replaced or
    /// removed while its machine knew them.
    ///
    /// # Errors
    /// `not_found`, `expired`, `io`.
    pub async fn hidden_values(&self, id: &str) -> Result<Vec<Zeroizing<Vec<u8>>>, EngineError> {
        let record = self.current(id, RecordKind::Workspace).await?;
        // The current ones first: one that is replaced in between is then among both rather than among none.
        let mut values: Vec<_> = self.values(id).await?.into_iter().map(|(_, value)| value).collect();
        let Some(machine) = record.machine_id.clone() else { return Ok(values) };
        let dir = self.record_dir(id);
        let files = retired(&dir, &machine).map_err(|e| EngineError::io("look for replaced secrets", &e))?;
        if files.is_empty() {
            return Ok(values);
        }
        let read = move || {
            let values = files.iter().map(|file| match load(&dir.join(file)) {
                // The machine has just ended, and nothing comes from it any more.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                value => value.map(Some),
            });
            values.filter_map(Result::transpose).collect::<io::Result<Vec<_>>>()
        };
        let read = move || read().map_err(|e| EngineError::io("read a replaced secret", &e));
        values.extend(blocking("read secrets", read).await?);
        Ok(values)
    }

    /// Returns names and values of a workspace's secrets, to give to a process.
    ///
    /// # Errors
    /// `not_found`, `expired`, `io`.
    pub async fn secret_values(&self, id: &str) -> Result<Vec<(String, Zeroizing<Vec<u8>>)>, EngineError> {
        self.current(id, RecordKind::Workspace).await?;
        self.values(id).await
    }

    async fn values(&self, id: &str) -> Result<Vec<(String, Zeroizing<Vec<u8>>)>, EngineError> {
        let mut tries = 3;
        loop {
            tries -= 1;
            let rows = self.look(|store| store.secrets(id))?;
            if rows.is_empty() {
                return Ok(Vec::new());
            }
            let dir = self.record_dir(id);
            let read = blocking("read secrets", move || {
                rows.into_iter()
                    .map(|row| load(&dir.join(&row.file)).map(|value| (row.name, value)))
                    .collect::<io::Result<Vec<_>>>()
                    .map_err(|e| EngineError::io("read a secret", &e))
            })
            .await;
            match read {
                // One that is replaced meanwhile has its file elsewhere.
                Err(_) if tries > 0 => {}
                read => return read,
            }
        }
    }

    /// Gives a machine that has just booted the workspace's secrets.
    pub(super) async fn install_secrets(&self, id: &str, machine: &Machine) -> Result<(), EngineError> {
        let values = self.values(id).await?;
        if values.is_empty() {
            return Ok(());
        }
        put(machine, values.into_iter().map(|(name, value)| (name, Some(value))).collect()).await
    }

    async fn machine_if_started(&self, record: &Record) -> Result<Option<Machine>, EngineError> {
        if record.state != RecordState::Started {
            return Ok(None);
        }
        match self.machine_of(record).await {
            Ok(machine) => Ok(Some(machine)),
            // It has just ended, and with it what it had.
            Err(error) if error.code() == ErrorCode::InvalidState => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Writes or removes values in a guest's memory.
async fn put(machine: &Machine, values: Vec<(String, Option<Zeroizing<Vec<u8>>>)>) -> Result<(), EngineError> {
    make_dir(machine).await?;
    let removes = values.iter().all(|(_, value)| value.is_none());
    let changes = values
        .into_iter()
        .map(|(name, value)| FileChange {
            path: format!("{SECRETS_PATH}/{name}"),
            // The wiping goes with the last reference to the bytes.
            content: value.map(|value| Content::Bytes(Bytes::from_owner(value))),
            mode: Some(0o600),
            replaces: None,
        })
        .collect();
    match machine.file_apply(SECRETS_PATH, changes).await {
        // A guest is free to remove it first.
        Err(error) if removes && error.code() == ErrorCode::NotFound => Ok(()),
        done => done.map_err(|error| error.while_doing("give the machine its secrets")),
    }
}

/// Makes the directory, or leaves it as it is. The guest's programs are not asked: they may be anything by now.
async fn make_dir(machine: &Machine) -> Result<(), EngineError> {
    let tar = directory_tar().map_err(|e| EngineError::io("make an archive", &e))?;
    match machine.extract(SECRETS_PARENT, SECRETS_PARENT, tar).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let in_the_way = matches!(error.code(), ErrorCode::InvalidArgument | ErrorCode::Denied);
            let error = error.while_doing("make the directory of the machine's secrets");
            Err(if in_the_way { error.with_hint(format!("remove `{SECRETS_PATH}` in the guest")) } else { error })
        }
    }
}

/// Returns a tar of the directory alone. An unpacked directory has its mode before it has its name.
fn directory_tar() -> io::Result<File> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o700);
    header.set_size(0);
    let mut tar = Builder::new(File::from(memfd_create("secrets", MemfdFlags::CLOEXEC)?));
    tar.append_data(&mut header, SECRETS_DIR, io::empty())?;
    tar.into_inner()
}

/// Returns whether a file holds a value that `machine` may still know.
pub(super) fn is_retired(name: &OsStr, machine: &str) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(RETIRED)?.strip_prefix(machine));
    rest.is_some_and(|rest| rest.starts_with('.'))
}

/// Returns the files of such values.
fn retired(dir: &Path, machine: &str) -> io::Result<Vec<OsString>> {
    let names = std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name()));
    names.filter(|name| name.as_ref().map_or(true, |name| is_retired(name, machine))).collect()
}

fn save(path: &Path, value: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(value)?;
    file.sync_data()
}

fn load(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // Large enough from the start, because a vector that grows leaves copies behind.
    let mut value = Zeroizing::new(Vec::with_capacity(MAX_VALUE + 1));
    File::open(path)?.take(MAX_VALUE as u64).read_to_end(&mut value)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn secret(name: &str, value: &[u8]) -> NewSecret {
        NewSecret { name: name.to_owned(), value: Zeroizing::new(value.to_vec()), kind: SecretKind::Literal }
    }

    #[test]
    fn bad_secrets_are_refused_without_telling_them() {
        let long = "x".repeat(65);
        for name in ["", "1A", "A-B", "A B", "Ä", long.as_str(), "../x"] {
            let error = secret(name, b"hush").check().unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{name}");
            assert!(!error.message().contains("hush"));
        }
        for value in [&b""[..], b"\xff\xfe", &vec![b'x'; MAX_VALUE + 1]] {
            assert_eq!(secret("A", value).check().unwrap_err().code(), ErrorCode::InvalidArgument);
        }
        secret("_a1", &vec![b'x'; MAX_VALUE]).check().unwrap();
        assert!(!format!("{:?}", secret("A", b"hush")).contains("hush"));
    }

    #[test]
    fn names_are_unique_and_few() {
        let error = check_all(&[secret("A", b"1"), secret("B", b"1"), secret("A", b"2")]).unwrap_err();
        assert_eq!(error.message(), "duplicate secret name: A");
        let many: Vec<NewSecret> = (0..65).map(|n| secret(&format!("S{n}"), b"1")).collect();
        assert_eq!(check_all(&many).unwrap_err().code(), ErrorCode::LimitExceeded);
    }

    #[test]
    fn a_value_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        save(&path, b"hush").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&path).unwrap().as_slice(), b"hush");
    }
}
