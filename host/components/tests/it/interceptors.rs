//! Components that take part in other components' tools.

use pyro_components::{LoadError, ToolError, Toolbox, pack};
use serde_json::{Value, json};

use crate::support::{Home, call, guest, text};

const SECRETS: &str = "grants = [\"secrets\"]";

/// A profile of `behaviours` and `then`, each a guest with the lines of its table.
fn load(home: &Home, then: &[(&str, &str)], extra: &str) -> Result<Toolbox, LoadError> {
    let mut text = "tools = [\"echo\", \"keep_promise\", \"break_promise\"]\n".to_owned();
    for (name, lines) in then {
        home.put(&format!("{name}.wasm"), &pack(&guest(name)).unwrap());
        text.push_str(&format!("[components.{name}]\nsource = \"./{name}.wasm\"\n{lines}\n"));
    }
    home.toolbox("behaviours", &format!("{text}{extra}"))
}

fn both(home: &Home) -> Toolbox {
    load(home, &[("intercepts", ""), ("intercepts_badly", SECRETS)], "").unwrap_or_else(|error| panic!("{error}"))
}

async fn answer(toolbox: &Toolbox, arguments: Value) -> Value {
    Value::Object(call(toolbox, "keep_promise", arguments).await.unwrap().structured.unwrap())
}

async fn fails(toolbox: &Toolbox, tool: &str, arguments: Value) -> ToolError {
    call(toolbox, tool, arguments).await.unwrap_err()
}

#[test]
fn schemas_are_merged_without_running_anything() {
    let home = Home::new();
    home.put("guest.wasm", &pack(&guest("behaviours")).unwrap());
    let toolbox = both(&home);
    assert!(!home.path("cache/components").exists(), "something was compiled");
    let schema = |name: &str| toolbox.tool(name).unwrap().input_schema.clone();
    let names = |name: &str| schema(name)["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names("echo"), ["n", "note", "mode", "workspace", "hidden"]);
    assert_eq!(names("break_promise"), ["n"]);
    let output = toolbox.tool("keep_promise").unwrap().output_schema.clone().unwrap();
    let results: Vec<_> = output["properties"].as_object().unwrap().keys().collect();
    assert_eq!(results, ["answer", "noted", "trail"]);
    // Without the components their words are nowhere.
    let alone = load(&Home::new(), &[], "").unwrap();
    let text = serde_json::to_string(alone.tools()).unwrap();
    assert!(!text.contains("note") && !text.contains("trail"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tool_does_not_see_what_is_not_its_own() {
    let home = Home::new();
    let toolbox = both(&home);
    let echoed = call(&toolbox, "echo", json!({ "n": 5, "note": "x", "mode": "plain" })).await.unwrap();
    assert_eq!(text(&echoed), r#"{"n":5}"#);
    // And the profile can narrow what an interceptor added.
    let home = Home::new();
    let narrowed = "[tool.echo]\nfixed = { note = \"always\" }\nhide = [\"mode\"]";
    let toolbox = load(&home, &[("intercepts", ""), ("intercepts_badly", SECRETS)], narrowed).unwrap();
    assert_eq!(text(&call(&toolbox, "echo", json!({ "n": 5 })).await.unwrap()), r#"{"n":5}"#);
    let error = fails(&toolbox, "echo", json!({ "mode": "trap" })).await;
    assert!(error.hint.unwrap().contains("does not offer `mode`"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_runs_in_reverse_and_an_answer_stops_before_the_tool() {
    let home = Home::new();
    let toolbox = both(&home);
    assert_eq!(answer(&toolbox, json!({})).await, json!({ "answer": 42 }));
    // `intercepts_badly` stands second, so it is the first to see the tool's answer.
    assert_eq!(
        answer(&toolbox, json!({ "note": "hi", "mode": "trail" })).await,
        json!({ "answer": 42, "trail": "{'answer':42}", "noted": "hi" })
    );
    // The first one answers: the second's `before` would trap, and its `after` would leave a trail.
    assert_eq!(answer(&toolbox, json!({ "note": "answer", "mode": "trap" })).await, json!({ "answer": 7 }));
    let greeting = call(&toolbox, "greet", json!({ "name": "you" })).await.unwrap();
    assert_eq!(Value::Object(greeting.structured.unwrap()), json!({ "greeting": "hello you" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_and_a_fault_have_names() {
    let home = Home::new();
    let toolbox = both(&home);
    let refused = fails(&toolbox, "echo", json!({ "note": "refuse" })).await;
    assert_eq!((refused.code.as_str(), refused.message.as_str()), ("noted_refusal", "no echo today"));
    assert_eq!(refused.details["plugin"], "intercepts");
    for (mode, code, words) in [
        ("trap", "plugin_trap", "plugin `intercepts_badly`: `before keep_promise` panicked: "),
        ("after_trap", "plugin_trap", "plugin `intercepts_badly`: `after keep_promise` panicked: "),
        ("lie", "plugin_invalid", "plugin `intercepts_badly`: `keep_promise` returned what its output schema"),
        ("after_lie", "plugin_invalid", "plugin `intercepts_badly`: `keep_promise` returned what its output schema"),
        ("garbage", "plugin_invalid", "not a JSON object"),
        ("attach_bad_name", "invalid_argument", "secret name 'not a name' does not match"),
        ("attach_twice", "invalid_argument", "duplicate secret name: TOKEN"),
        ("attach_huge", "invalid_argument", "has 65537 bytes"),
        ("attach_file", "denied", "the profile has no `[host] read`"),
        ("attach_many", "limit_exceeded", "at most 64 secrets"),
    ] {
        let error = fails(&toolbox, "keep_promise", json!({ "mode": mode })).await;
        assert_eq!(error.code, code, "{mode}: {error}");
        assert!(error.message.contains(words), "{mode}: {error}");
    }
    assert_eq!(answer(&toolbox, json!({ "mode": "attach" })).await, json!({ "answer": 42 }));
    let late = fails(&toolbox, "late_attach", json!({})).await;
    assert_eq!(late.code, "invalid_state", "{late}");
}

#[test]
fn two_that_add_the_same_argument_are_refused() {
    let home = Home::new();
    home.put("again.wasm", &guest("intercepts"));
    let again = "[components.again]\nsource = \"./again.wasm\"\ntools = []";
    let error = load(&home, &[("intercepts", "")], again).err().unwrap().to_string();
    let words = "argument `note` of tool `echo` comes from [components.intercepts] and from [components.again]";
    assert!(error.contains(words), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amendments_that_lie_are_found_out() {
    let home = Home::new();
    let whole = pack(&guest("intercepts")).unwrap();
    let section = &whole[guest("intercepts").len()..];
    let at = section.windows(8).position(|window| window == b"anything").unwrap();
    let mut lying = whole.clone();
    lying[guest("intercepts").len() + at] = b'A';
    home.put("lying.wasm", &lying);
    let lines = "[components.lying]\nsource = \"./lying.wasm\"";
    let toolbox = load(&home, &[], lines).unwrap_or_else(|error| panic!("{error}"));
    let error = fails(&toolbox, "echo", json!({})).await;
    assert_eq!(error.code, "plugin_invalid", "{error}");
    assert!(error.message.contains("is another in `list-amendments`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_component_sees_the_value_of_a_secret() {
    let home = Home::new();
    let toolbox = both(&home);
    let arguments = json!({ "n": 1, "note": "seen", "mode": "confess", "hidden": "hunter2-hunter2" });
    let error = fails(&toolbox, "echo", arguments).await;
    assert!(error.message.contains("seen") && error.message.contains("secret-value:"), "{}", error.message);
    assert!(!error.message.contains("hunter2"), "{}", error.message);
}
