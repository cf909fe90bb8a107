//! The cache of compiled components.
//!
//! ```text
//! <cache>/<compatibility>/<sha256 of wasm>.cwasm   native code; may be deleted at any time
//! <state>/<compatibility>/<sha256 of wasm>.json    its SHA-256, and what the component itself lists
//! ```
//!
//! Compiled code is native code, so it is loaded only when its digest is the one that was written down, in a directory
//! that nobody else can write, when it was compiled. Anything else is compiled again. No failure of the cache fails a
//! call.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::component::Listing;

/// Largest compiled component read: CPython's is 37 MB.
const MAX_CWASM_BYTES: u64 = 1 << 30;

/// Largest record read.
const MAX_RECORD_BYTES: u64 = 8 << 20;

/// Two directories, one compatibility.
#[derive(Clone, Debug)]
pub(crate) struct AotCache {
    cache_dir: PathBuf,
    state_dir: PathBuf,
    compatibility: String,
}

/// What is remembered of a compiled component.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    /// Of the compiled code, in hex.
    cwasm_sha256: String,
    /// What the component answered when it was asked what it lists.
    #[serde(default)]
    listing: Option<Listing>,
}

impl AotCache {
    pub(crate) fn new(cache_dir: &Path, state_dir: &Path, engine: &Engine) -> AotCache {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let compatibility = format!("{:016x}", hasher.finish());
        AotCache { cache_dir: cache_dir.to_owned(), state_dir: state_dir.to_owned(), compatibility }
    }

    fn cwasm_path(&self, digest: &str) -> PathBuf {
        self.cache_dir.join(&self.compatibility).join(format!("{digest}.cwasm"))
    }

    fn record_path(&self, digest: &str) -> PathBuf {
        self.state_dir.join(&self.compatibility).join(format!("{digest}.json"))
    }

    /// Returns what this component answered when it was asked last what it lists.
    pub(crate) fn listing(&self, digest: &str) -> Option<Listing> {
        self.record(digest)?.listing
    }

    /// Remembers what it answered.
    pub(crate) fn remember(&self, digest: &str, listing: &Listing) {
        let Some(mut record) = self.record(digest) else { return };
        record.listing = Some(listing.clone());
        self.write_record(digest, &record);
    }

    /// Returns the compiled component, from the cache when that is sound. Takes long otherwise: call it off the
    /// request path.
    pub(crate) fn load_or_compile(&self, engine: &Engine, digest: &str, wasm: &[u8]) -> wasmtime::Result<Component> {
        if let Some(component) = self.load(engine, digest) {
            return Ok(component);
        }
        let started = std::time::Instant::now();
        let component = Component::new(engine, wasm)?;
        tracing::debug!(digest, ms = started.elapsed().as_millis() as u64, "compiled a component");
        match component.serialize() {
            Ok(cwasm) => self.store(digest, &cwasm),
            Err(error) => tracing::warn!("compiled code cannot be kept: {error:#}"),
        }
        Ok(component)
    }

    fn load(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let record = self.record(digest)?;
        let path = self.cwasm_path(digest);
        let cwasm = read_bounded(&path, MAX_CWASM_BYTES)?;
        if hex::encode(Sha256::digest(&cwasm)) != record.cwasm_sha256 {
            tracing::warn!(path = %path.display(), "compiled code is not what was written: compiling again");
            return None;
        }
        // SAFETY: these are the bytes whose digest this program wrote down after `Component::serialize`, in a
        // directory only this user can write (checked by `record`), so they are code that Cranelift made. They were
        // read before they were checked, so no change of the file matters any more.
        let component = unsafe { Component::deserialize(engine, &cwasm) };
        component.inspect_err(|error| tracing::warn!("compiled code cannot be used: {error:#}: compiling again")).ok()
    }

    fn store(&self, digest: &str, cwasm: &[u8]) {
        let record = Record { cwasm_sha256: hex::encode(Sha256::digest(cwasm)), listing: self.listing(digest) };
        if write_atomically(&self.cwasm_path(digest), cwasm) {
            self.write_record(digest, &record);
        }
    }

    fn record(&self, digest: &str) -> Option<Record> {
        let path = self.record_path(digest);
        if !path.parent().is_some_and(is_private) {
            return None;
        }
        serde_json::from_slice(&read_bounded(&path, MAX_RECORD_BYTES)?).ok()
    }

    fn write_record(&self, digest: &str, record: &Record) {
        match serde_json::to_vec(record) {
            Ok(json) => {
                write_atomically(&self.record_path(digest), &json);
            }
            Err(error) => tracing::warn!("a record cannot be written: {error}"),
        }
    }
}

/// Returns whether a directory is one that only this user can write.
fn is_private(directory: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(directory) else { return false };
    let private =
        metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if !private {
        tracing::warn!(path = %directory.display(), "others can write here: compiled code is not kept");
    }
    private
}

fn read_bounded(path: &Path, most: u64) -> Option<Vec<u8>> {
    let file = fs::File::open(path).ok()?;
    let length = file.metadata().ok().filter(|metadata| metadata.is_file())?.len();
    if length > most {
        return None;
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).ok()?);
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Writes a file of mode 0600 in a directory of mode 0700, so that a reader sees all of it or the one before. Returns
/// whether it worked; a cache that cannot be written is only slow.
fn write_atomically(path: &Path, bytes: &[u8]) -> bool {
    let written = (|| {
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(directory)?.sync_all()
    })();
    if let Err(error) = &written {
        tracing::warn!(path = %path.display(), "cannot be written: {error}");
    }
    written.is_ok()
}
