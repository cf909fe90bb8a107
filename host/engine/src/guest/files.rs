//! Files in a running guest.
//!
//! Paths are absolute guest paths. `root` confines a path and every symlink on the way to it: what leads out of it is
//! `denied`.

use std::{fs::File, sync::Arc};

use bytes::Bytes;

use super::unsupported;
use crate::{error::EngineError, machine::Machine};

/// What an entry of the file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a socket or a pipe.
    Other,
}

/// An entry of the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Absolute path in the guest.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Bytes of a file or of a symlink's target; 0 for the others.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Unix milliseconds of the last change of its content.
    pub mtime_ms: u64,
    /// Where a symlink points.
    pub link_target: Option<String>,
}

/// Bytes on their way into a guest.
#[derive(Debug, Clone)]
pub enum Content {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A part of a file, read while it is sent.
    File {
        /// The file; its cursor is not used.
        file: Arc<File>,
        /// Where the part begins, in bytes.
        offset: u64,
        /// How many bytes it has.
        length: u64,
    },
}

/// One change of a set.
#[derive(Debug, Clone)]
pub struct FileChange {
    /// Absolute path in the guest.
    pub path: String,
    /// New content; `None` deletes the file.
    pub content: Option<Content>,
    /// Permission bits; the file's own, else 0644, when absent.
    pub mode: Option<u32>,
}

impl Machine {
    /// Returns what is at `path`, without following a symlink at its end.
    ///
    /// # Errors
    /// `not_found`, `denied` when the path leaves `root`, `invalid_argument`, and what any operation may fail with.
    pub async fn file_stat(&self, root: &str, path: &str) -> Result<FileEntry, EngineError> {
        let _ = (root, path);
        Err(unsupported())
    }

    /// Returns what is in the directory at `path`, sorted by path, depth first; of a file, the file itself. Symlinks are
    /// not followed. At most `limit` entries come; the flag says that there are more.
    ///
    /// # Errors
    /// As [`Self::file_stat`].
    pub async fn file_list(
        &self,
        root: &str,
        path: &str,
        recursive: bool,
        limit: u32,
    ) -> Result<(Vec<FileEntry>, bool), EngineError> {
        let _ = (root, path, recursive, limit);
        Err(unsupported())
    }

    /// Returns at most `length` bytes of a regular file from `offset` on, and the size of the whole file.
    ///
    /// # Errors
    /// As [`Self::file_stat`]; `invalid_argument` when it is no regular file.
    pub async fn file_read(
        &self,
        root: &str,
        path: &str,
        offset: u64,
        length: u64,
    ) -> Result<(Vec<u8>, u64), EngineError> {
        let _ = (root, path, offset, length);
        Err(unsupported())
    }

    /// Makes all changes or, when one fails, none. Missing directories are made.
    ///
    /// # Errors
    /// As [`Self::file_stat`]; `disk_full`, and `outcome_unknown` when the connection was lost at the end.
    pub async fn file_apply(&self, root: &str, changes: Vec<FileChange>) -> Result<(), EngineError> {
        let _ = (root, changes);
        Err(unsupported())
    }

    /// Writes a tar of what is at `path` to `into`, where its cursor is, and returns the number of bytes. Names are relative
    /// to a directory at `path`; a file or symlink is one entry of its own name. Devices, sockets and pipes are left out.
    ///
    /// # Errors
    /// As [`Self::file_stat`]; `disk_full` when the host's disk is full. `into` then holds a part.
    pub async fn archive(&self, root: &str, path: &str, into: File) -> Result<u64, EngineError> {
        let _ = (root, path, into);
        Err(unsupported())
    }

    /// Unpacks a tar, read from the start of `tar`, over the directory `path`, which is made if missing: adds and replaces,
    /// never deletes. It is staged, so a bad archive changes nothing. Returns entries and bytes of content.
    ///
    /// # Errors
    /// `invalid_argument` for an archive that cannot be read, or that has absolute names, `..`, hard links or devices, or
    /// that puts a file where a directory is; `denied` when an entry lies behind a symlink; else as [`Self::file_apply`].
    pub async fn extract(&self, root: &str, path: &str, tar: File) -> Result<(u64, u64), EngineError> {
        let _ = (root, path, tar);
        Err(unsupported())
    }
}
