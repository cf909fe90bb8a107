//! What the workspace tool groups share: a started workspace with its machine and files, and the
//! shapes of results that several of them return.
//!
//! A thin layer over the host interfaces: it gives failures the words of the tools and turns host
//! blobs into bytes and readers. Deliberately absent: anything that decides what a tool does.

mod arguments;
mod artifact;
mod blob;
mod command;
mod files;
mod signatures;
mod workspace;

pub use arguments::{OneWorkspace, check_kept_command, defaults, name, workspace_root};
pub use artifact::Artifact;
pub use blob::{BlobReader, bytes, reader};
pub use command::{Ran, ShellLine, check_command, directory};
pub use files::{Entry, Kind, MAX_TEXT, Write, without_conflict};
pub use signatures::signatures;
pub use workspace::{Guest, WORKSPACE_RETURNING, absent, invalid, open, path};
