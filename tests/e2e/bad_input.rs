//! Bad input is a clear error with a code and a hint, and leaves nothing behind.

use std::fs;
use std::time::Duration;

use pyro_tests::{Client, Home};
use serde_json::json;

const CLEAN: Duration = Duration::from_secs(5);

/// Runs `args` in a home with nothing prepared and expects `code` and each of
/// `says` on stderr.
#[track_caller]
fn refused(args: &[&str], code: i32, says: &[&str]) {
    let home = Home::empty();
    let run = home.run(args);
    run.expect_code(code);
    assert!(run.stdout.is_empty(), "{}", run.text());
    for text in says {
        assert!(run.stderr.contains(text), "{text:?} is not in {}", run.stderr);
    }
    home.expect_clean_within(CLEAN);
}

#[test]
fn an_unknown_environment() {
    refused(&["run", "debian:21", "--", "true"], 125, &["error:", "debian:21", "hint:", "debian:12"]);
}

#[test]
fn sizes_out_of_range() {
    refused(&["run", "debian:12", "--vcpu-count", "0", "--", "true"], 125, &["vcpu_count", "0", "1", "8"]);
    refused(&["run", "debian:12", "--mem-mib", "1", "--", "true"], 125, &["mem_mib", "256"]);
    refused(&["run", "debian:12", "--mem-mib", "99999999999999999999", "--", "true"], 2, &["mem"]);
    refused(&["run", "debian:12", "--timeout-seconds", "0", "--", "true"], 125, &["timeout_seconds"]);
    refused(&["run", "debian:12", "--ttl-seconds", "5", "--", "true"], 125, &["ttl_seconds", "60"]);
}

#[test]
fn no_command() {
    refused(&["run", "debian:12"], 2, &["COMMAND"]);
}

#[test]
fn an_unknown_profile() {
    refused(&["mcp", "serve", "--profile", "vm-rum"], 1, &["vm-rum", "did you mean", "vm-run"]);
    refused(&["mcp", "serve", "--profile", "./nowhere.toml"], 1, &["nowhere.toml"]);
}

/// Writes `text` as a manifest and expects `pyro profile check` to refuse it
/// with each of `says`.
#[track_caller]
fn profile_refused(text: &str, says: &[&str]) {
    let home = Home::empty();
    let path = home.path().join("bad.toml");
    fs::write(&path, text).expect("a file");
    for args in [["profile", "check"], ["mcp", "serve"]] {
        let mut all = args.to_vec();
        if args[0] == "mcp" {
            all.push("--profile");
        }
        let path = path.to_str().expect("UTF-8");
        all.push(path);
        let run = home.run(&all);
        run.expect_code(1);
        for text in says {
            assert!(run.stderr.contains(text), "{text:?} is not in {}", run.stderr);
        }
    }
}

#[test]
fn malformed_manifests() {
    profile_refused("schema = 1\nname = ", &["bad.toml:2"]);
    profile_refused(
        "schema = 1\nname = \"x\"\n\n[components.exec]\nsorce = \"builtin:exec\"\n",
        &["bad.toml:5", "sorce", "source"],
    );
    profile_refused("schema = 7\nname = \"x\"\n", &["schema", "7"]);
    profile_refused(
        "schema = 1\nname = \"x\"\n[components.exec]\nsource = \"builtin:exex\"\ngrants = [\"machines\", \"exec\"]\n",
        &["exex", "exec"],
    );
    profile_refused(
        "schema = 1\nname = \"x\"\n[components.exec]\nsource = \"builtin:exec\"\n",
        &["grants", "machines"],
    );
    profile_refused(
        "schema = 1\nname = \"x\"\n[components.exec]\nsource = \"builtin:exec\"\ngrants = [\"machines\", \"exek\"]\n",
        &["exek", "exec"],
    );
    profile_refused("schema = 1\nname = \"x\"\n[components.a]\nsource = \"./missing.wasm\"\n", &["missing.wasm"]);
}

#[test]
fn a_component_that_is_not_wasm() {
    let home = Home::empty();
    fs::write(home.path().join("not.wasm"), "hello").expect("a file");
    fs::write(home.path().join("p.toml"), "schema = 1\nname = \"x\"\n[components.a]\nsource = \"./not.wasm\"\n")
        .expect("a file");
    let run = home.run(&["profile", "check", "p.toml"]);
    run.expect_code(1);
    assert!(run.stderr.contains("not.wasm"), "{}", run.stderr);
}

#[test]
fn a_command_with_a_nul_byte() {
    let home = Home::new();
    let mut client = Client::initialized(&home, &["--profile", "vm-run"]);
    let result = client.call("vm_run", json!({ "environment": "debian:12", "command": "echo a\0b" }));
    assert_eq!(result["isError"], true, "{result}");
    let text = result["content"][0]["text"].as_str().expect("text");
    assert!(text.contains("NUL"), "{text}");
    assert!(client.close_within(CLEAN).success());
    home.expect_clean_within(CLEAN);
}
