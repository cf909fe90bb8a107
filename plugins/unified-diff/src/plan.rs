//! Planning a whole patch before anything is written.

use thiserror::Error;

use crate::apply::{ApplyOptions, Budget, HunkMismatch, HunkPlace, apply};
use crate::patch::{FilePatch, Intent, Patch};

/// What the tree holds at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Current {
    /// Nothing.
    Missing,
    /// A regular file and its content.
    File(Vec<u8>),
    /// Something a patch cannot change; the text names it, as `a symlink`.
    Other(String),
}

/// One write or deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Relative to the tree.
    pub path: String,
    /// What it is to an observer.
    pub status: Status,
    /// The whole new content; `None` deletes the file.
    pub content: Option<Vec<u8>>,
    /// Permission bits the patch asks for.
    pub mode: Option<u32>,
    /// Where each hunk was put; empty for the old path of a rename.
    pub hunks: Vec<HunkPlace>,
}

/// What a change is to an observer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// A file that was not there.
    Added,
    /// A file with other content or mode.
    Modified,
    /// A file that is gone.
    Deleted,
}

impl Status {
    /// Its word in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Added => "added",
            Status::Modified => "modified",
            Status::Deleted => "deleted",
        }
    }
}

/// Why one file of a patch cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path}: {kind}")]
pub struct PlanError {
    /// Relative to the tree.
    pub path: String,
    /// The reason.
    pub kind: PlanErrorKind,
}

/// The reason.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PlanErrorKind {
    #[error("cannot add an existing path")]
    AddExisting,
    #[error("cannot modify a missing path")]
    ModifyMissing,
    #[error("cannot delete a missing path")]
    DeleteMissing,
    #[error("only regular files can be patched, this is {0}")]
    NotAFile(String),
    #[error("the hunks leave {0} bytes of a file that is to be deleted")]
    DeleteLeaves(usize),
    #[error(transparent)]
    Hunk(#[from] HunkMismatch),
    #[error("{0}")]
    Read(String),
}

/// Works out what `patch` changes, sorted by path, without changing anything.
///
/// `read` returns what a path of the tree holds; its error text ends up in [`PlanErrorKind::Read`].
///
/// # Errors
/// Every file that cannot be changed, in the patch's order; then none may be.
pub fn plan(
    patch: &Patch,
    options: &ApplyOptions,
    mut read: impl FnMut(&str) -> Result<Current, String>,
) -> Result<Vec<Change>, Vec<PlanError>> {
    let budget = Budget::new();
    let mut changes = Vec::new();
    let mut errors = Vec::new();
    for file in &patch.files {
        match plan_file(file, options, &budget, &mut read) {
            Ok(planned) => changes.extend(planned),
            Err(kind) => errors.push(PlanError { path: file.path.clone(), kind }),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

fn plan_file(
    file: &FilePatch,
    options: &ApplyOptions,
    budget: &Budget,
    read: &mut impl FnMut(&str) -> Result<Current, String>,
) -> Result<Vec<Change>, PlanErrorKind> {
    let mut existing = |path: &str, missing: PlanErrorKind| match read(path).map_err(PlanErrorKind::Read)? {
        Current::File(text) => Ok(text),
        Current::Missing => Err(missing),
        Current::Other(what) => Err(PlanErrorKind::NotAFile(what)),
    };
    let source = match &file.intent {
        Intent::Add => Vec::new(),
        Intent::Modify => existing(&file.path, PlanErrorKind::ModifyMissing)?,
        Intent::Delete => existing(&file.path, PlanErrorKind::DeleteMissing)?,
        Intent::Rename { from } | Intent::Copy { from } => existing(from, PlanErrorKind::ModifyMissing)?,
    };
    let is_new = matches!(file.intent, Intent::Add | Intent::Rename { .. } | Intent::Copy { .. });
    if is_new && read(&file.path).map_err(PlanErrorKind::Read)? != Current::Missing {
        return Err(PlanErrorKind::AddExisting);
    }

    let (text, hunks) = apply(&source, &file.hunks, file.crlf, options, budget)?;
    let status = match file.intent {
        Intent::Modify => Status::Modified,
        Intent::Delete => Status::Deleted,
        _ => Status::Added,
    };
    if status == Status::Deleted && !text.is_empty() {
        return Err(PlanErrorKind::DeleteLeaves(text.len()));
    }
    let content = (status != Status::Deleted).then_some(text);
    let mut changes = vec![Change { path: file.path.clone(), status, content, mode: file.mode, hunks }];
    if let Intent::Rename { from } = &file.intent {
        changes.push(Change {
            path: from.clone(),
            status: Status::Deleted,
            content: None,
            mode: None,
            hunks: Vec::new(),
        });
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::apply::Mismatch;

    fn run(tree: &[(&str, &str)], patch: &str, fuzz: u8) -> Result<Vec<Change>, Vec<PlanError>> {
        let tree: BTreeMap<&str, &str> = tree.iter().copied().collect();
        let patch = Patch::parse(patch.as_bytes(), None).expect("a readable patch");
        plan(&patch, &ApplyOptions { fuzz, ..ApplyOptions::default() }, |path| {
            Ok(tree.get(path).map_or(Current::Missing, |text| match *text {
                "@link" => Current::Other("a symlink".to_owned()),
                text => Current::File(text.as_bytes().to_vec()),
            }))
        })
    }

    fn text(changes: &[Change], path: &str) -> String {
        let change = changes.iter().find(|change| change.path == path).expect("the path");
        String::from_utf8(change.content.clone().expect("content")).expect("utf-8")
    }

    const NUMBERS: &str = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n";
    const AT_FIVE: &str = "--- a/f\n+++ b/f\n@@ -4,3 +4,3 @@\n 4\n-5\n+five\n 6\n";

    #[test]
    fn a_hunk_is_found_away_from_its_place_and_says_so() {
        let shifted = format!("a\nb\n{NUMBERS}");
        let changes = run(&[("f", &shifted)], AT_FIVE, 0).unwrap();
        assert_eq!(text(&changes, "f"), shifted.replace("5\n", "five\n"));
        assert_eq!(changes[0].hunks, [HunkPlace { offset: 2, fuzz: 0 }]);
    }

    #[test]
    fn the_nearest_place_wins() {
        let block = "x\ny\nz\n";
        let file = format!("{block}{block}{block}");
        let changes = run(&[("f", &file)], "--- a/f\n+++ b/f\n@@ -5,2 +5,2 @@\n y\n-z\n+Z\n", 0).unwrap();
        assert_eq!(text(&changes, "f"), "x\ny\nz\nx\ny\nZ\nx\ny\nz\n");
    }

    #[test]
    fn fuzz_ignores_outer_context_and_keeps_the_file_s() {
        let file = NUMBERS.replace("4\n", "four\n");
        assert!(run(&[("f", &file)], AT_FIVE, 0).is_err());
        let changes = run(&[("f", &file)], AT_FIVE, 1).unwrap();
        assert_eq!(text(&changes, "f"), file.replace("5\n", "five\n"));
        assert_eq!(changes[0].hunks[0].fuzz, 1);
    }

    #[test]
    fn a_mismatch_names_the_hunk_and_both_lines() {
        let file = NUMBERS.replace("5\n", "cinq\n");
        let errors = run(&[("f", &file)], AT_FIVE, 0).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "f: hunk 1 (patch line 3) does not match: line 5 should be `5`, found `cinq`"
        );
        let crlf = NUMBERS.replace('\n', "\r\n");
        let errors = run(&[("f", &crlf)], AT_FIVE, 0).unwrap_err();
        let PlanErrorKind::Hunk(HunkMismatch { mismatch: Mismatch::LineEnd { found, .. }, .. }) = &errors[0].kind
        else {
            panic!("{errors:?}")
        };
        assert_eq!(*found, "CR LF");
    }

    #[test]
    fn all_errors_are_told_and_nothing_is_planned() {
        let patch = "--- /dev/null\n+++ b/there\n@@ -0,0 +1 @@\n+a\n\
                     --- a/gone\n+++ b/gone\n@@ -1 +1 @@\n-a\n+b\n\
                     --- a/link\n+++ b/link\n@@ -1 +1 @@\n-a\n+b\n\
                     --- a/rest\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n\
                     --- a/ok\n+++ b/ok\n@@ -1 +1 @@\n-a\n+b\n";
        let tree = [("there", ""), ("link", "@link"), ("rest", "a\nb\n"), ("ok", "a\n")];
        let kinds: Vec<String> = run(&tree, patch, 0).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            kinds,
            [
                "there: cannot add an existing path",
                "gone: cannot modify a missing path",
                "link: only regular files can be patched, this is a symlink",
                "rest: the hunks leave 2 bytes of a file that is to be deleted",
            ]
        );
    }

    #[test]
    fn a_rename_is_an_addition_and_a_deletion() {
        let patch = "diff --git a/b b/a\nsimilarity index 50%\nrename from b\nrename to a\n\
                     --- a/b\n+++ b/a\n@@ -1 +1 @@\n-x\n+y\n";
        let changes = run(&[("b", "x\n")], patch, 0).unwrap();
        assert_eq!(text(&changes, "a"), "y\n");
        assert_eq!((changes[1].path.as_str(), changes[1].status), ("b", Status::Deleted));
    }

    #[test]
    fn a_patch_that_went_through_cr_lf_still_fits_an_lf_file() {
        let patch = AT_FIVE.replace('\n', "\r\n");
        let changes = run(&[("f", NUMBERS)], &patch, 0).unwrap();
        assert_eq!(text(&changes, "f"), NUMBERS.replace("5\n", "five\n"));
        let crlf = NUMBERS.replace('\n', "\r\n");
        let changes = run(&[("f", &crlf)], &patch, 0).unwrap();
        assert_eq!(text(&changes, "f"), crlf.replace("5\r\n", "five\r\n"));
    }

    #[test]
    fn hunks_may_not_overlap_nor_end_the_file_in_its_middle() {
        let patch = "--- a/f\n+++ b/f\n@@ -2 +2 @@\n-2\n+two\n@@ -1 +1 @@\n-1\n+one\n";
        assert!(run(&[("f", "1\n2\n3\n")], patch, 0).is_err());
        let patch = "--- a/f\n+++ b/f\n@@ -2 +2 @@\n-2\n+two\n\\ No newline at end of file\n";
        assert!(run(&[("f", "1\n2\n3\n")], patch, 0).is_err());
        assert_eq!(text(&run(&[("f", "1\n2\n")], patch, 0).unwrap(), "f"), "1\ntwo");
    }

    #[test]
    fn an_endless_search_is_refused() {
        let file = "x\n".repeat(400_000);
        let body = " x\n".repeat(500) + "-y\n+z\n";
        let hunk = format!("@@ -1,501 +1,501 @@\n{body}");
        let errors = run(&[("f", &file)], &format!("--- a/f\n+++ b/f\n{}", hunk.repeat(50)), 0).unwrap_err();
        assert!(errors[0].to_string().contains("took too long"), "{}", errors[0]);
    }
}
