//! The same diffs through `git apply`, `git diff` and `patch`.
#![allow(missing_docs, reason = "tests")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use pyro_unified_diff::{ApplyOptions, Current, DiffBudget, Patch, plan};
use tempfile::TempDir;

/// Pairs of texts that have broken diff tools before.
const PAIRS: &[(&str, &str)] = &[
    ("a\nb\nc\n", "a\nB\nc\n"),
    ("a\nb", "a\nb\n"),
    ("a\nb\n", "a\nb"),
    ("a\nb", "a\nc"),
    ("a", "b"),
    ("", "a"),
    ("a\n", ""),
    ("-- old header\nx\n", "++ new header\nx\n"),
    ("--- a/f\n+++ b/f\n@@ -1 +1 @@\n", "x\n"),
    ("a\u{c}b\nc\n", "a\u{c}B\nc\n"),
    ("a\r\nb\r\nc\r\n", "a\r\nB\r\nc\r\n"),
    ("a\rb\n", "a\rc\n"),
    ("\u{2028}x\u{85}y\u{b}z\n", "\u{2028}x\u{85}y\u{b}Z\n"),
    ("\n\n\n\na\n\n\n\n", "\n\n\n\nb\n\n\n\n"),
    (
        "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16\n17\n18\n",
        "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\nx\n11\n12\n13\n14\n15\n16\n17\n",
    ),
    ("\\ No newline at end of file\n", "\\ No newline at end of file"),
];

fn file_diff(path: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> Option<Vec<u8>> {
    pyro_unified_diff::file_diff(path, old, new, &mut DiffBudget::default())
}

fn run(dir: &Path, program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CEILING_DIRECTORIES", dir.parent().expect("a parent"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("this test needs `{program}` installed: {error}"));
    child.stdin.take().expect("stdin").write_all(input).expect("write");
    let output = child.wait_with_output().expect("wait");
    // `git diff --no-index` answers 1 when there are differences.
    assert!(
        matches!(output.status.code(), Some(0 | 1))
            && (program != "patch" && arguments[0] != "apply" || output.status.success()),
        "{program} {arguments:?}: {}\n{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(input),
    );
    output.stdout
}

fn ours(patch: &[u8], old: &str) -> Vec<u8> {
    let shown = String::from_utf8_lossy(patch).into_owned();
    let patch = Patch::parse(patch, None).unwrap_or_else(|error| panic!("{error}\n{shown}"));
    let mut changes = plan(&patch, &ApplyOptions::default(), |_| Ok(Current::File(old.as_bytes().to_vec())))
        .unwrap_or_else(|errors| panic!("{errors:?}\n{shown}"));
    changes.remove(0).content.expect("content")
}

#[test]
fn git_and_patch_apply_our_diffs() {
    for (index, (old, new)) in PAIRS.iter().enumerate() {
        let diff = file_diff("d/a file", Some(old.as_bytes()), Some(new.as_bytes())).expect("a diff");
        for (program, arguments) in [("git", &["apply", "-"][..]), ("patch", &["-p1", "-s", "--binary"])] {
            let dir = TempDir::new().expect("a directory");
            fs::create_dir(dir.path().join("d")).expect("mkdir");
            fs::write(dir.path().join("d/a file"), old).expect("write");
            run(dir.path(), program, arguments, &diff);
            let result = fs::read(dir.path().join("d/a file")).expect("read");
            assert_eq!(String::from_utf8_lossy(&result), *new, "pair {index} by {program}");
        }
    }
}

#[test]
fn git_applies_our_additions_deletions_and_odd_names() {
    for name in ["new", "with space", "tab\there", "quote\"d", "back\\slash", "ä/ü"] {
        let dir = TempDir::new().expect("a directory");
        run(dir.path(), "git", &["init", "-q"], b"");
        let add = file_diff(name, None, Some(b"x\ny")).expect("a diff");
        run(dir.path(), "git", &["apply", "-"], &add);
        assert_eq!(fs::read(dir.path().join(name)).expect("read"), b"x\ny", "{name:?}");
        let delete = file_diff(name, Some(b"x\ny"), None).expect("a diff");
        run(dir.path(), "git", &["apply", "-"], &delete);
        assert!(!dir.path().join(name).exists(), "{name:?}");
    }
}

#[test]
fn we_apply_what_git_and_diff_write() {
    for (index, (old, new)) in PAIRS.iter().enumerate() {
        let dir = TempDir::new().expect("a directory");
        fs::create_dir(dir.path().join("a")).expect("mkdir");
        fs::create_dir(dir.path().join("b")).expect("mkdir");
        fs::write(dir.path().join("a/f"), old).expect("write");
        fs::write(dir.path().join("b/f"), new).expect("write");
        let git = run(dir.path(), "git", &["diff", "--no-index", "--no-prefix", "--text", "a/f", "b/f"], b"");
        assert_eq!(String::from_utf8_lossy(&ours(&git, old)), *new, "pair {index} of git diff");
        let plain = run(dir.path(), "diff", &["-u", "-a", "a/f", "b/f"], b"");
        assert_eq!(String::from_utf8_lossy(&ours(&plain, old)), *new, "pair {index} of diff -u");
    }
}

#[test]
fn a_whole_git_commit_goes_through() {
    let dir = TempDir::new().expect("a directory");
    let git = |arguments: &[&str]| run(dir.path(), "git", arguments, b"");
    git(&["init", "-q"]);
    for (name, text) in [("mod", "1\n2\n3\n"), ("gone", "x\n"), ("old name", "a\nb\nc\nd\ne\n"), ("empty", "")] {
        fs::write(dir.path().join(name), text).expect("write");
    }
    git(&["add", "."]);
    git(&["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one"]);
    fs::write(dir.path().join("mod"), "1\ntwo\n3").expect("write");
    fs::remove_file(dir.path().join("gone")).expect("remove");
    fs::remove_file(dir.path().join("empty")).expect("remove");
    fs::rename(dir.path().join("old name"), dir.path().join("neu ä")).expect("rename");
    fs::write(dir.path().join("neu ä"), "a\nb\nc\nd\nE\n").expect("write");
    fs::write(dir.path().join("fresh"), "").expect("write");
    git(&["add", "-A"]);
    git(&["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "two\n\n- list\n-- \n2.0"]);

    for patch in [git(&["show", "-M", "HEAD"]), git(&["format-patch", "-1", "-M", "--stdout"])] {
        let shown = String::from_utf8_lossy(&patch).into_owned();
        let patch = Patch::parse(&patch, None).unwrap_or_else(|error| panic!("{error}\n{shown}"));
        let changes = plan(&patch, &ApplyOptions::default(), |path| {
            Ok(match path {
                "mod" => Current::File(b"1\n2\n3\n".to_vec()),
                "gone" => Current::File(b"x\n".to_vec()),
                "old name" => Current::File(b"a\nb\nc\nd\ne\n".to_vec()),
                "empty" => Current::File(Vec::new()),
                _ => Current::Missing,
            })
        })
        .unwrap_or_else(|errors| panic!("{errors:?}\n{shown}"));
        let list: Vec<(&str, Option<&[u8]>)> =
            changes.iter().map(|change| (change.path.as_str(), change.content.as_deref())).collect();
        assert_eq!(
            list,
            [
                ("empty", None),
                ("fresh", Some(&b""[..])),
                ("gone", None),
                ("mod", Some(b"1\ntwo\n3")),
                ("neu ä", Some(b"a\nb\nc\nd\nE\n")),
                ("old name", None),
            ]
        );
    }
}
