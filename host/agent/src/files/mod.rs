//! Files, for the host. Everything here blocks, and is called by a worker's thread.
//!
//! ```text
//! stat, list, read ─┐
//! apply ────────────┼─► confine: path below a root ─► directory descriptor and name
//! archive, extract ─┘
//! ```
//!
//! What is not complete yet has a name of its own, which is announced: `staging`.
//!
//! Programs of the guest change the same files at the same time. Every step therefore goes from an open directory to a
//! name in it that is not followed when it is a symlink, so that what was checked is what is used.

mod apply;
mod archive;
mod confine;
mod extract;
mod look;
pub mod staging;
mod tar;
mod tree;

pub use apply::apply;
pub use archive::archive;
pub use extract::extract;
pub use look::{list, read, stat};

use std::ffi::CStr;

use pyro_agent_protocol::codes;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::peer::Fail;

/// A directory, to be a starting point.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A directory, to be read.
const READ_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A file, to be read. A pipe does not hold up the open.
const READ_FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A file that is not there yet.
const NEW_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Permission bits, with set-id and sticky.
const MODE_BITS: u32 = 0o7777;
/// Deeper trees are refused, so that walking one needs a bounded number of descriptors and stack.
const DEPTH_MAX: usize = 1024;

/// Returns what to answer when the system refused `what` with `path`.
fn refused(what: &str, path: &str, errno: Errno) -> Fail {
    let (code, reason) = match errno {
        Errno::NOENT => (codes::NOT_FOUND, "it does not exist".to_owned()),
        Errno::NOTDIR => (codes::NOT_FOUND, "a part of it is not a directory".to_owned()),
        Errno::NAMETOOLONG => (codes::INVALID_ARGUMENT, "a name is too long".to_owned()),
        Errno::NOSPC | Errno::DQUOT => (codes::DISK_FULL, "the guest's file system is full".to_owned()),
        Errno::ROFS => (codes::IO, "the file system is read-only".to_owned()),
        other => (codes::IO, format!("errno {}", other.raw_os_error())),
    };
    Fail::new(code, format!("cannot {what} `{path}`: {reason}"))
}

fn lossy(name: &CStr) -> String {
    String::from_utf8_lossy(name.to_bytes()).into_owned()
}
