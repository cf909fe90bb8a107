//! `pyro:vm/host-files`: files of the host, below the profile's roots and nowhere else.
//!
//! A path is resolved by the kernel, beneath a root that is open (`openat2`), so no symlink and no `..` leads out of it,
//! whoever changes the tree meanwhile. What is written is staged beside its place and renamed there when it is whole.

mod archive;
mod confined;
mod output;
mod pack;

use std::sync::{Arc, Mutex, PoisonError};

use pyro_engine::{EngineError, ErrorCode};
use wasmtime::component::Resource;
use zeroize::Zeroizing;

use super::bindings::pyro::vm::{host_files, types, workspaces};
use super::blob::Blob;
use super::state::CallState;
use super::vm::{blocking, error, missing, sendable};
pub(crate) use confined::Roots;
use output::Output;

/// Outputs that one call may have under construction.
const MAX_OUTPUTS: usize = 8;

/// An output under construction behind a component's handle.
#[derive(Clone, Debug)]
pub struct OutputEntry(Arc<Mutex<Output>>);

impl CallState {
    /// Runs one step of an output off the threads that serve calls.
    async fn output_step(
        &mut self,
        output: &Resource<OutputEntry>,
        step: impl FnOnce(&mut Output) -> Result<(), EngineError> + Send + 'static,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        let output = self.table.get(output)?.clone();
        let stepped =
            blocking("write an output", move || Ok(step(&mut output.0.lock().unwrap_or_else(PoisonError::into_inner))));
        Ok(stepped.await.and_then(|stepped| stepped).map_err(|failed| error(&failed)))
    }

    /// Returns the value of a secret that is a file of the host.
    pub(super) async fn secret_file(&mut self, path: &str, most: usize) -> Result<Zeroizing<Vec<u8>>, types::Error> {
        let access = self.access()?;
        sendable("path", path)?;
        let path = path.to_owned();
        let read = blocking("read a secret's file", move || Ok(Roots::reading(&access.read).read(&path, most)));
        read.await.and_then(|read| read).map_err(|failed| error(&failed))
    }
}

impl host_files::Host for CallState {
    async fn read_archive(&mut self, path: String) -> wasmtime::Result<Result<workspaces::Archive, types::Error>> {
        if self.grants.host_files.is_none() {
            return Ok(Err(missing("host-files")));
        }
        let access = match self.access().and_then(|access| sendable("path", &path).map(|()| access)) {
            Ok(access) => access,
            Err(problem) => return Ok(Err(problem)),
        };
        // A large tree takes its time, and none of it is the component's.
        let pause = self.clock.pause();
        let packed = blocking("read an archive", move || Ok(archive::read(&Roots::reading(&access.read), &path)));
        let packed = packed.await.and_then(|packed| packed);
        drop(pause);
        match packed {
            Ok(packed) => match self.push_file(packed.tar)? {
                Ok(tar) => Ok(Ok(workspaces::Archive {
                    tar,
                    mode: packed.mode.to_owned(),
                    source: Some(packed.source),
                    entry_count: packed.entries,
                    bytes: packed.bytes,
                })),
                Err(failed) => Ok(Err(error(&failed))),
            },
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn open_output(&mut self, path: String) -> wasmtime::Result<Result<Resource<OutputEntry>, types::Error>> {
        if self.grants.host_files.is_none() {
            return Ok(Err(missing("host-files")));
        }
        let access = match self.access().and_then(|access| sendable("path", &path).map(|()| access)) {
            Ok(access) => access,
            Err(problem) => return Ok(Err(problem)),
        };
        if self.outputs >= MAX_OUTPUTS {
            let message = format!("this call has {MAX_OUTPUTS} outputs under construction");
            let failed = EngineError::new(ErrorCode::LimitExceeded, message).with_hint("commit or drop one first");
            return Ok(Err(error(&failed)));
        }
        // What a killed process left there goes first, and that may be much.
        let _pause = self.clock.pause();
        let opened = blocking("open an output", move || Ok(Output::open(&Roots::writing(&access.write), &path)));
        match opened.await.and_then(|opened| opened) {
            Ok(output) => {
                let handle = self.table.push(OutputEntry(Arc::new(Mutex::new(output))))?;
                self.outputs += 1;
                Ok(Ok(handle))
            }
            Err(failed) => Ok(Err(error(&failed))),
        }
    }
}

impl host_files::HostOutput for CallState {
    async fn directory(
        &mut self,
        output: Resource<OutputEntry>,
        path: String,
        mode: u32,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        self.output_step(&output, move |output| output.directory(&path, mode)).await
    }

    async fn file(
        &mut self,
        output: Resource<OutputEntry>,
        path: String,
        mode: u32,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        self.output_step(&output, move |output| output.file(&path, mode)).await
    }

    async fn write(
        &mut self,
        output: Resource<OutputEntry>,
        data: Vec<u8>,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        self.output_step(&output, move |output| output.write(&data)).await
    }

    async fn write_blob(
        &mut self,
        output: Resource<OutputEntry>,
        data: Resource<Blob>,
        offset: u64,
        length: u64,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        let data = self.table.get(&data)?.clone();
        let _pause = self.clock.pause();
        self.output_step(&output, move |output| output.write_blob(&data, offset, length)).await
    }

    async fn symlink(
        &mut self,
        output: Resource<OutputEntry>,
        path: String,
        target: String,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        self.output_step(&output, move |output| output.symlink(&path, &target)).await
    }

    async fn commit(&mut self, output: Resource<OutputEntry>) -> wasmtime::Result<Result<(), types::Error>> {
        self.output_step(&output, Output::commit).await
    }

    async fn drop(&mut self, output: Resource<OutputEntry>) -> wasmtime::Result<()> {
        let entry = self.table.delete(output)?;
        self.outputs = self.outputs.saturating_sub(1);
        // Removes what was not committed. A step that was cut off may still hold it; then the step's end does.
        drop(entry);
        Ok(())
    }
}
