//! What the original could not do with diffs and patches, one test per defect.
#![allow(missing_docs, reason = "tests")]

use pyro_unified_diff::{ApplyOptions, Current, DiffBudget, Patch, Status, plan};

const STRICT: ApplyOptions = ApplyOptions { max_offset: 0, fuzz: 0 };

fn diff(old: Option<&str>, new: Option<&str>) -> String {
    let diff =
        pyro_unified_diff::file_diff("f", old.map(str::as_bytes), new.map(str::as_bytes), &mut DiffBudget::default());
    String::from_utf8(diff.expect("a difference")).expect("text")
}

/// The content of the only file after a patch.
fn applied(patch: &str, old: Option<&str>) -> (Status, Option<String>) {
    let patch = Patch::parse(patch.as_bytes(), Some("/workspace")).unwrap_or_else(|error| panic!("{error}\n{patch}"));
    let current = old.map_or(Current::Missing, |text| Current::File(text.as_bytes().to_vec()));
    let mut changes = plan(&patch, &STRICT, |_| Ok(current.clone())).unwrap_or_else(|errors| panic!("{errors:?}"));
    let change = changes.remove(0);
    (change.status, change.content.map(|content| String::from_utf8(content).expect("text")))
}

#[test]
fn a_missing_final_newline_is_marked_so_the_next_header_does_not_stick_to_it() {
    let patch = diff(Some("a\nb"), Some("a\nc"));
    assert_eq!(patch.matches("\\ No newline at end of file\n").count(), 2);
    assert_eq!(applied(&patch, Some("a\nb")).1.as_deref(), Some("a\nc"));
    let both = format!("{patch}{}", patch.replace("a/f", "a/g").replace("b/f", "b/g"));
    let parsed = Patch::parse(both.as_bytes(), None).expect("two files");
    assert_eq!(parsed.files.len(), 2);
}

#[test]
fn the_last_line_of_a_file_without_final_newline_can_be_matched() {
    let patch = "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n-a\n+A\n b\n\\ No newline at end of file\n";
    assert_eq!(applied(patch, Some("a\nb")).1.as_deref(), Some("A\nb"));
}

#[test]
fn only_a_newline_ends_a_line_in_a_diff_and_in_a_patch() {
    for odd in ["\u{c}", "\u{b}", "\u{2028}", "\u{85}", "\u{1c}", "\r"] {
        let (old, new) = (format!("x{odd}y\nz\n"), format!("x{odd}y\nZ\n"));
        let patch = diff(Some(&old), Some(&new));
        assert!(patch.contains("@@ -1,2 +1,2 @@"), "{odd:?}: {patch}");
        assert_eq!(applied(&patch, Some(&old)).1, Some(new), "{odd:?}");
    }
}

#[test]
fn a_removed_line_that_begins_with_two_dashes_is_no_header() {
    let patch = "--- a/f\n+++ b/f\n@@ -1,2 +1,1 @@\n--- note\n a\n";
    assert_eq!(applied(patch, Some("-- note\na\n")).1.as_deref(), Some("a\n"));
}

#[test]
fn a_blank_context_line_may_have_lost_its_space() {
    let patch = "--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n\n-b\n+c\n";
    assert_eq!(applied(patch, Some("a\n\nb\n")).1.as_deref(), Some("a\n\nc\n"));
}

#[test]
fn a_plain_git_diff_of_a_new_file_goes_through() {
    let patch = "diff --git a/f b/f\nnew file mode 100755\nindex 0000000..4b48deed\n--- /dev/null\n+++ b/f\n\
                 @@ -0,0 +1 @@\n+#!/bin/sh\n";
    assert_eq!(applied(patch, None), (Status::Added, Some("#!/bin/sh\n".to_owned())));
}

#[test]
fn a_rename_and_a_mode_line_of_git_go_through() {
    let patch = "diff --git a/f b/g\nold mode 100644\nnew mode 100755\nsimilarity index 100%\nrename from f\n\
                 rename to g\n";
    let patch = Patch::parse(patch.as_bytes(), None).expect("a rename");
    let changes =
        plan(&patch, &STRICT, |path| Ok(if path == "f" { Current::File(b"x\n".to_vec()) } else { Current::Missing }))
            .expect("a plan");
    let kinds: Vec<(&str, Status)> = changes.iter().map(|change| (change.path.as_str(), change.status)).collect();
    assert_eq!(kinds, [("f", Status::Deleted), ("g", Status::Added)]);
}

#[test]
fn a_hunk_away_from_its_place_is_found_when_that_is_allowed() {
    let patch = Patch::parse(b"--- a/f\n+++ b/f\n@@ -1 +1 @@\n-b\n+c\n", None).expect("a patch");
    let current = || Ok(Current::File(b"a\na\nb\n".to_vec()));
    assert!(plan(&patch, &STRICT, |_| current()).is_err());
    let changes = plan(&patch, &ApplyOptions::default(), |_| current()).expect("a plan");
    assert_eq!(changes[0].content.as_deref(), Some(&b"a\na\nc\n"[..]));
}
