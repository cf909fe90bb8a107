//! The arrows between the crates, as `docs/architecture.md` draws them.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Every allowed edge between the workspace's crates.
const ARROWS: &[(&str, &str)] = &[
    ("pyro", "pyro-components"),
    ("pyro", "pyro-engine"),
    ("pyro-agent", "pyro-agent-protocol"),
    ("pyro-components", "pyro-engine"),
    ("pyro-engine", "pyro-agent-protocol"),
    ("pyro-engine", "pyro-vmm"),
    // Components for the tests.
    ("pyro-test-guests", "pyro-plugin-sdk"),
];

/// A plugin stands on the SDK and on libraries beside it, and on nothing of the host's.
const PLUGIN_PREFIX: &str = "pyro-plugin-";

/// Crates that only one of ours may name.
const ONLY: &[(&str, &str)] = &[
    ("clap", "pyro"),
    ("rmcp", "pyro"),
    ("wasmtime", "pyro-components"),
    ("wasmtime-wasi", "pyro-components"),
    ("kvm-ioctls", "pyro-vmm"),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

/// The normal dependencies of each of our crates but the tasks and the tests.
fn edges() -> Vec<(String, String)> {
    let metadata = metadata();
    let mut edges = Vec::new();
    for package in metadata["packages"].as_array().expect("a list") {
        let name = package["name"].as_str().expect("a name");
        if matches!(name, "xtask" | "pyro-tests") {
            continue;
        }
        for dependency in package["dependencies"].as_array().expect("a list") {
            if dependency["kind"].is_null() {
                edges.push((name.to_owned(), dependency["name"].as_str().expect("a name").to_owned()));
            }
        }
    }
    edges
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let edges = edges();
    let ours: BTreeSet<&str> = ARROWS.iter().flat_map(|(from, to)| [*from, *to]).collect();
    for (from, to) in &edges {
        let within_plugins = from.starts_with(PLUGIN_PREFIX) && to.starts_with(PLUGIN_PREFIX);
        if (ours.contains(to.as_str()) || to.starts_with(PLUGIN_PREFIX)) && !within_plugins {
            assert!(
                ARROWS.contains(&(from.as_str(), to.as_str())),
                "{from} depends on {to}, which docs/architecture.md does not allow"
            );
        }
    }
    assert!(
        edges.iter().any(|(from, to)| from == "pyro" && to == "pyro-components"),
        "the edges were not read: {edges:?}"
    );
}

#[test]
fn each_heavy_crate_has_one_owner() {
    for (from, to) in edges() {
        if let Some((name, owner)) = ONLY.iter().find(|(name, _)| *name == to) {
            assert_eq!(from, *owner, "{from} names {name}, which only {owner} may");
        }
    }
}
