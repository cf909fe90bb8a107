//! Files of a started workspace.

use pyro_plugin_sdk::ToolError;
use pyro_plugin_sdk::host::blobs;
use pyro_plugin_sdk::vm::files;
use pyro_tree::WORKSPACE;

pub use pyro_plugin_sdk::vm::files::{Entry, Kind};

use crate::blob::{BlobReader, bytes, reader};
use crate::workspace::{Guest, invalid};

/// Bytes of a text file that is written, edited or patched.
pub const MAX_TEXT: u64 = 1 << 20;

/// How often work is done anew before its conflict is told: as many calls as may run at once, and some.
const ATTEMPTS: usize = 64;

/// One file to write or to delete.
pub struct Write {
    /// Absolute.
    pub path: String,
    /// The whole content; none deletes.
    pub content: Option<Vec<u8>>,
    /// Permission bits; the file's own, else 0644, when none.
    pub mode: Option<u32>,
}

/// Does work that reads whole files and writes them again, anew whenever another changed one of them in between.
///
/// # Errors
/// Those of the work; `conflict` when others change the files all the time.
pub fn without_conflict<T>(mut work: impl FnMut() -> Result<T, ToolError>) -> Result<T, ToolError> {
    for _ in 1..ATTEMPTS {
        match work() {
            Err(error) if error.code == "conflict" => {}
            done => return done,
        }
    }
    work()
}

impl Guest {
    /// What is at a path, without following a symlink there.
    ///
    /// # Errors
    /// `not_found`.
    pub fn stat(&self, path: &str) -> Result<Entry, ToolError> {
        files::stat(self.machine(), WORKSPACE, path).map_err(|error| match error.code.as_str() {
            "not_found" => ToolError::new("not_found", format!("workspace path does not exist: {path}")),
            _ => error.into(),
        })
    }

    /// As [`Guest::stat`], with none for nothing there.
    ///
    /// # Errors
    /// Any but `not_found`.
    pub fn find(&self, path: &str) -> Result<Option<Entry>, ToolError> {
        match self.stat(path) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.code == "not_found" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The entries below a directory, and whether there are more than `limit`.
    ///
    /// # Errors
    /// Those of the guest.
    pub fn list(&self, path: &str, recursive: bool, limit: u32) -> Result<(Vec<Entry>, bool), ToolError> {
        Ok(files::list(self.machine(), WORKSPACE, path, recursive, limit)?)
    }

    /// A part of a regular file, and the size of the whole.
    ///
    /// # Errors
    /// Those of the guest.
    pub fn read(&self, path: &str, offset: u64, length: u64) -> Result<(Vec<u8>, u64), ToolError> {
        let (blob, size) = files::read(self.machine(), WORKSPACE, path, offset, length)?;
        Ok((bytes(&blob, length), size))
    }

    /// A whole text file that may be changed.
    ///
    /// # Errors
    /// `invalid_argument` for what is no regular UTF-8 file of at most [`MAX_TEXT`] bytes.
    pub fn text(&self, path: &str) -> Result<String, ToolError> {
        if self.stat(path)?.kind != Kind::File {
            return Err(invalid(format!("only regular files can be changed: {path}")));
        }
        let (bytes, size) = self.read(path, 0, MAX_TEXT)?;
        if size > MAX_TEXT {
            return Err(invalid(format!(
                "workspace file exceeds the maximum supported size of {MAX_TEXT} bytes: {path}"
            )));
        }
        String::from_utf8(bytes).map_err(|_| invalid(format!("workspace file is not UTF-8 text: {path}")))
    }

    /// Writes all of `writes` or none. What this call has read whole is replaced only while it is what was read.
    ///
    /// # Errors
    /// `conflict`, and those of the guest; then nothing is changed.
    pub fn apply(&self, writes: Vec<Write>) -> Result<(), ToolError> {
        let changes: Vec<files::Change> = writes
            .into_iter()
            .map(|write| files::Change {
                path: write.path,
                content: write.content.map(|content| blobs::from_bytes(&content)),
                mode: write.mode,
            })
            .collect();
        Ok(files::apply(self.machine(), WORKSPACE, changes)?)
    }

    /// A tar of what is at a path.
    ///
    /// # Errors
    /// Those of the guest.
    pub fn archive(&self, path: &str) -> Result<BlobReader, ToolError> {
        Ok(reader(files::archive(self.machine(), WORKSPACE, path)?))
    }
}
