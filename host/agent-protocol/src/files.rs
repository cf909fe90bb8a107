//! What is said about files. Paths are absolute guest paths; `root` confines a path and every symlink on the way to it.

use serde::{Deserialize, Serialize};

/// A path below a root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePath {
    /// What the path may not leave.
    pub root: String,
    /// The path, absolute, `root` or below it.
    pub path: String,
}

/// The arguments of [`Op::FileList`](crate::Op::FileList).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileListRequest {
    /// What the path may not leave.
    pub root: String,
    /// A directory, or any other entry, which then is the list.
    pub path: String,
    /// Whether to descend into directories.
    #[serde(default)]
    pub recursive: bool,
    /// The most entries.
    pub limit: u32,
}

/// The arguments of [`Op::FileRead`](crate::Op::FileRead).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReadRequest {
    /// What the path may not leave.
    pub root: String,
    /// A regular file, or a symlink to one.
    pub path: String,
    /// The first byte.
    #[serde(default)]
    pub offset: u64,
    /// The most bytes.
    pub length: u64,
}

/// The arguments of [`Op::FileApply`](crate::Op::FileApply); the changes follow in frames of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileApplyRequest {
    /// What no path may leave.
    pub root: String,
}

/// One change of a set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileChangeHead {
    /// The file.
    pub path: String,
    /// How many bytes of new content follow; absent, the file is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_bytes: Option<u64>,
    /// Permission bits; the file's own, else 0644, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// What the file must have now; absent, anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<ContentSum>,
}

/// What tells one content of a file from another. It notices changes by others, not forgery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentSum {
    /// Its size.
    pub bytes: u64,
    /// The 64-bit FNV-1a hash, <http://www.isthe.com/chongo/tech/comp/fnv/>.
    pub hash: u64,
}

impl Default for ContentSum {
    fn default() -> Self {
        Self { bytes: 0, hash: 0xcbf2_9ce4_8422_2325 }
    }
}

impl ContentSum {
    /// Takes in the next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash = bytes.iter().fold(self.hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    }
}

/// What an entry of the file system is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a socket or a pipe.
    #[default]
    Other,
}

/// An entry of the file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileEntry {
    /// Absolute path in the guest. Bytes that are not UTF-8 are shown as replacement characters.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}
