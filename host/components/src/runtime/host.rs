//! `pyro:host`: what every component may use.

use wasmtime::component::Resource;

use super::bindings::pyro::host::{blobs, call, config, log};
use super::blob::Blob;
use super::capture::sanitized;
use super::state::CallState;

/// Log lines that one call may write.
const MAX_LOG_LINES: u32 = 1_000;

/// Longest log line, in bytes.
const MAX_LOG_BYTES: usize = 4 << 10;

/// Fields of one log line.
const MAX_LOG_FIELDS: usize = 32;

/// Most bytes that one `read` of a blob returns.
const MAX_READ: usize = 1 << 20;

impl log::Host for CallState {
    fn log(&mut self, level: log::Level, message: String, fields: Vec<(String, String)>) -> wasmtime::Result<()> {
        if self.logged.lines >= MAX_LOG_LINES {
            self.logged.dropped = self.logged.dropped.saturating_add(1);
            return Ok(());
        }
        self.logged.lines += 1;
        let mut line = cut(&message, MAX_LOG_BYTES);
        for (key, value) in fields.iter().take(MAX_LOG_FIELDS) {
            line.push_str(&format!(" {}={}", cut(key, 64), cut(value, 256)));
        }
        let line = cut(&sanitized(line.as_bytes()).replace('\n', "\\n"), MAX_LOG_BYTES);
        let (component, call) = (&*self.component, &*self.call_id);
        match level {
            log::Level::Trace => tracing::trace!(target: "pyro::plugin", component, call, "{line}"),
            log::Level::Debug => tracing::debug!(target: "pyro::plugin", component, call, "{line}"),
            log::Level::Info => tracing::info!(target: "pyro::plugin", component, call, "{line}"),
            log::Level::Warn => tracing::warn!(target: "pyro::plugin", component, call, "{line}"),
            log::Level::Error => tracing::error!(target: "pyro::plugin", component, call, "{line}"),
        }
        Ok(())
    }
}

/// The first `most` bytes of `text`, without splitting a character.
fn cut(text: &str, most: usize) -> String {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default().to_owned()
}

impl call::Host for CallState {
    fn progress(&mut self, done: f64, total: Option<f64>, message: Option<String>) -> wasmtime::Result<()> {
        let message = message.map(|message| sanitized(cut(&message, 512).as_bytes()));
        self.progress.reported(done, total, message.as_deref());
        Ok(())
    }

    fn cancelled(&mut self) -> wasmtime::Result<bool> {
        // A cancelled call is dropped with its instance, so only the deadline can be seen from inside.
        Ok(self.clock.left().is_zero())
    }

    fn remaining_ms(&mut self) -> wasmtime::Result<u64> {
        Ok(u64::try_from(self.clock.left().as_millis()).unwrap_or(u64::MAX))
    }
}

impl config::Host for CallState {
    fn get(&mut self) -> wasmtime::Result<String> {
        Ok(self.config.to_string())
    }
}

impl blobs::Host for CallState {
    fn from_bytes(&mut self, data: Vec<u8>) -> wasmtime::Result<Resource<Blob>> {
        self.push_bytes(data)
    }
}

impl blobs::HostBlob for CallState {
    fn size(&mut self, blob: Resource<Blob>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&blob)?.len())
    }

    fn read(&mut self, blob: Resource<Blob>, offset: u64, len: u32) -> wasmtime::Result<Vec<u8>> {
        let read = self.table.get(&blob)?.read(offset, (len as usize).min(MAX_READ));
        // The interface has no error here, and nothing of a plugin's makes a read of an open file fail.
        read.map_err(|error| wasmtime::Error::msg(format!("a blob's file cannot be read: {error}")))
    }

    fn drop(&mut self, blob: Resource<Blob>) -> wasmtime::Result<()> {
        let blob = self.table.delete(blob)?;
        self.released(&blob);
        Ok(())
    }
}
