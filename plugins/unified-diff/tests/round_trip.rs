//! A diff applied to its old text gives its new text, and no bytes make the parser panic.
#![allow(missing_docs, reason = "tests")]

use proptest::prelude::*;
use pyro_unified_diff::{ApplyOptions, Change, Current, DiffBudget, Patch, plan};

/// Texts of few different lines, so that diffs have structure, with odd line ends and bytes.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        &b"a\n"[..],
        &b"b\n"[..],
        &b"\n"[..],
        &b" \n"[..],
        &b"-- x\n"[..],
        &b"++ y\n"[..],
        &b"@@ -1 +1 @@\n"[..],
        &b"--- a/f\n"[..],
        &b"+++ b/f\n"[..],
        &b"diff --git a/f b/f\n"[..],
        &b"a\r\n"[..],
        &b"\r\n"[..],
        &b"\r"[..],
        &b"\x0c"[..],
        &b"\x0b\n"[..],
        &b"\xff\n"[..],
        "\u{2028}\u{85}\n".as_bytes(),
        &b"\\ No newline at end of file\n"[..],
        &b"tail"[..],
    ]);
    prop::collection::vec(line, 0..40).prop_map(|lines| lines.concat())
}

fn file_diff(path: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> Option<Vec<u8>> {
    pyro_unified_diff::file_diff(path, old, new, &mut DiffBudget::default())
}

fn apply(patch: &[u8], old: Option<&[u8]>) -> Vec<Change> {
    let shown = String::from_utf8_lossy(patch).into_owned();
    let patch = Patch::parse(patch, None).unwrap_or_else(|error| panic!("{error}\n{shown}"));
    plan(&patch, &ApplyOptions { max_offset: 0, fuzz: 0 }, |_| {
        Ok(old.map_or(Current::Missing, |text| Current::File(text.to_vec())))
    })
    .unwrap_or_else(|errors| panic!("{errors:?}\n{shown}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_modification_goes_round(old in text(), new in text()) {
        match file_diff("d/ä f", Some(&old), Some(&new)) {
            None => prop_assert_eq!(old, new),
            Some(patch) => {
                let changes = apply(&patch, Some(&old));
                prop_assert_eq!(changes[0].path.as_str(), "d/ä f");
                prop_assert_eq!(changes[0].content.as_deref(), Some(&new[..]));
                prop_assert!(changes[0].hunks.iter().all(|place| place.offset == 0 && place.fuzz == 0));
            }
        }
    }

    #[test]
    fn arbitrary_bytes_go_round(old in prop::collection::vec(any::<u8>(), 0..400),
                                new in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Some(patch) = file_diff("f", Some(&old), Some(&new)) {
            let changes = apply(&patch, Some(&old));
            prop_assert_eq!(changes[0].content.as_deref(), Some(&new[..]));
        }
    }

    #[test]
    fn additions_and_deletions_go_round(text in text(), name in "[a-z \"\\\\\t\n]{1,8}") {
        if let Some(patch) = file_diff(&name, None, Some(&text)) {
            let changes = apply(&patch, None);
            prop_assert_eq!((changes[0].path.as_str(), changes[0].content.as_deref()), (name.as_str(), Some(&text[..])));
        }
        if let Some(patch) = file_diff(&name, Some(&text), None) {
            let changes = apply(&patch, Some(&text));
            prop_assert_eq!(changes[0].content.as_deref(), None);
        }
    }

    #[test]
    fn patches_of_many_files_go_round(texts in prop::collection::vec((text(), text()), 1..6)) {
        let mut patch = Vec::new();
        for (index, (old, new)) in texts.iter().enumerate() {
            patch.extend(file_diff(&index.to_string(), Some(old), Some(new)).unwrap_or_default());
        }
        prop_assume!(!patch.is_empty());
        let parsed = Patch::parse(&patch, None).unwrap();
        let changes = plan(&parsed, &ApplyOptions::default(), |path| {
            Ok(Current::File(texts[path.parse::<usize>().unwrap()].0.clone()))
        }).unwrap();
        for change in changes {
            let (_, new) = &texts[change.path.parse::<usize>().unwrap()];
            prop_assert_eq!(change.content.as_deref(), Some(&new[..]));
        }
    }

    #[test]
    fn garbage_never_panics(pieces in prop::collection::vec(prop::sample::select(vec![
        &b"--- a/f\n"[..], &b"+++ b/f\n"[..], &b"diff --git a/f b/f\n"[..], &b"@@ -1 +1 @@\n"[..], &b"@@ -4294967295,4294967295 +1,2 @@\n"[..], &b"@@ -1,2 +0,0 @@ x\n"[..], &b"+a\n"[..], &b"-a\n"[..], &b" a\n"[..], &b"\n"[..], &b"\\ No newline\n"[..], &b"rename from \"\\3\n"[..], &b"rename to x\n"[..], &b"new file mode 100644\n"[..], &b"old mode 1\n"[..], &b"--- \n"[..], &b"+++ \n"[..], &b"@@ "[..], &b"\xff\xfe"[..], &b"-- \n2.1\n"[..], &b"--- /dev/null\n"[..], &b"+++ /dev/null\n"[..],
    ]), 0..30), file in text(), fuzz in 0_u8..5) {
        if let Ok(patch) = Patch::parse(&pieces.concat(), Some("/workspace")) {
            let _ = plan(&patch, &ApplyOptions { fuzz, ..ApplyOptions::default() }, |_| Ok(Current::File(file.clone())));
        }
    }
}

/// `count` lines out of 16, in an order that depends on `seed`.
fn repetitive(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut text = Vec::new();
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text.extend_from_slice(&[b'a' + (state >> 60) as u8, b'\n']);
    }
    text
}

#[test]
fn large_and_repetitive_texts_are_quick() {
    let (old, new) = (repetitive(500_000, 1), repetitive(500_000, 2));
    let started = std::time::Instant::now();
    let patch = file_diff("f", Some(&old), Some(&new)).expect("a diff");
    let took = started.elapsed();
    assert_eq!(apply(&patch, Some(&old))[0].content.as_deref(), Some(&new[..]));
    // Without the budget this takes minutes.
    assert!(took.as_secs() < 10, "{took:?}");
}

#[test]
fn a_large_text_with_few_changes_keeps_a_short_diff() {
    let line = |n: usize| format!("line {n}\n");
    let old: String = (0..60_000).map(line).collect();
    let new: String = (0..60_000).map(|n| if n % 20_000 == 7 { format!("new {n}\n") } else { line(n) }).collect();
    let patch = file_diff("f", Some(old.as_bytes()), Some(new.as_bytes())).expect("a diff");
    assert_eq!(String::from_utf8_lossy(&patch).matches("\n-line").count(), 3);
    assert_eq!(apply(&patch, Some(old.as_bytes()))[0].content.as_deref(), Some(new.as_bytes()));
}
