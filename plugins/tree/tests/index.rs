//! Archives that a guest may send.
#![allow(missing_docs, reason = "tests")]

use std::io::Cursor;

use proptest::prelude::*;
use pyro_tree::{DiffLimits, EntryKind, Omitted, Tree, TreeError, TreeLimits, compare};
use tar::{Builder, EntryType, Header};

/// One member: name, kind, content or link target.
fn archive(members: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, data) in members {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o640);
        if *kind == EntryType::Symlink || *kind == EntryType::Link {
            header.set_size(0);
            builder.append_link(&mut header, name, data).expect("append");
        } else {
            header.set_size(data.len() as u64);
            // Written by hand, because the builder refuses the names that matter here.
            if name.len() < 100 {
                header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                builder.append(&header, data.as_bytes()).expect("append");
            } else {
                builder.append_data(&mut header, name, data.as_bytes()).expect("append");
            }
        }
    }
    builder.into_inner().expect("archive")
}

fn index(bytes: Vec<u8>) -> Result<Tree<Cursor<Vec<u8>>>, TreeError> {
    Tree::index(Cursor::new(bytes), &TreeLimits::default())
}

fn refusal(members: &[(&str, EntryType, &str)]) -> String {
    match index(archive(members)) {
        Ok(_) => panic!("accepted {members:?}"),
        Err(error) => {
            assert!(error.hint().is_some(), "{error}");
            error.to_string()
        }
    }
}

use EntryType::{Directory, Regular, Symlink};

#[test]
fn names_that_are_not_utf8_are_written_in_ascii() {
    let mut builder = Builder::new(Vec::new());
    for (name, data) in [(&b"b\xffd\xfe"[..], "one"), (b"good", "two")] {
        let mut header = Header::new_gnu();
        header.set_size(3);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).unwrap();
    }
    let tree = index(builder.into_inner().unwrap()).unwrap();
    let names: Vec<(&str, bool)> = tree.entries().iter().map(|(name, entry)| (name.as_str(), entry.is_exact)).collect();
    assert_eq!(names, [(r"b\xffd\xfe", false), ("good", true)]);
    assert_eq!(tree.read(r"b\xffd\xfe", 0, 10).unwrap(), b"one");

    let both: [&[u8]; 2] = [b"b\xff", br"b\xff"];
    let mut builder = Builder::new(Vec::new());
    for name in both {
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        builder.append(&header, [].as_slice()).unwrap();
    }
    let error = index(builder.into_inner().unwrap()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("another member's name is written as this one's is"), "{error}");
    assert!(error.hint().is_some(), "{error}");

    let diff = compare(&index(Vec::new()).unwrap(), &tree, &DiffLimits::default()).unwrap();
    let shown: Vec<_> = diff.entries.iter().map(|entry| (entry.omitted, entry.text_patch.is_some())).collect();
    assert_eq!(shown, [(Some(Omitted::Name), false), (None, true)]);
}

#[test]
fn the_table_lists_what_the_archive_holds() {
    let long = format!("d/{}", "n".repeat(180));
    let tree = index(archive(&[
        ("./", Directory, ""),
        ("./d/", Directory, ""),
        ("d/a", Regular, "hello"),
        (&long, Regular, "long"),
        ("link", Symlink, "d/a"),
    ]))
    .unwrap();
    let paths: Vec<&str> = tree.entries().keys().map(String::as_str).collect();
    assert_eq!(paths, ["d", "d/a", &long, "link"]);
    assert_eq!(tree.entries()["link"].kind, EntryKind::Symlink { target: "d/a".into() });
    assert_eq!(tree.entries()["d/a"].mode, 0o640);
    assert_eq!(tree.read("d/a", 1, 3).unwrap(), b"ell");
    assert_eq!(tree.read(&long, 0, u64::MAX).unwrap(), b"long");
    assert_eq!(tree.read("d/a", 9, 9).unwrap(), b"");
    assert!(matches!(tree.read("d", 0, 1), Err(TreeError::NotAFile(_))));
}

#[test]
fn names_that_leave_the_tree_are_refused() {
    for name in ["/etc/passwd", "../x", "a/../../x", "a//b", ""] {
        assert!(refusal(&[(name, Regular, "x")]).contains("not relative"), "{name}");
    }
}

#[test]
fn other_kinds_and_conflicts_are_refused() {
    let kinds = [EntryType::Link, EntryType::Fifo, EntryType::Char, EntryType::Block, EntryType::GNUSparse];
    for kind in kinds {
        assert!(refusal(&[("a", kind, "b")]).contains("support"), "{kind:?}");
    }
    assert!(refusal(&[("a", Regular, "x"), ("a/b", Regular, "y")]).contains("below a file"));
    assert!(refusal(&[("a", Symlink, "/"), ("a/b/c", Regular, "y")]).contains("below a file"));
    assert!(refusal(&[("a/b", Regular, "y"), ("a", Regular, "x")]).contains("where a directory is"));
    assert!(refusal(&[("a/", Directory, ""), ("a", Regular, "x")]).contains("one name"));
}

#[test]
fn truncated_and_lying_archives_are_refused() {
    let mut bytes = archive(&[("a", Regular, &"x".repeat(5000))]);
    bytes.truncate(1024);
    assert!(index(bytes).is_err());
    let mut header = Header::new_gnu();
    header.set_path("a").unwrap();
    header.set_size(u64::MAX / 2);
    header.set_cksum();
    assert!(index(header.as_bytes().to_vec()).is_err());
}

#[test]
fn limits_hold() {
    let bytes = archive(&[("a", Regular, ""), ("b", Regular, ""), ("c", Regular, "")]);
    let limits = TreeLimits { entries: 2, ..TreeLimits::default() };
    assert!(matches!(Tree::index(Cursor::new(bytes.clone()), &limits), Err(TreeError::TooManyEntries(2))));
    let limits = TreeLimits { name_bytes: 2, ..TreeLimits::default() };
    assert!(matches!(Tree::index(Cursor::new(bytes), &limits), Err(TreeError::NamesTooLong(2))));
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 20);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(bytes.len() + (1 << 20), b'x');
    assert!(index(bytes).err().unwrap().to_string().contains("too long"));
}

#[test]
fn pax_names_count_and_pax_sizes_must_agree() {
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("path", "p/ä".as_bytes())]).unwrap();
    let mut header = Header::new_ustar();
    header.set_size(2);
    header.set_path("short").unwrap();
    header.set_cksum();
    builder.append(&header, &b"hi"[..]).unwrap();
    let tree = index(builder.into_inner().unwrap()).unwrap();
    assert_eq!(tree.read("p/ä", 0, 9).unwrap(), b"hi");

    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("size", &b"512"[..])]).unwrap();
    builder.append(&header, &b"hi"[..]).unwrap();
    assert!(index(builder.into_inner().unwrap()).err().unwrap().to_string().contains("sizes"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_archives_never_panic(flips in prop::collection::vec((0_usize..6000, any::<u8>()), 1..20), fix in any::<bool>()) {
        let mut bytes = archive(&[
            ("d/", Directory, ""), ("d/a", Regular, "hello"), (&"n".repeat(180), Regular, "long"), ("l", Symlink, "d/a"),
        ]);
        for (at, byte) in flips {
            if let Some(place) = bytes.get_mut(at) { *place = byte; }
        }
        if fix {
            // A right checksum lets the damage through to what lies behind it.
            for start in (0..bytes.len()).step_by(512) {
                let block = &mut bytes[start..start + 512];
                let sum: u32 = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
                if block.iter().any(|byte| *byte != 0) {
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        if let Ok(tree) = index(bytes) {
            let paths: Vec<String> = tree.entries().keys().cloned().collect();
            for path in paths { let _ = tree.read(&path, 0, 1 << 20); }
        }
    }
}
