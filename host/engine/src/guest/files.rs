//! Files in a running guest.
//!
//! Paths are absolute guest paths. `root` confines a path and every symlink on the way to it: what leads out of it is
//! `denied`.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    sync::Arc,
};

use bytes::Bytes;
pub use pyro_agent_protocol::{ContentSum, FileEntry, FileKind};
use pyro_agent_protocol::{
    FileApplyRequest, FileChangeHead, FileListRequest, FilePath, FileReadRequest, GuestFrame, HostFrame, Op,
};

use super::call::{Call, TRANSFER_SIZE};
use crate::{
    error::{EngineError, ErrorCode},
    machine::Machine,
};

/// The largest archive taken from a guest: more than any guest's disk has. A sparse file can claim any size, and its zeroes
/// would fill the host's disk.
const ARCHIVE_LIMIT: u64 = 16 * 1024 * 1024 * 1024;
/// Bytes of an archive collected before they are written to the host's disk.
const WRITE_SIZE: usize = 1024 * 1024;

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
    /// What the file must have now; anything when absent.
    pub replaces: Option<ContentSum>,
}

impl Machine {
    /// Returns what is at `path`, without following a symlink at its end.
    ///
    /// # Errors
    /// `not_found`, `denied` when the path leaves `root`, `invalid_argument`, and what any operation may fail with.
    pub async fn file_stat(&self, root: &str, path: &str) -> Result<FileEntry, EngineError> {
        let mut call = Call::look(self, Op::FileStat(at(root, path))).await?;
        match call.next().await? {
            GuestFrame::Entries(mut entries) if entries.len() == 1 => {
                entries.pop().ok_or_else(|| call.broken("no entry"))
            }
            other => Err(call.unexpected(&other)),
        }
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
        let FilePath { root, path } = at(root, path);
        let request = FileListRequest { root, path, recursive, limit };
        let mut call = Call::look(self, Op::FileList(request)).await?;
        let mut all = Vec::new();
        loop {
            match call.next().await? {
                GuestFrame::Entries(entries) => {
                    all.extend(entries);
                    if all.len() > usize::try_from(limit).unwrap_or(usize::MAX) {
                        return Err(call.broken("more entries than asked for"));
                    }
                }
                GuestFrame::Done(done) => return Ok((all, done.truncated)),
                other => return Err(call.unexpected(&other)),
            }
        }
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
        let FilePath { root, path } = at(root, path);
        let request = FileReadRequest { root, path, offset, length };
        let mut call = Call::look(self, Op::FileRead(request)).await?;
        let mut all = Vec::new();
        loop {
            match call.next().await? {
                GuestFrame::Data(bytes) => {
                    all.extend_from_slice(&bytes);
                    if all.len() as u64 > length {
                        return Err(call.broken("more bytes than asked for"));
                    }
                }
                GuestFrame::Done(done) => return Ok((all, done.bytes)),
                other => return Err(call.unexpected(&other)),
            }
        }
    }

    /// Makes all changes or, when one fails, none. Missing directories are made.
    ///
    /// # Errors
    /// As [`Self::file_stat`]; `conflict` when a file is not what a change replaces, or came or went meanwhile;
    /// `disk_full`, and `outcome_unknown` when the connection was lost at the end.
    pub async fn file_apply(&self, root: &str, changes: Vec<FileChange>) -> Result<(), EngineError> {
        let request = FileApplyRequest { root: root.to_owned() };
        let mut call = Call::look(self, Op::FileApply(request)).await?;
        for change in changes {
            let content_bytes = change.content.as_ref().map(Content::length);
            let FileChange { path, mode, replaces, .. } = change;
            let head = FileChangeHead { path, content_bytes, mode, replaces };
            if !call.send(&HostFrame::Change(head)).await? {
                break;
            }
            let taken = match change.content {
                None => true,
                Some(Content::Bytes(bytes)) => call.send_data(&bytes).await,
                Some(Content::File { file, offset, length }) => {
                    let sent = send_file(&call, file, offset, Some(length)).await?;
                    if sent.is_some_and(|sent| sent < length) {
                        let message = format!("a file that was to be sent has {length} bytes no more");
                        return Err(EngineError::new(ErrorCode::Io, message));
                    }
                    sent.is_some()
                }
            };
            if !taken {
                break;
            }
        }
        call.send_eof().await?;
        call.done().await.map(drop)
    }

    /// Writes a tar of what is at `path` to `into`, where its cursor is, and returns the number of bytes. Names are relative
    /// to a directory at `path`; a file or symlink is one entry of its own name. Devices, sockets and pipes are left out.
    ///
    /// # Errors
    /// As [`Self::file_stat`]; `disk_full` when the host's disk is full, `limit_exceeded` over 16 GiB. `into` then holds a part.
    pub async fn archive(&self, root: &str, path: &str, into: File) -> Result<u64, EngineError> {
        let mut call = Call::look(self, Op::FileArchive(at(root, path))).await?;
        let into = Arc::new(into);
        let (mut held, mut total) = (Vec::with_capacity(WRITE_SIZE), 0);
        loop {
            let frame = call.next().await?;
            let ended = match &frame {
                GuestFrame::Data(bytes) => {
                    held.extend_from_slice(bytes);
                    false
                }
                GuestFrame::Done(_) => true,
                other => return Err(call.unexpected(other)),
            };
            if held.len() >= WRITE_SIZE || ended {
                total += held.len() as u64;
                if total > ARCHIVE_LIMIT {
                    let message = format!("the archive of `{path}` has more than {} GiB", ARCHIVE_LIMIT >> 30);
                    return Err(EngineError::new(ErrorCode::LimitExceeded, message)
                        .with_hint("look for a sparse file that claims to be huge"));
                }
                let file = Arc::clone(&into);
                let written = blocking(move || (&*file).write_all(&held).map(|()| held)).await;
                held = written.map_err(|e| EngineError::io("write an archive of the guest", &e))?;
                held.clear();
            }
            if ended {
                return Ok(total);
            }
        }
    }

    /// Unpacks a tar, read from the start of `tar`, over the directory `path`, which is made if missing: adds and replaces,
    /// never deletes. It is staged, so a bad archive changes nothing. Returns entries and bytes of content.
    ///
    /// # Errors
    /// `invalid_argument` for an archive that cannot be read, or that has absolute names, `..`, hard links or devices, or
    /// that puts a file where a directory is; `denied` when an entry lies behind a symlink; else as [`Self::file_apply`].
    pub async fn extract(&self, root: &str, path: &str, tar: File) -> Result<(u64, u64), EngineError> {
        let mut call = Call::look(self, Op::FileExtract(at(root, path))).await?;
        send_file(&call, Arc::new(tar), 0, None).await?;
        call.send_eof().await?;
        let done = call.done().await?;
        Ok((done.entries, done.bytes))
    }
}

impl Content {
    /// Returns how many bytes it has.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }
}

fn at(root: &str, path: &str) -> FilePath {
    FilePath { root: root.to_owned(), path: path.to_owned() }
}

/// Sends a part of a file, to its end without a length. Returns how many bytes went out, or `None` when the guest takes no
/// more.
async fn send_file(
    call: &Call,
    file: Arc<File>,
    mut offset: u64,
    length: Option<u64>,
) -> Result<Option<u64>, EngineError> {
    let mut sent = 0;
    let mut buffer = Vec::new();
    loop {
        let left = length.map_or(u64::MAX, |length| length.saturating_sub(sent));
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(TRANSFER_SIZE);
        if want == 0 {
            return Ok(Some(sent));
        }
        let from = Arc::clone(&file);
        let read = blocking(move || {
            buffer.resize(want, 0);
            let count = loop {
                match from.read_at(&mut buffer, offset) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            buffer.truncate(count);
            Ok(buffer)
        })
        .await;
        buffer = read.map_err(|e| EngineError::io("read what is sent to the guest", &e))?;
        if buffer.is_empty() {
            return Ok(Some(sent));
        }
        if !call.send_data(&buffer).await {
            return Ok(None);
        }
        sent += buffer.len() as u64;
        offset += buffer.len() as u64;
    }
}

/// Runs what blocks on a disk away from the runtime's own threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::other("the runtime is ending")),
    }
}
