//! A patch as data.

/// A parsed patch: the files it changes, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// One element per file; no path occurs twice.
    pub files: Vec<FilePatch>,
}

/// What a patch does to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePatch {
    /// The path, relative to the tree; the new one of a rename or a copy.
    pub path: String,
    /// What happens to it.
    pub intent: Intent,
    /// Permission bits that the patch sets: 0o644 or 0o755.
    pub mode: Option<u32>,
    /// The changes, in the order of the file; empty for a change of mode or name only.
    pub hunks: Vec<Hunk>,
    /// True when the patch's own header lines ended in CR LF, so that its carriage returns may be
    /// the transport's and not the file's.
    pub crlf: bool,
    /// Where it begins in the patch text, counted from one.
    pub line: usize,
}

/// What happens to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// It must not exist yet.
    Add,
    /// It must exist.
    Modify,
    /// It must exist, and the hunks take all of it away.
    Delete,
    /// It moves here from another path.
    Rename {
        /// The old path.
        from: String,
    },
    /// Another file's content is its start.
    Copy {
        /// The other file.
        from: String,
    },
}

/// One `@@` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hunk {
    /// First line in the old file, counted from one; of an empty range, the line before it.
    pub old_start: usize,
    /// Lines of the old file.
    pub old_count: usize,
    /// First line in the new file, as `old_start`.
    pub new_start: usize,
    /// Lines of the new file.
    pub new_count: usize,
    /// The body.
    pub lines: Vec<Line>,
    /// Where its header stands in the patch text, counted from one.
    pub line: usize,
}

/// One line of a hunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Which side it belongs to.
    pub kind: LineKind,
    /// The bytes with the final `\n`, which is absent before a no-newline marker.
    pub text: Vec<u8>,
}

/// Which side a line of a hunk belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineKind {
    /// Both.
    Context,
    /// The old file only.
    Removed,
    /// The new file only.
    Added,
}
