//! What one call's store holds, and the limits on it.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use pyro_engine::{EngineError, ErrorCode};
use serde_json::Value;
use tokio::sync::Mutex as AsyncMutex;
use wasmtime::ResourceLimiter;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::access::HostAccess;
use super::attachments::Attachments;
use super::blob::Blob;
use super::capture::StdioTail;
use super::meter::CallClock;
use super::progress::CallProgress;
use super::vm::{Redactors, SeenFiles};
use crate::profile::{GrantSet, Limits};
use crate::tool::{CallInput, CallObserver};

/// Bytes of blobs that one call may hold.
pub(crate) const MAX_BLOB_BYTES: usize = 64 << 20;

/// Files that the blobs of one call may hold open.
pub(crate) const MAX_FILE_BLOBS: usize = 16;

/// Table elements of all instances of a component: CPython has 40,000.
const MAX_TABLE_ELEMENTS: usize = 1 << 20;

/// A limit that a call ran into. The store is discarded with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitHit {
    #[error("it used more than {0} ms of CPU time")]
    Cpu(u32),
    #[error("it asked for more than {0} MiB of memory")]
    Memory(u32),
    #[error("it asked for more than {MAX_TABLE_ELEMENTS} table elements")]
    Table,
    #[error("it gave the host more than {} MiB of blobs to hold", MAX_BLOB_BYTES >> 20)]
    Blobs,
}

/// Everything a running instance can reach.
pub(crate) struct CallState {
    pub(crate) table: ResourceTable,
    pub(crate) wasi: WasiCtx,
    pub(crate) memory: MemoryLimit,
    pub(crate) stdio: StdioTail,
    pub(crate) blob_bytes: usize,
    pub(crate) blob_files: usize,
    /// Files of guests that were read, so that they are replaced only while they are what was read.
    pub(crate) seen: SeenFiles,
    /// Outputs under construction.
    pub(crate) outputs: usize,
    pub(crate) clock: Arc<CallClock>,
    pub(crate) component: Arc<str>,
    pub(crate) config: Arc<str>,
    pub(crate) grants: Arc<GrantSet>,
    /// What is behind the gated interfaces; none while a component is asked what it lists.
    pub(crate) access: Option<Arc<HostAccess>>,
    /// What interceptors attached to this call.
    pub(crate) attachments: Arc<Attachments>,
    /// Whether this is an interceptor's `before`, which alone may attach.
    pub(crate) may_attach: bool,
    /// Redactors of the workspaces this instance has touched.
    pub(crate) redactors: Redactors,
    pub(crate) observer: Arc<dyn CallObserver>,
    pub(crate) stdin: Arc<AsyncMutex<Option<CallInput>>>,
    pub(crate) call_id: String,
    pub(crate) progress: Arc<CallProgress>,
    pub(crate) logged: LogCount,
}

/// Log lines of one call.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogCount {
    pub(crate) lines: u32,
    pub(crate) dropped: u32,
}

impl CallState {
    /// Returns the state of a call that reaches nothing but what is passed in.
    pub(crate) fn new(limits: &Limits, clock: Arc<CallClock>, observer: Arc<dyn CallObserver>) -> CallState {
        let stdio = StdioTail::default();
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles as usize);
        let wasi = WasiCtxBuilder::new()
            .stdout(stdio.clone())
            .stderr(stdio.clone())
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build();
        let progress = Arc::new(CallProgress::new(Arc::clone(&observer)));
        CallState {
            table,
            wasi,
            memory: MemoryLimit {
                used: 0,
                elements: 0,
                most: (limits.memory_mib as usize) << 20,
                mib: limits.memory_mib,
            },
            stdio,
            blob_bytes: 0,
            blob_files: 0,
            seen: SeenFiles::default(),
            outputs: 0,
            clock,
            component: Arc::from(""),
            config: Arc::from("{}"),
            grants: Arc::default(),
            access: None,
            attachments: Arc::default(),
            may_attach: false,
            redactors: Redactors::default(),
            observer,
            stdin: Arc::default(),
            call_id: String::new(),
            progress,
            logged: LogCount::default(),
        }
    }

    /// Counts `bytes` that a blob will hold.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), LimitHit> {
        self.blob_bytes = self.blob_bytes.saturating_add(bytes);
        if self.blob_bytes > MAX_BLOB_BYTES { Err(LimitHit::Blobs) } else { Ok(()) }
    }

    /// Hands bytes to the component as a blob.
    pub(crate) fn push_bytes(&mut self, bytes: impl Into<Bytes>) -> wasmtime::Result<Resource<Blob>> {
        let bytes = bytes.into();
        self.hold(bytes.len())?;
        Ok(self.table.push(Blob::memory(bytes))?)
    }

    /// Hands a file to the component as a blob, or says that it holds too many.
    pub(crate) fn push_file(&mut self, file: File) -> wasmtime::Result<Result<Resource<Blob>, EngineError>> {
        if self.blob_files >= MAX_FILE_BLOBS {
            let message = format!("this call holds {MAX_FILE_BLOBS} archives or disks already");
            return Ok(Err(EngineError::new(ErrorCode::LimitExceeded, message)
                .with_hint("drop a blob before the next one is asked for")));
        }
        match Blob::file(file) {
            Ok(blob) => {
                self.blob_files += 1;
                Ok(Ok(self.table.push(blob)?))
            }
            Err(error) => Ok(Err(EngineError::io("look at a file", &error))),
        }
    }

    /// Takes what a blob held from the account.
    pub(crate) fn released(&mut self, blob: &Blob) {
        self.blob_bytes = self.blob_bytes.saturating_sub(blob.held());
        self.blob_files = self.blob_files.saturating_sub(usize::from(blob.is_file()));
    }
}

impl WasiView for CallState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Memory of all instances of a call together. Going over it ends the call with a typed error instead of a failed
/// `memory.grow`, which guests turn into an opaque abort.
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    used: usize,
    elements: usize,
    most: usize,
    mib: u32,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.used = self.used.saturating_add(desired.saturating_sub(current));
        if self.used > self.most {
            return Err(wasmtime::Error::from(LimitHit::Memory(self.mib)));
        }
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.elements = self.elements.saturating_add(desired.saturating_sub(current));
        if self.elements > MAX_TABLE_ELEMENTS {
            return Err(wasmtime::Error::from(LimitHit::Table));
        }
        Ok(true)
    }
}

/// Returns `config` as a component reads it.
pub(crate) fn config_json(config: &serde_json::Map<String, Value>) -> Arc<str> {
    Arc::from(Value::Object(config.clone()).to_string())
}
