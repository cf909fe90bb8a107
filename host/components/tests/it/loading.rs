//! What is refused before a component serves its first call.

use pyro_components::{Toolbox, pack};
use serde_json::{Value, json};

use crate::support::{Home, call, guest, stating, text};

fn refusal(guest_name: &str, extra: &str) -> String {
    let home = Home::new();
    match home.toolbox(guest_name, extra) {
        Ok(_) => panic!("{guest_name} was loaded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_ungranted_import_is_refused_with_the_line_to_add() {
    assert_eq!(
        refusal("uses_machines", "grants = [\"exec\"]"),
        "test.toml:5: [components.guest] imports `pyro:vm/machines@0.1.0` without a grant\n  \
         hint: to allow it, write under [components.guest]:\n        grants = [\"machines\", \"exec\"]"
    );
    let scoped = refusal("uses_machines", "grants = { exec = { argv = [\"rg *\"], max_seconds = 5 } }");
    assert!(scoped.contains(r#"grants = { machines = {}, exec = { argv = ["rg *"], max_seconds = 5 } }"#), "{scoped}");
}

#[test]
fn an_unknown_import_is_refused_with_what_there_is() {
    let error = refusal("unknown_import", "grants = [\"exec\"]");
    assert!(error.contains("imports `acme:cloud/store@1.0.0`, which this pyro does not offer"), "{error}");
    assert!(error.contains("this pyro offers `pyro:host/log`"), "{error}");
}

#[test]
fn another_world_is_refused() {
    let error = refusal("wrong_world", "");
    assert!(error.contains("does not export `pyro:plugin/tools@0.1.0`; it exports `greet`"), "{error}");
}

#[test]
fn a_trap_in_list_tools_is_a_load_error_with_the_last_words() {
    let error = refusal("list_trap", "");
    assert!(error.starts_with("test.toml:3: [components.guest]: plugin `guest`: `list-tools` panicked"), "{error}");
    assert!(error.contains("no tools today"), "{error}");
}

#[test]
fn a_loop_in_list_tools_is_a_load_error_in_time() {
    let started = std::time::Instant::now();
    let error = refusal("list_loop", "");
    assert!(error.contains("`list-tools` was ended: it used more than 500 ms of CPU time"), "{error}");
    assert!(started.elapsed().as_secs() < 60);
}

#[test]
fn bytes_that_are_no_component_are_named() {
    for (bytes, words) in [
        (b"#!/bin/sh\n".as_slice(), "not a WebAssembly file: it starts with 0x23212f62"),
        (b"", "it is empty"),
        (b"\0asm\x01\0\0\0", "a core WebAssembly module"),
    ] {
        let home = Home::new();
        home.put("guest.wasm", bytes);
        let error = home.profile("behaviours", "").unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    // A component cut in the middle.
    let whole = guest("behaviours");
    let home = Home::new();
    home.put("guest.wasm", &whole[..whole.len() / 2]);
    let error = home.profile("behaviours", "").unwrap_err().to_string();
    assert!(error.contains("damaged at byte"), "{error}");
}

#[test]
fn a_packed_component_is_listed_without_running_or_compiling_it() {
    let home = Home::new();
    home.put("guest.wasm", &pack(&guest("behaviours")).unwrap());
    let toolbox = home.toolbox("behaviours", "").unwrap();
    assert_eq!(toolbox.tools().len(), 23);
    assert!(!home.path("cache/components").exists(), "something was compiled");
    let again = pack(&std::fs::read(home.path("guest.wasm")).unwrap()).unwrap_err();
    assert!(again.message.contains("already has"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_lies_is_found_out_before_the_first_call() {
    // The list of another component.
    let honest = pack(&guest("uses_machines")).unwrap();
    let section = &honest[guest("uses_machines").len()..];
    let lying = [guest("behaviours").as_slice(), section].concat();
    let home = Home::new();
    home.put("guest.wasm", &lying);
    let toolbox = home.toolbox("behaviours", "").unwrap();
    let error = call(&toolbox, "use_machine", json!({})).await.unwrap_err();
    assert_eq!(error.code, "plugin_invalid");
    assert!(error.message.contains("tool `use_machine` is missing from `list-tools`"), "{error}");
    assert!(error.hint.unwrap().contains("`pyro plugin pack FILE`"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packed_component_that_says_the_truth_works() {
    let home = Home::new();
    home.put("guest.wasm", &pack(&guest("behaviours")).unwrap());
    let toolbox = home.toolbox("behaviours", "").unwrap();
    assert_eq!(text(&call(&toolbox, "echo", json!({})).await.unwrap()), "{}");
}

#[test]
fn a_schema_that_no_call_could_be_checked_against_is_refused() {
    let object = |properties: Value| json!({ "type": "object", "properties": properties });
    let fine = object(json!({}));
    for (input, output, what) in [
        (object(json!({ "a": { "type": "string", "pattern": "(" } })), fine.clone(), "input"),
        (object(json!({ "a": { "type": "string", "minLength": "x" } })), fine.clone(), "input"),
        (object(json!({ "a": { "$ref": "#/$defs/nope" } })), fine.clone(), "input"),
        (object(json!({ "a": 5 })), fine.clone(), "input"),
        (json!({ "type": "object", "required": 5 }), fine.clone(), "input"),
        (fine.clone(), object(json!({ "a": { "pattern": "(" } })), "output"),
        (fine.clone(), json!({ "type": "object", "required": 5 }), "output"),
    ] {
        let home = Home::new();
        let tool = json!({ "name": "grep", "description": "finds", "input_schema": input, "output_schema": output });
        home.put("guest.wasm", &stating("behaviours", json!([tool])));
        let error = home.toolbox("behaviours", "").err().unwrap_or_else(|| panic!("{tool} was loaded"));
        assert_eq!(error.code(), "invalid_tool");
        let words = format!("[components.guest]: tool `grep` has an {what} schema that is no JSON Schema: ");
        assert!(error.to_string().contains(&words), "{error}");
    }
}

#[test]
fn two_components_with_one_tool_name_are_refused() {
    let home = Home::new();
    home.put("guest.wasm", &guest("behaviours"));
    let extra = "tools = [\"echo\", \"spin\"]\n[components.second]\nsource = \"guest.wasm\"\ntools = [\"echo\"]";
    let profile = home.profile("behaviours", extra).unwrap();
    let error = Toolbox::load(&profile, home.services()).err().unwrap().to_string();
    assert!(error.contains("tool `echo` is offered by [components.guest] and by [components.second]"), "{error}");
}

#[test]
fn a_command_that_could_not_be_typed_is_refused() {
    let tool = |name: &str, path: &[&str]| {
        let cli = json!({ "path": path }).to_string();
        json!({ "name": name, "description": "d", "input_schema": { "type": "object" }, "meta": { "cli": cli } })
    };
    let refusal = |tools: Value| {
        let home = Home::new();
        home.put("guest.wasm", &stating("behaviours", tools));
        home.toolbox("behaviours", "").err().map(|error| error.to_string())
    };
    let error = refusal(json!([tool("a", &["acme", "find"]), tool("b", &["acme", "find", "all"])])).unwrap();
    let words = "the command `pyro acme find all` of tool `b` begins with the command of tool `a`";
    assert!(error.contains(words), "{error}");
    let error = refusal(json!([tool("a", &["mcp"])])).unwrap();
    assert!(error.contains("tool `a` has the command `pyro mcp`, but `pyro mcp` is pyro's own"), "{error}");
    assert_eq!(refusal(json!([tool("a", &["acme", "find"]), tool("b", &["acme", "list"])])), None);
}

#[test]
fn an_asynchronous_component_gets_a_hint() {
    // `canon task.cancel`, alone in a component.
    let error = pack(b"\0asm\x0d\0\x01\0\x08\x02\x01\x05").unwrap_err();
    assert!(error.message.contains("async"), "{error}");
    assert!(error.hint.unwrap().contains("`--sync`"));
}

#[test]
fn a_digest_pins_a_component() {
    let home = Home::new();
    let profile = home.profile("behaviours", "").unwrap();
    let digest = profile.components[0].digest.clone();
    home.profile("behaviours", &format!("digest = \"{digest}\"")).unwrap();
    let wrong = format!("digest = \"sha256:{}\"", "0".repeat(64));
    let error = home.profile("behaviours", &wrong).unwrap_err().to_string();
    assert!(error.contains("is not what the profile pins: it is sha256:"), "{error}");
}
