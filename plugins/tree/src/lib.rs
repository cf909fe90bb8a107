//! A tree of files that is kept as a tar: its index, its files, and how two of them differ.
//!
//! ```text
//! host blob ── RangeReader ──> Tree::index ──> entries, read(path)
//!                 baseline Tree + current Tree ── compare ──> TreeDiff
//! ```
//!
//! The bytes come from a guest, so an archive is believed in nothing: names, kinds, sizes and counts
//! are checked and bounded, and file contents are read only when somebody asks for them. Modes of
//! files are indexed; owners and times are not. Deliberately absent: writing trees, and compression.

mod compare;
mod index;
mod path;
mod range_reader;

pub use compare::{DiffEntry, DiffLimits, DiffStatus, DiffSummary, Omitted, TreeDiff, compare};
pub use index::{Entry, EntryKind, Tree, TreeError, TreeLimits};
pub use path::{WORKSPACE, WorkspacePathError, below_workspace, workspace_path};
pub use range_reader::RangeReader;
