//! How one tree became another.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};

use pyro_unified_diff::{DiffBudget, file_diff, is_text};

use crate::index::{Entry, EntryKind, Tree, TreeError};

/// Bytes compared at a time when two files are too large to be held.
const COMPARE_BYTES: u64 = 256 * 1024;

/// What a comparison may produce.
#[derive(Debug, Clone)]
pub struct DiffLimits {
    /// Bytes of all text patches together; what is over is left out and said so.
    pub patch_bytes: usize,
    /// Entries that are listed; more are counted in the summary only.
    pub entries: usize,
    /// Bytes of a file that is still shown as text.
    pub file_bytes: u64,
}

impl Default for DiffLimits {
    /// A result that fits in one tool answer, with files up to what a patch may change.
    fn default() -> Self {
        DiffLimits { patch_bytes: 256 * 1024, entries: 2_000, file_bytes: 1 << 20 }
    }
}

/// The result of [`compare`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeDiff {
    /// What is different, sorted by path.
    pub entries: Vec<DiffEntry>,
    /// Counts of everything that is different, listed or not.
    pub summary: DiffSummary,
    /// True when entries or text patches were left out because of the limits.
    pub truncated: bool,
}

impl TreeDiff {
    /// All text patches in the order of the paths: one patch that leads from the first tree to the
    /// second, as far as text goes.
    pub fn patch(&self) -> String {
        self.entries.iter().filter_map(|entry| entry.text_patch.as_deref()).collect()
    }
}

/// One path that is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffEntry {
    /// Relative to the tree.
    pub path: String,
    /// What happened to it.
    pub status: DiffStatus,
    /// `file`, `directory` or `symlink`; of a deleted path, what it was.
    pub artifact_type: &'static str,
    /// The unified diff, when there is one.
    pub text_patch: Option<String>,
    /// Why a file has none.
    pub omitted: Option<Omitted>,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiffStatus {
    /// It is new.
    Added,
    /// Its content or link target is another.
    Modified,
    /// It is gone.
    Deleted,
    /// It is another kind of thing.
    TypeChanged,
}

impl DiffStatus {
    /// Its word in results.
    pub fn as_str(self) -> &'static str {
        match self {
            DiffStatus::Added => "added",
            DiffStatus::Modified => "modified",
            DiffStatus::Deleted => "deleted",
            DiffStatus::TypeChanged => "type_changed",
        }
    }
}

/// Why a changed file has no text patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Omitted {
    /// One side is not UTF-8 text.
    Binary,
    /// Its name is not UTF-8 text.
    Name,
    /// One side is larger than [`DiffLimits::file_bytes`].
    TooLarge,
    /// [`DiffLimits::patch_bytes`] is used up.
    Limit,
}

impl Omitted {
    /// Its word in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Omitted::Binary => "binary",
            Omitted::Name => "name",
            Omitted::TooLarge => "too_large",
            Omitted::Limit => "limit",
        }
    }
}

/// Counts of what is different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "named for the status they count")]
pub struct DiffSummary {
    pub total: usize,
    pub added: usize,
    pub modified: usize,
    pub deleted: usize,
    pub type_changed: usize,
    /// With a text patch.
    pub text_patched: usize,
    /// Without one.
    pub non_text: usize,
}

/// Compares two trees by the bytes of their files and the targets of their symlinks.
///
/// A directory counts only while it is empty, as it does in git's view only when it is not; modes
/// do not count. Files are read only when their sizes do not settle the matter, or to show text.
///
/// # Errors
/// A failed read of an archive.
pub fn compare<B: Read + Seek, A: Read + Seek>(
    before: &Tree<B>,
    after: &Tree<A>,
    limits: &DiffLimits,
) -> Result<TreeDiff, TreeError> {
    let old = visible(before.entries());
    let new = visible(after.entries());
    let paths: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
    let mut comparison = Comparison {
        limits,
        budget: DiffBudget::default(),
        patch_bytes: 0,
        diff: TreeDiff { entries: Vec::new(), summary: DiffSummary::default(), truncated: false },
    };
    for path in paths {
        comparison.path(path, old.get(path).copied(), new.get(path).copied(), before, after)?;
    }
    Ok(comparison.diff)
}

/// The entries that count, without directories that have members.
fn visible(entries: &BTreeMap<String, Entry>) -> BTreeMap<&str, &EntryKind> {
    let mut occupied = BTreeSet::new();
    for path in entries.keys() {
        let mut path = path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            if !occupied.insert(parent) {
                break;
            }
            path = parent;
        }
    }
    entries
        .iter()
        .filter(|(path, entry)| entry.kind != EntryKind::Directory || !occupied.contains(path.as_str()))
        .map(|(path, entry)| (path.as_str(), &entry.kind))
        .collect()
}

struct Comparison<'l> {
    limits: &'l DiffLimits,
    budget: DiffBudget,
    patch_bytes: usize,
    diff: TreeDiff,
}

impl Comparison<'_> {
    fn path<B: Read + Seek, A: Read + Seek>(
        &mut self,
        path: &str,
        old: Option<&EntryKind>,
        new: Option<&EntryKind>,
        before: &Tree<B>,
        after: &Tree<A>,
    ) -> Result<(), TreeError> {
        let status = match (old, new) {
            (None, None) => return Ok(()),
            (None, Some(_)) => DiffStatus::Added,
            (Some(_), None) => DiffStatus::Deleted,
            (Some(old), Some(new)) if type_name(old) != type_name(new) => DiffStatus::TypeChanged,
            (Some(EntryKind::Directory), _) => return Ok(()),
            (Some(EntryKind::File { size: a, .. }), Some(EntryKind::File { size: b, .. })) => {
                if a == b && same_bytes(path, *a, before, after)? {
                    return Ok(());
                }
                DiffStatus::Modified
            }
            (Some(old), Some(new)) if old == new => return Ok(()),
            (Some(_), Some(_)) => DiffStatus::Modified,
        };
        let summary = &mut self.diff.summary;
        summary.total += 1;
        match status {
            DiffStatus::Added => summary.added += 1,
            DiffStatus::Modified => summary.modified += 1,
            DiffStatus::Deleted => summary.deleted += 1,
            DiffStatus::TypeChanged => summary.type_changed += 1,
        }
        if self.diff.entries.len() >= self.limits.entries {
            self.diff.truncated = true;
            self.diff.summary.non_text += 1;
            return Ok(());
        }

        let text = match (status, old, new) {
            (DiffStatus::TypeChanged, ..) => None,
            (_, Some(EntryKind::File { size, .. }), None) => {
                Some(self.text(path, Some((*size, before)), None::<(u64, &Tree<A>)>)?)
            }
            (_, None, Some(EntryKind::File { size, .. })) => {
                Some(self.text(path, None::<(u64, &Tree<B>)>, Some((*size, after)))?)
            }
            (_, Some(EntryKind::File { size: a, .. }), Some(EntryKind::File { size: b, .. })) => {
                Some(self.text(path, Some((*a, before)), Some((*b, after)))?)
            }
            _ => None,
        };
        let (text_patch, omitted) = match text {
            Some(Ok(patch)) => (patch, None),
            Some(Err(omitted)) => (None, Some(omitted)),
            None => (None, None),
        };
        self.diff.truncated |= omitted == Some(Omitted::Limit);
        let summary = &mut self.diff.summary;
        if text_patch.is_some() {
            summary.text_patched += 1;
        } else {
            summary.non_text += 1;
        }
        let artifact_type = new.or(old).map_or("file", type_name);
        self.diff.entries.push(DiffEntry { path: path.to_owned(), status, artifact_type, text_patch, omitted });
        Ok(())
    }

    /// The text patch of a file; none for an empty one that came or went.
    fn text<B: Read + Seek, A: Read + Seek>(
        &mut self,
        path: &str,
        before: Option<(u64, &Tree<B>)>,
        after: Option<(u64, &Tree<A>)>,
    ) -> Result<Result<Option<String>, Omitted>, TreeError> {
        let limit = self.limits.file_bytes;
        let sizes = [before.as_ref().map(|side| side.0), after.as_ref().map(|side| side.0)];
        if sizes.into_iter().flatten().any(|size| size > limit) {
            return Ok(Err(Omitted::TooLarge));
        }
        if self.patch_bytes >= self.limits.patch_bytes {
            return Ok(Err(Omitted::Limit));
        }
        let sides = [before.map(|(_, tree)| tree.entries()), after.map(|(_, tree)| tree.entries())];
        if sides.into_iter().flatten().filter_map(|entries| entries.get(path)).any(|entry| !entry.is_exact) {
            return Ok(Err(Omitted::Name));
        }
        let old = before.map(|(size, tree)| tree.read(path, 0, size)).transpose()?;
        let new = after.map(|(size, tree)| tree.read(path, 0, size)).transpose()?;
        if [&old, &new].into_iter().flatten().any(|text| !is_text(text)) {
            return Ok(Err(Omitted::Binary));
        }
        let Some(patch) = file_diff(path, old.as_deref(), new.as_deref(), &mut self.budget) else {
            return Ok(Ok(None));
        };
        if self.patch_bytes + patch.len() > self.limits.patch_bytes {
            return Ok(Err(Omitted::Limit));
        }
        self.patch_bytes += patch.len();
        Ok(String::from_utf8(patch).map(Some).map_err(|_| Omitted::Binary))
    }
}

fn same_bytes<B: Read + Seek, A: Read + Seek>(
    path: &str,
    size: u64,
    before: &Tree<B>,
    after: &Tree<A>,
) -> Result<bool, TreeError> {
    let mut at = 0;
    while at < size {
        if before.read(path, at, COMPARE_BYTES)? != after.read(path, at, COMPARE_BYTES)? {
            return Ok(false);
        }
        at += COMPARE_BYTES;
    }
    Ok(true)
}

fn type_name(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory => "directory",
        EntryKind::File { .. } => "file",
        EntryKind::Symlink { .. } => "symlink",
    }
}
