//! Unified diffs that go round: what [`file_diff`] writes, `git apply` and `patch` accept, and what
//! they write, [`Patch::parse`] and [`plan`] accept.
//!
//! Everything works on bytes, and a line ends at `\n` and nowhere else: a carriage return, a form
//! feed or a Unicode line separator is part of the line. A missing final newline is kept by the
//! usual `\ No newline at end of file` marker.
//!
//! ```text
//! old, new ── file_diff ──> text ── Patch::parse ──> Patch ── plan(read) ──> [Change] or [PlanError]
//! ```
//!
//! A set of changes is planned as a whole before anything is written, so the caller applies all of
//! it or nothing. Deliberately absent: binary patches, symlinks and submodules (refused with a
//! clear error), combined (`@@@`) diffs, and any access to files: the caller reads and writes.

mod apply;
mod edits;
mod generate;
mod lines;
mod parse;
mod patch;
mod path;
mod plan;

pub use apply::{ApplyOptions, HunkMismatch, HunkPlace, LINE_COMPARE_BUDGET, MAX_FUZZ, Mismatch};
pub use edits::DiffBudget;
pub use generate::{CONTEXT_LINES, file_diff};
pub use lines::{is_text, split_lines};
pub use parse::{ParseError, ParseErrorKind};
pub use patch::{FilePatch, Hunk, Intent, Line, LineKind, Patch};
pub use path::PathError;
pub use plan::{Change, Current, PlanError, PlanErrorKind, Status, plan};
