//! Keeping built things: found in no time, installed whole or not at all, noticed when damaged, never taken away from
//! whoever uses them.
//!
//! ```text
//! CACHE/
//!   environments|kernels|initramfs/KEY/     a slot: one thing that can be built again
//!       current -> BUILD                    the only way in; switched by renaming a link over it
//!       BUILD/manifest.json                 what it is, with the size, digest and identity of every file
//!       BUILD/lease                         locked (shared) by users; a build is only removed with it locked alone
//!       BUILD/...                           the files, read-only
//!   staging/RANDOM/lock                     a build in progress holds it; one that nobody holds is rubbish
//!   locks/KIND-KEY.lock                     held while a slot is being built
//! ```
//!
//! A full digest of an image takes longer than booting it, so a file is trusted as long as its identity (size, inode,
//! time of change) is the one recorded when it was digested. When the identity differs the digest decides.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{error::EnvironmentError, sparse};
use crate::{Progress, paths::make_private_dir};

const MANIFEST: &str = "manifest.json";
const CURRENT: &str = "current";
pub(crate) const LEASE: &str = "lease";
const LOCK: &str = "lock";
/// A link in a staging directory to the part of it that has to be elsewhere.
const OUTSIDE: &str = "outside";
const FORMAT: u32 = 1;
/// A manifest lists some hundred packages.
const MAX_MANIFEST_BYTES: u64 = 16 * 1024 * 1024;
const LOCK_POLL: Duration = Duration::from_millis(50);
const LOCK_REPORT: Duration = Duration::from_secs(2);

/// What a manifest knows of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) size: u64,
    /// Hexadecimal. Of an image (see `sparse`) it leaves out the zeros.
    pub(crate) sha256: String,
    /// Whether the digest is [`sparse::digest`]'s.
    #[serde(default)]
    pub(crate) sparse: bool,
    inode: u64,
    mtime_ns: i128,
}

/// The manifest of a build; `T` is what its kind adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest<T> {
    format: u32,
    /// Digest of everything that decides what is built. A build with another one is out of date.
    pub(crate) recipe: String,
    /// Unix time in seconds.
    pub(crate) created: u64,
    pub(crate) files: BTreeMap<String, FileRecord>,
    pub(crate) details: T,
}

/// A build that is installed and cannot be removed while this lives.
#[derive(Debug, Clone)]
pub(crate) struct Build<T> {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest<T>,
    pub(crate) lease: Arc<File>,
}

impl<T> Build<T> {
    /// Returns the path of a file of the build.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The directory of everything that is kept.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) root: PathBuf,
}

/// One thing that can be built again.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) dir: PathBuf,
    lock: PathBuf,
}

impl Store {
    pub(crate) fn slot(&self, kind: &str, key: &str) -> Slot {
        Slot { dir: self.root.join(kind).join(key), lock: self.root.join("locks").join(format!("{kind}-{key}.lock")) }
    }

    /// Returns the keys of a kind's slots.
    pub(crate) fn keys(&self, kind: &str) -> Vec<String> {
        let mut out: Vec<_> = fs::read_dir(self.root.join(kind))
            .map(|dir| dir.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
            .unwrap_or_default();
        out.sort();
        out
    }

    fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// Makes a staging directory that lives as long as the value, and removes those whose builders died.
    pub(crate) fn stage(&self) -> Result<Staging, EnvironmentError> {
        let parent = self.staging();
        let guard = self.lock_staging()?;
        self.sweep_locked();
        let dir = parent.join(uuid::Uuid::new_v4().simple().to_string());
        make_private_dir(&dir).map_err(|e| EnvironmentError::io("create", &dir, e))?;
        let path = dir.join(LOCK);
        let lock = File::create(&path).map_err(|e| EnvironmentError::io("create", &path, e))?;
        lock.lock().map_err(|e| EnvironmentError::io("lock", &path, e))?;
        drop(guard);
        let staging = Staging { dir, _lock: lock };
        for part in ["entry", "work"] {
            let path = staging.dir.join(part);
            fs::create_dir(&path).map_err(|e| EnvironmentError::io("create", &path, e))?;
        }
        Ok(staging)
    }

    /// Removes what died builders left. Returns how many bytes that were.
    pub(crate) fn sweep(&self) -> Result<u64, EnvironmentError> {
        if !self.staging().exists() {
            return Ok(0);
        }
        let _guard = self.lock_staging()?;
        Ok(self.sweep_locked())
    }

    /// Making and sweeping are kept apart: a directory whose lock is not there yet would look abandoned.
    fn lock_staging(&self) -> Result<File, EnvironmentError> {
        let parent = self.staging();
        make_private_dir(&parent).map_err(|e| EnvironmentError::io("create", &parent, e))?;
        let path = self.root.join("locks");
        make_private_dir(&path).map_err(|e| EnvironmentError::io("create", &path, e))?;
        let path = path.join("staging.lock");
        let file = File::create(&path).map_err(|e| EnvironmentError::io("create", &path, e))?;
        file.lock().map_err(|e| EnvironmentError::io("lock", &path, e))?;
        Ok(file)
    }

    fn sweep_locked(&self) -> u64 {
        let mut freed = 0;
        for dir in fs::read_dir(self.staging()).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let alive =
                File::open(dir.join(LOCK)).is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
            if !alive {
                freed += disk_bytes(&dir);
                tracing::info!(dir = %dir.display(), "removing what an interrupted build left");
                remove_staging(&dir);
            }
        }
        freed
    }
}

impl Slot {
    /// Returns the installed build when there is one whose files are what its manifest says. The common case reads one
    /// small file and asks for the state of the others.
    ///
    /// # Errors
    /// `io` for trouble with the directory itself; a missing or damaged build is `None`.
    pub(crate) fn current<T: DeserializeOwned + Serialize>(&self) -> Result<Option<Build<T>>, EnvironmentError> {
        self.load(false)
    }

    /// Like [`Slot::current`], and digests every file.
    pub(crate) fn verified<T: DeserializeOwned + Serialize>(&self) -> Result<Option<Build<T>>, EnvironmentError> {
        self.load(true)
    }

    fn load<T: DeserializeOwned + Serialize>(&self, digest: bool) -> Result<Option<Build<T>>, EnvironmentError> {
        // Between reading the link and having the lease, the build may be replaced and removed.
        for _ in 0..8 {
            let Some(dir) = self.target() else {
                return Ok(None);
            };
            let path = dir.join(LEASE);
            let Ok(lease) = File::open(&path) else {
                if self.target().as_deref() == Some(&dir) {
                    return Ok(None);
                }
                continue;
            };
            lease.lock_shared().map_err(|e| EnvironmentError::io("lock", &path, e))?;
            if self.target().as_deref() != Some(&dir) {
                continue;
            }
            let Some(mut manifest) = read_manifest::<T>(&dir) else {
                return Ok(None);
            };
            let (good, changed) = check_files(&dir, &mut manifest, digest);
            if !good {
                return Ok(None);
            }
            if changed {
                // Best effort: without it the next use digests again.
                let _ = write_manifest(&dir, &manifest);
            }
            return Ok(Some(Build { dir, manifest, lease: Arc::new(lease) }));
        }
        Ok(None)
    }

    /// Returns the directory of what is installed, good or not.
    pub(crate) fn target(&self) -> Option<PathBuf> {
        let name = fs::read_link(self.dir.join(CURRENT)).ok()?;
        // A link that leads elsewhere is not ours.
        let name = name.to_str().filter(|name| !name.contains('/') && *name != "..")?;
        Some(self.dir.join(name))
    }

    /// Waits until no one else builds this slot.
    ///
    /// # Errors
    /// `cancelled`, `io`.
    pub(crate) fn lock(&self, what: &str, progress: &dyn Progress) -> Result<SlotLock, EnvironmentError> {
        if let Some(parent) = self.lock.parent() {
            make_private_dir(parent).map_err(|e| EnvironmentError::io("create", parent, e))?;
        }
        let file = File::create(&self.lock).map_err(|e| EnvironmentError::io("create", &self.lock, e))?;
        let began = Instant::now();
        let mut reported = None::<Instant>;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(SlotLock(file)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(EnvironmentError::io("lock", &self.lock, error));
                }
            }
            if progress.cancelled() {
                return Err(EnvironmentError::Cancelled(format!("waiting for another build of `{what}`")));
            }
            if reported.is_none_or(|at| at.elapsed() >= LOCK_REPORT) {
                reported = Some(Instant::now());
                let seconds = began.elapsed().as_secs();
                progress.report(
                    &format!("waiting: `{what}` is being built by someone else ({seconds} s)"),
                    0.0,
                    Some(100.0),
                );
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    /// Installs what `staging` holds under `entry`: all of it or, on any failure, nothing. Older builds that nobody
    /// uses are removed.
    pub(crate) fn install<T: Serialize + DeserializeOwned>(
        &self,
        _lock: &SlotLock,
        staging: Staging,
        recipe: String,
        sparse: &[&str],
        details: T,
    ) -> Result<Build<T>, EnvironmentError> {
        let entry = staging.entry();
        let mut files = BTreeMap::new();
        for path in files_below(&entry).map_err(|e| EnvironmentError::io("read", &entry, e))? {
            let Some(name) = path.strip_prefix(&entry).ok().and_then(|name| name.to_str()) else {
                continue;
            };
            let is_sparse = sparse.contains(&name);
            let record = record(&path, is_sparse).map_err(|e| EnvironmentError::io("read", &path, e))?;
            files.insert(name.to_owned(), record);
        }
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let manifest = Manifest { format: FORMAT, recipe, created, files, details };
        write_manifest(&entry, &manifest)?;
        let path = entry.join(LEASE);
        let lease = File::create(&path).map_err(|e| EnvironmentError::io("create", &path, e))?;
        lease.lock_shared().map_err(|e| EnvironmentError::io("lock", &path, e))?;
        sync_dir(&entry)?;

        make_private_dir(&self.dir).map_err(|e| EnvironmentError::io("create", &self.dir, e))?;
        let name = format!("{created}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let dir = self.dir.join(&name);
        fs::rename(&entry, &dir).map_err(|e| EnvironmentError::io("rename to", &dir, e))?;
        let link = self.dir.join(format!(".{name}"));
        let switched = std::os::unix::fs::symlink(&name, &link)
            .and_then(|()| fs::rename(&link, self.dir.join(CURRENT)))
            .map_err(|e| EnvironmentError::io("switch to", &dir, e));
        if let Err(error) = switched {
            let _ = fs::remove_file(&link);
            let _ = fs::remove_dir_all(&dir);
            return Err(error);
        }
        sync_dir(&self.dir)?;
        self.remove_unused(false);
        Ok(Build { dir, manifest, lease: Arc::new(lease) })
    }

    /// Removes the slot's builds that nobody uses: the older ones, and the current one too when `all`. Returns the
    /// bytes freed and how many builds stay because they are in use.
    pub(crate) fn remove_unused(&self, all: bool) -> (u64, usize) {
        let current = self.target();
        let (mut freed, mut used) = (0, 0);
        for path in fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let is_current = current.as_deref() == Some(&path);
            if !path.is_dir() || path.is_symlink() || (is_current && !all) {
                continue;
            }
            let lease = File::open(path.join(LEASE));
            if lease.as_ref().is_ok_and(|lease| lease.try_lock().is_err()) {
                used += 1;
                continue;
            }
            if is_current {
                let _ = fs::remove_file(self.dir.join(CURRENT));
            }
            freed += disk_bytes(&path);
            remove_tree(&path);
        }
        // Left by a process that died between two steps of a switch.
        for path in fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_symlink() && path.file_name().is_some_and(|name| name != CURRENT) {
                let _ = fs::remove_file(path);
            }
        }
        // Succeeds only when nothing is left.
        let _ = fs::remove_dir(&self.dir);
        (freed, used)
    }
}

/// Held while a slot is built.
#[derive(Debug)]
pub(crate) struct SlotLock(#[expect(dead_code, reason = "holds the lock")] File);

/// A directory to build in; gone when dropped, and gone after the next build when its process is killed.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: PathBuf,
    _lock: File,
}

impl Staging {
    /// Returns the directory whose contents are installed.
    pub(crate) fn entry(&self) -> PathBuf {
        self.dir.join("entry")
    }

    /// Returns a directory for temporary files of programs.
    ///
    /// Programs of an ordinary user work as other users too (mapped ones), which cannot come through this user's
    /// private directories. Theirs is in the system's temporary directory, and found through a link.
    pub(crate) fn work(&self) -> Result<PathBuf, EnvironmentError> {
        let inside = self.dir.join("work");
        if rustix::process::geteuid().is_root() {
            return Ok(inside);
        }
        let link = self.dir.join(OUTSIDE);
        if let Ok(outside) = fs::read_link(&link) {
            return Ok(outside);
        }
        let outside = std::env::temp_dir().join(format!("pyro-env-{}", uuid::Uuid::new_v4().simple()));
        // The link first: whatever is made can be found again.
        std::os::unix::fs::symlink(&outside, &link).map_err(|e| EnvironmentError::io("create", &link, e))?;
        fs::create_dir(&outside)
            .and_then(|()| fs::set_permissions(&outside, fs::Permissions::from_mode(0o711)))
            .map_err(|e| EnvironmentError::io("create", &outside, e))?;
        Ok(outside)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        remove_staging(&self.dir);
    }
}

fn remove_staging(dir: &Path) {
    if let Ok(outside) = fs::read_link(dir.join(OUTSIDE)) {
        let ours = outside.file_name().and_then(|n| n.to_str()).is_some_and(|name| name.starts_with("pyro-env-"))
            && fs::symlink_metadata(&outside)
                .is_ok_and(|meta| meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw());
        if ours {
            remove_tree(&outside);
        }
    }
    remove_tree(dir);
}

/// Removes a directory. What belongs to this user's mapped users can only be removed as one of them.
fn remove_tree(dir: &Path) {
    // A dying program may still add a file or two.
    for _ in 0..3 {
        match fs::remove_dir_all(dir) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let mut command = super::process::command("unshare");
                command.args(["--map-auto", "--map-root-user", "rm", "-rf", "--"]).arg(dir);
                let _ = super::process::run(command, &|| false, |_| {}, || {});
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    if dir.exists() {
        tracing::warn!(dir = %dir.display(), "cannot remove");
    }
}

fn read_manifest<T: DeserializeOwned>(dir: &Path) -> Option<Manifest<T>> {
    let path = dir.join(MANIFEST);
    if fs::metadata(&path).ok()?.len() > MAX_MANIFEST_BYTES {
        return None;
    }
    let manifest: Manifest<T> = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let safe = |name: &String| Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    (manifest.format == FORMAT && manifest.files.keys().all(safe)).then_some(manifest)
}

fn write_manifest<T: Serialize>(dir: &Path, manifest: &Manifest<T>) -> Result<(), EnvironmentError> {
    let path = dir.join(MANIFEST);
    let temporary = dir.join(format!(".manifest-{}", std::process::id()));
    let write = || -> io::Result<()> {
        let file = File::create(&temporary)?;
        serde_json::to_writer_pretty(&file, manifest)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        EnvironmentError::io("write", &path, e)
    })
}

/// Checks every file, by identity or by digest. Returns whether all are good, and whether identities were updated.
fn check_files<T>(dir: &Path, manifest: &mut Manifest<T>, digest: bool) -> (bool, bool) {
    let mut changed = false;
    for (name, known) in &mut manifest.files {
        let path = dir.join(name);
        let Ok(meta) = fs::symlink_metadata(&path) else {
            tracing::warn!(file = %path.display(), "a file of the cache is missing");
            return (false, changed);
        };
        let same =
            meta.is_file() && meta.len() == known.size && meta.ino() == known.inode && mtime(&meta) == known.mtime_ns;
        if same && !digest {
            continue;
        }
        match record(&path, known.sparse) {
            Ok(now) if now.sha256 == known.sha256 && now.size == known.size => {
                changed |= now != *known;
                *known = now;
            }
            _ => {
                tracing::warn!(file = %path.display(), "a file of the cache is damaged");
                return (false, changed);
            }
        }
    }
    (true, changed)
}

/// Makes a file read-only, writes it to the disk and describes it.
fn record(path: &Path, sparse: bool) -> io::Result<FileRecord> {
    let file = File::open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o444))?;
    file.sync_all()?;
    let meta = file.metadata()?;
    let sha256 = if sparse { sparse::digest(path)? } else { file_digest(file)? };
    Ok(FileRecord { size: meta.len(), sha256, sparse, inode: meta.ino(), mtime_ns: mtime(&meta) })
}

fn mtime(meta: &fs::Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

fn file_digest(mut file: File) -> io::Result<String> {
    use io::Read;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hash.finalize())),
            Ok(count) => hash.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns the hexadecimal digest of bytes.
pub(crate) fn digest_of(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

fn sync_dir(dir: &Path) -> Result<(), EnvironmentError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| EnvironmentError::io("sync", dir, e))
}

fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            out.extend(files_below(&entry.path())?);
        } else {
            out.push(entry.path());
        }
    }
    Ok(out)
}

/// Returns the bytes that a directory takes on the disk.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    files_below(dir)
        .unwrap_or_default()
        .iter()
        .filter_map(|path| fs::symlink_metadata(path).ok())
        .map(|meta| meta.blocks() * 512)
        .sum()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
