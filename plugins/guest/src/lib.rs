//! What the workspace tool groups share: a started workspace with its machine and files, and the
//! shapes of results that several of them return.
//!
//! A thin layer over the host interfaces: it gives failures the words of the tools and turns host
//! blobs into bytes and readers. Deliberately absent: anything that decides what a tool does.

mod blob;
mod files;
mod signatures;
mod workspace;

pub use blob::{BlobReader, bytes, reader};
pub use files::{Entry, Kind, MAX_TEXT, Write};
pub use signatures::signatures;
pub use workspace::{Guest, invalid, open, path};
