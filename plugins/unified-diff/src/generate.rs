//! Writing the diff of one file.

use std::ops::Range;

use imara_diff::{Hunk, InternedInput};

use crate::edits::{DiffBudget, changes};
use crate::lines::split_lines;
use crate::path::quote_label;

/// Unchanged lines shown around a change, as `git diff` and `diff -u` do.
pub const CONTEXT_LINES: u32 = 3;

const NO_NEWLINE: &[u8] = b"\n\\ No newline at end of file\n";

/// Returns the unified diff that turns `old` into `new`, or `None` when there is no line to show.
///
/// `path` is relative; the labels are `a/<path>` and `b/<path>`, quoted as git does where needed. A
/// side that is `None` does not exist and is labelled `/dev/null`. Adding or deleting an empty file
/// has no lines and so gives `None`, like two equal texts. `budget` bounds the work: once it is
/// spent, diffs stay correct but are longer than they need be.
pub fn file_diff(path: &str, old: Option<&[u8]>, new: Option<&[u8]>, budget: &mut DiffBudget) -> Option<Vec<u8>> {
    let before = old.unwrap_or_default();
    let after = new.unwrap_or_default();
    if before == after {
        return None;
    }
    let mut input = InternedInput::default();
    input.update_before(split_lines(before));
    input.update_after(split_lines(after));

    let mut out = Vec::new();
    out.extend_from_slice(b"--- ");
    out.extend_from_slice(label("a/", path, old.is_some()).as_bytes());
    out.extend_from_slice(b"\n+++ ");
    out.extend_from_slice(label("b/", path, new.is_some()).as_bytes());
    out.push(b'\n');

    let changes = changes(&input, budget);
    let old_lines = u32::try_from(input.before.len()).unwrap_or(u32::MAX);
    let mut first = 0;
    while first < changes.len() {
        let mut last = first;
        // Two changes share a hunk when their context would touch.
        while last + 1 < changes.len() && changes[last + 1].before.start - changes[last].before.end <= 2 * CONTEXT_LINES
        {
            last += 1;
        }
        write_hunk(&mut out, &input, &changes[first..=last], old_lines);
        first = last + 1;
    }
    Some(out)
}

fn label(prefix: &str, path: &str, exists: bool) -> String {
    if exists { quote_label(&format!("{prefix}{path}")) } else { "/dev/null".to_owned() }
}

fn write_hunk(out: &mut Vec<u8>, input: &InternedInput<&[u8]>, changes: &[Hunk], old_lines: u32) {
    let (Some(first), Some(last)) = (changes.first(), changes.last()) else {
        return;
    };
    let lead = first.before.start.min(CONTEXT_LINES);
    let tail = (old_lines - last.before.end).min(CONTEXT_LINES);
    let old = first.before.start - lead..last.before.end + tail;
    let new = first.after.start - lead..last.after.end + tail;

    out.extend_from_slice(b"@@ -");
    write_range(out, &old);
    out.extend_from_slice(b" +");
    write_range(out, &new);
    out.extend_from_slice(b" @@\n");

    let mut at = old.start;
    for change in changes {
        write_lines(out, b' ', input, &input.before, at..change.before.start);
        write_lines(out, b'-', input, &input.before, change.before.clone());
        write_lines(out, b'+', input, &input.after, change.after.clone());
        at = change.before.end;
    }
    write_lines(out, b' ', input, &input.before, at..old.end);
}

/// `start,count` counted from one; an empty range names the line before it.
fn write_range(out: &mut Vec<u8>, range: &Range<u32>) {
    let count = range.end - range.start;
    let text = match count {
        0 => format!("{},0", range.start),
        1 => format!("{}", range.start + 1),
        _ => format!("{},{count}", range.start + 1),
    };
    out.extend_from_slice(text.as_bytes());
}

fn write_lines(
    out: &mut Vec<u8>,
    mark: u8,
    input: &InternedInput<&[u8]>,
    side: &[imara_diff::Token],
    range: Range<u32>,
) {
    for token in side.iter().take(range.end as usize).skip(range.start as usize) {
        let line = input.interner[*token];
        out.push(mark);
        out.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            out.extend_from_slice(NO_NEWLINE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, old: Option<&str>, new: Option<&str>) -> String {
        let diff = file_diff(path, old.map(str::as_bytes), new.map(str::as_bytes), &mut DiffBudget::default());
        String::from_utf8(diff.expect("a diff")).expect("utf-8")
    }

    #[test]
    fn a_change_keeps_three_lines_around_it() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let new = "1\n2\n3\n4\nfive\n6\n7\n8\n9\n";
        assert_eq!(
            text("f", Some(old), Some(new)),
            "--- a/f\n+++ b/f\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n"
        );
    }

    #[test]
    fn far_changes_get_hunks_of_their_own() {
        let old: String = (1..=20).map(|n| format!("{n}\n")).collect();
        let new = old.replace("2\n3\n", "2\nx\n3\n").replace("19\n", "y\n");
        let diff = text("f", Some(&old), Some(&new));
        assert_eq!(diff.matches("@@ -").count(), 2, "{diff}");
    }

    #[test]
    fn a_new_and_a_deleted_file_name_dev_null() {
        assert_eq!(text("d/f", None, Some("a\n")), "--- /dev/null\n+++ b/d/f\n@@ -0,0 +1 @@\n+a\n");
        assert_eq!(text("d/f", Some("a\n"), None), "--- a/d/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n");
    }

    #[test]
    fn a_missing_final_newline_is_marked_on_its_side() {
        assert_eq!(
            text("f", Some("a\nb"), Some("a\nb\n")),
            "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+b\n"
        );
        assert_eq!(
            text("f", Some("a\nb"), Some("c\nb")),
            "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n-a\n+c\n b\n\\ No newline at end of file\n"
        );
    }

    #[test]
    fn only_a_newline_ends_a_line() {
        let diff = text("f", Some("a\u{c}b\u{2028}c\rd\n"), Some("a\u{c}b\u{2028}c\rD\n"));
        assert_eq!(diff, "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\u{c}b\u{2028}c\rd\n+a\u{c}b\u{2028}c\rD\n");
    }

    #[test]
    fn nothing_to_show_is_none() {
        assert_eq!(file_diff("f", Some(b"a"), Some(b"a"), &mut DiffBudget::default()), None);
        assert_eq!(file_diff("f", None, Some(b""), &mut DiffBudget::default()), None);
    }

    #[test]
    fn names_are_quoted_as_git_does() {
        assert!(text("a b", None, Some("x\n")).starts_with("--- /dev/null\n+++ b/a b\t\n"));
        assert!(text("q\"\n", None, Some("x\n")).starts_with("--- /dev/null\n+++ \"b/q\\\"\\n\"\n"));
    }
}
