//! What counts as a difference.
#![allow(missing_docs, reason = "tests")]

use std::io::Cursor;

use pyro_tree::{DiffLimits, Omitted, Tree, TreeDiff, TreeLimits, compare};
use pyro_unified_diff::{ApplyOptions, Current, Patch, plan};
use tar::{Builder, EntryType, Header};

enum Node<'a> {
    File(&'a [u8]),
    Link(&'a str),
    Directory,
}
use Node::{Directory, File, Link};

fn tree(nodes: &[(&str, Node<'_>)]) -> Tree<Cursor<Vec<u8>>> {
    let mut builder = Builder::new(Vec::new());
    for (path, node) in nodes {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        match node {
            File(content) => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, *content).expect("append");
            }
            Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, path, target).expect("append");
            }
            Directory => {
                header.set_entry_type(EntryType::Directory);
                builder.append_data(&mut header, path, &[][..]).expect("append");
            }
        }
    }
    Tree::index(Cursor::new(builder.into_inner().expect("archive")), &TreeLimits::default()).expect("a tree")
}

fn diff(before: &[(&str, Node<'_>)], after: &[(&str, Node<'_>)], limits: &DiffLimits) -> TreeDiff {
    compare(&tree(before), &tree(after), limits).expect("a diff")
}

fn lines(diff: &TreeDiff) -> Vec<String> {
    diff.entries
        .iter()
        .map(|entry| {
            let text = entry.text_patch.as_ref().map_or("-", |_| "text");
            format!("{} {} {} {text}", entry.status.as_str(), entry.artifact_type, entry.path)
        })
        .collect()
}

#[test]
fn every_kind_of_change_is_told() {
    let before = [
        ("bin", File(b"\0\x01")),
        ("dir", Directory),
        ("dir-filled", Directory),
        ("empty-gone", File(b"")),
        ("gone", File(b"a\n")),
        ("latin", File(b"caf\xe9\n")),
        ("link", Link("a")),
        ("same", File(b"x")),
        ("same-link", Link("a")),
        ("text", File(b"a\nb")),
        ("turned", File(b"x\n")),
    ];
    let after = [
        ("bin", File(b"\0\x02")),
        ("dir-filled", Directory),
        ("dir-filled/f", File(b"new\n")),
        ("latin", File(b"cafe\n")),
        ("link", Link("b")),
        ("new-dir", Directory),
        ("same", File(b"x")),
        ("same-link", Link("a")),
        ("text", File(b"a\nB")),
        ("turned", Link("x")),
    ];
    let diff = diff(&before, &after, &DiffLimits::default());
    assert_eq!(
        lines(&diff),
        [
            "modified file bin -",
            "deleted directory dir -",
            "deleted directory dir-filled -",
            "added file dir-filled/f text",
            "deleted file empty-gone -",
            "deleted file gone text",
            "modified file latin -",
            "modified symlink link -",
            "added directory new-dir -",
            "modified file text text",
            "type_changed symlink turned -",
        ]
    );
    let summary = diff.summary;
    assert_eq!(
        [
            summary.total,
            summary.added,
            summary.modified,
            summary.deleted,
            summary.type_changed,
            summary.text_patched,
            summary.non_text
        ],
        [11, 2, 4, 4, 1, 3, 8]
    );
    assert_eq!(diff.entries[0].omitted, Some(Omitted::Binary));
    assert!(!diff.truncated);
}

#[test]
fn the_patch_leads_from_one_tree_to_the_other() {
    let before = [("a b", File(b"1\n2\n3")), ("gone", File(b"x")), ("same", File(b"y"))];
    let after = [("a b", File(b"1\ntwo\n3")), ("new/\u{e4}", File(b"\x0c\r\n")), ("same", File(b"y"))];
    let diff = diff(&before, &after, &DiffLimits::default());
    let patch = Patch::parse(diff.patch().as_bytes(), None).expect("readable");
    let changes = plan(&patch, &ApplyOptions::default(), |path| {
        Ok(before.iter().find(|(name, _)| *name == path).map_or(Current::Missing, |(_, node)| match node {
            File(content) => Current::File(content.to_vec()),
            _ => Current::Other("not a file".into()),
        }))
    })
    .expect("applies");
    let result: Vec<_> = changes.iter().map(|change| (change.path.as_str(), change.content.as_deref())).collect();
    assert_eq!(result, [("a b", Some(&b"1\ntwo\n3"[..])), ("gone", None), ("new/ä", Some(b"\x0c\r\n"))]);
}

#[test]
fn limits_leave_out_text_and_say_so() {
    let big = b"line\n".repeat(100);
    let after = [("a", File(&big)), ("b", File(b"x\n")), ("c", File(&big)), ("d", File(b"y\n"))];
    let limits = DiffLimits { patch_bytes: 150, ..DiffLimits::default() };
    let out = diff(&[], &after, &limits);
    let omitted: Vec<_> = out.entries.iter().map(|entry| entry.omitted).collect();
    assert_eq!(omitted, [Some(Omitted::Limit), None, Some(Omitted::Limit), None]);
    assert!(out.truncated && out.summary.total == 4);

    let out = diff(&[], &after, &DiffLimits { file_bytes: 100, ..DiffLimits::default() });
    assert_eq!(out.entries[0].omitted, Some(Omitted::TooLarge));
    assert!(!out.truncated);

    let out = diff(&[], &after, &DiffLimits { entries: 3, ..DiffLimits::default() });
    assert_eq!((out.entries.len(), out.summary.added, out.truncated), (3, 4, true));
}

#[test]
fn large_files_of_one_size_are_compared_in_full() {
    let one = vec![7; 1_000_000];
    let mut other = one.clone();
    assert!(diff(&[("f", File(&one))], &[("f", File(&other))], &DiffLimits::default()).entries.is_empty());
    other[999_999] = 8;
    assert_eq!(diff(&[("f", File(&one))], &[("f", File(&other))], &DiffLimits::default()).entries.len(), 1);
}
