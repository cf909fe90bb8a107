//! `docs/errors.md` and the code agree.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use pyro::errors::{CODES, Origin};

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    fs::read_to_string(path).unwrap()
}

/// The codes of the page: the first cell of each table row, in backticks.
fn documented() -> Vec<String> {
    page()
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        .collect()
}

#[test]
fn every_code_is_documented_once() {
    let documented = documented();
    let page: BTreeSet<&str> = documented.iter().map(String::as_str).collect();
    let list: BTreeSet<&str> = CODES.iter().map(|code| code.name).collect();
    assert_eq!(page, list);
    assert_eq!(page.len(), documented.len(), "a code is documented twice");
    assert_eq!(list.len(), CODES.len(), "a code is listed twice");
}

/// The engine's codes of the list are the engine's, all of them.
#[test]
fn the_engine_knows_its_codes() {
    let listed: BTreeSet<String> =
        CODES.iter().filter(|code| code.origin == Origin::Engine).map(|code| code.name.to_owned()).collect();
    for name in &listed {
        let code: pyro::ErrorCode = serde_json::from_value(name.as_str().into()).unwrap();
        assert_eq!(code.as_str(), name);
    }
    // The enum has no list of its own; its source has.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/src/error.rs");
    let source = fs::read_to_string(path).unwrap();
    let names = source.split("const fn as_str").nth(1).unwrap().split("\n    }").next().unwrap();
    let in_source: BTreeSet<String> = names.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(in_source, listed);
}

/// What stands before a code in the sources.
const BEFORE_A_CODE: &[&str] =
    &["ToolError::new(", "Failure::new(", ".error(", "report(", "finding(", "fail(", "refusals.push((", "Err(("];

/// Every string that the sources use as a code is in the list.
#[test]
fn every_code_in_the_sources_is_listed() {
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    collect(&host.join("components/src"), &mut files);
    collect(&host.join("pyro/src"), &mut files);
    let list: BTreeSet<&str> = CODES.iter().map(|code| code.name).collect();
    let mut seen = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        // Tests make up codes of their own.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for before in BEFORE_A_CODE {
            for (at, _) in text.match_indices(before) {
                let rest = text[at + before.len()..].trim_start();
                let Some((code, _)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) else {
                    continue;
                };
                if !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                    assert!(list.contains(code), "`{code}` of {} is not listed", file.display());
                    seen.insert(code.to_owned());
                }
            }
        }
    }
    assert!(seen.len() > 15, "only {seen:?} were found: does the test still look in the right places?");
}

fn collect(directory: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
