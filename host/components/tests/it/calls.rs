//! Calls: what a component may return, and every way in which one can go wrong.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pyro_components::{CallObserver, CallOptions, ContentBody, Toolbox};
use serde_json::{Value, json};

use crate::support::{Home, arguments, call, text};

fn toolbox(home: &Home, extra: &str) -> Toolbox {
    home.toolbox("behaviours", extra).unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arguments_go_in_and_results_come_out() {
    let home = Home::new();
    let toolbox = toolbox(&home, "config = { colour = \"red\", depth = [1, 2] }");
    assert_eq!(text(&call(&toolbox, "echo", json!({ "n": 5.0 })).await.unwrap()), r#"{"n":5}"#);
    let config = call(&toolbox, "show_config", json!({})).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(text(&config)).unwrap(), json!({ "colour": "red", "depth": [1, 2] }));
    let kept = call(&toolbox, "keep_promise", json!({})).await.unwrap();
    assert_eq!(Value::Object(kept.structured.unwrap()), json!({ "answer": 42 }));
    let blob = call(&toolbox, "blob", json!({})).await.unwrap();
    assert_eq!(blob.content[0].mime, "text/x-test");
    assert_eq!(blob.content[0].body, ContentBody::Bytes("héllo".as_bytes().to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_float_of_the_profile_is_an_integer_too() {
    let home = Home::new();
    let fixed = toolbox(&home, "[tool.echo]\nfixed = { n = 512.0 }");
    assert_eq!(text(&call(&fixed, "echo", json!({})).await.unwrap()), r#"{"n":512}"#);
    let default = toolbox(&home, "[tool.echo]\ndefault = { n = 7.0 }");
    assert_eq!(text(&call(&default, "echo", json!({})).await.unwrap()), r#"{"n":7}"#);
    assert_eq!(default.tool("echo").unwrap().input_schema["properties"]["n"]["default"].to_string(), "7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typed_call_takes_and_gives_what_its_caller_uses() {
    let home = Home::new();
    let toolbox = toolbox(&home, "");
    let kept: std::collections::HashMap<String, u32> = toolbox.call_as("keep_promise", &json!({})).await.unwrap();
    assert_eq!(kept["answer"], 42);
    let other = toolbox.call_as::<std::collections::HashMap<String, bool>>("keep_promise", &json!({})).await;
    assert_eq!(other.unwrap_err().code, "plugin_invalid");
    let no_object = toolbox.call_as::<Value>("keep_promise", &json!([1])).await;
    assert_eq!(no_object.unwrap_err().code, "invalid_argument");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_end_is_a_typed_error_and_disturbs_nobody() {
    let home = Home::new();
    let toolbox = toolbox(&home, "limits = { memory_mib = 16, cpu_ms = 800, call_seconds = 600, handles = 100 }");
    toolbox.warm();
    let cases = [
        ("spin", 0, "cpu_limit", "used more than 800 ms of CPU time"),
        ("allocate", 0, "memory_limit", "asked for more than 16 MiB of memory"),
        ("trap", 0, "plugin_trap", "unreachable"),
        ("panic", 3, "plugin_trap", "a message with 3 in it"),
        ("recurse", 0, "plugin_trap", "trapped: wasm trap"),
        ("exit", 0, "plugin_trap", "ended its own instance"),
        ("huge_text", 2_000_000, "output_limit", "returned 2000000 bytes, more than 1048576"),
        ("huge_structured", 2_000_000, "output_limit", "more than 1048576"),
        ("hand_over", 8_000_000, "output_limit", "to the host at once"),
        ("bad_json", 0, "plugin_invalid", "not a JSON object"),
        ("not_an_object", 0, "plugin_invalid", "not a JSON object"),
        ("break_promise", 0, "plugin_invalid", "`answer` must be an integer, not \"many\""),
        ("forget_promise", 0, "plugin_invalid", "no structured result"),
        ("handle_flood", 5_000, "handle_limit", "more than 100 handles"),
        ("blob_flood", 66, "memory_limit", "more than 64 MiB of blobs"),
        ("refuse", 0, "plugin_error", "control \u{fffd}[31m characters"),
    ];
    let others = tokio::spawn({
        let toolbox = toolbox.clone();
        async move {
            for n in 0..200 {
                let outcome = call(&toolbox, "echo", json!({ "n": n })).await.unwrap();
                assert_eq!(text(&outcome), format!("{{\"n\":{n}}}"));
            }
        }
    });
    let hostile = cases.map(|(tool, n, code, words)| {
        let toolbox = toolbox.clone();
        tokio::spawn(async move {
            let error = call(&toolbox, tool, json!({ "n": n })).await.expect_err(tool);
            assert_eq!(error.code, code, "{tool}: {error}");
            assert!(error.message.contains(words), "{tool}: {error}");
        })
    });
    for task in hostile {
        task.await.unwrap();
    }
    others.await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_loop_does_not_hold_up_the_only_thread() {
    let home = Home::new();
    let toolbox = toolbox(&home, "limits = { cpu_ms = 300, call_seconds = 600 }");
    call(&toolbox, "echo", json!({})).await.unwrap();
    let loops: Vec<_> = (0..3)
        .map(|_| {
            let toolbox = toolbox.clone();
            tokio::spawn(async move { call(&toolbox, "spin", json!({})).await })
        })
        .collect();
    let mut served = 0;
    while !loops.iter().all(|task| task.is_finished()) {
        call(&toolbox, "echo", json!({})).await.unwrap();
        served += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Held up, the first would get through only after the loops had ended, and there would be no second.
    assert!(served >= 2, "only {served} calls got through");
    for task in loops {
        assert_eq!(task.await.unwrap().unwrap_err().code, "cpu_limit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wall_clock_ends_a_call_that_only_waits() {
    let home = Home::new();
    let toolbox = toolbox(&home, "limits = { call_seconds = 1 }");
    call(&toolbox, "echo", json!({})).await.unwrap();
    let started = Instant::now();
    let error = call(&toolbox, "rest", json!({ "n": 60_000 })).await.unwrap_err();
    assert_eq!(error.code, "timeout");
    assert!(error.message.contains("within 1 s"), "{error}");
    assert!(error.hint.unwrap().contains("call_seconds"));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_call_ends_at_once_and_leaves_its_turn() {
    let home = Home::new();
    let toolbox = toolbox(&home, "[host]\nmax_calls = 1");
    call(&toolbox, "echo", json!({})).await.unwrap();
    for tool in ["rest", "spin"] {
        let started = Instant::now();
        let pending = call(&toolbox, tool, json!({ "n": 60_000 }));
        assert!(tokio::time::timeout(Duration::from_millis(100), pending).await.is_err());
        // The only turn is free again.
        call(&toolbox, "echo", json!({})).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(20), "{tool}: {:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_words_of_a_plugin_are_bounded_and_harmless() {
    let home = Home::new();
    let toolbox = toolbox(&home, "");
    let error = call(&toolbox, "stderr_flood", json!({ "n": 1000 })).await.unwrap_err();
    assert_eq!(error.code, "plugin_trap");
    assert!(error.message.contains("panicked: ") && error.message.contains("after many lines"), "{error}");
    let stderr = error.details["stderr"].as_str().unwrap();
    assert!(stderr.len() < 4096, "{} bytes", stderr.len());
    assert!(stderr.contains("line 999") && !stderr.contains('\u{1b}'), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_log_lines_costs_the_lines_only() {
    let home = Home::new();
    let toolbox = toolbox(&home, "");
    assert_eq!(text(&call(&toolbox, "log_flood", json!({ "n": 3000 })).await.unwrap()), "logged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_arguments_never_reach_the_component() {
    let home = Home::new();
    let toolbox = toolbox(&home, "[tool.echo]\nhide = [\"n\"]\n[tool.huge_text]\nfixed = { n = 3 }");
    let fails = async |tool: &str, value: Value| call(&toolbox, tool, value).await.unwrap_err();
    let error = fails("panic", json!({ "m": 1 })).await;
    assert_eq!((error.code.as_str(), error.message.as_str()), ("invalid_argument", "panic: unknown argument `m`"));
    assert_eq!(error.hint.unwrap(), "did you mean `n`?");
    let error = fails("panic", json!({ "n": -1 })).await;
    assert_eq!(error.message, "panic: `n` must be at least 0, not -1");
    let error = fails("echo", json!({ "n": 1 })).await;
    assert!(error.hint.unwrap().contains("this profile does not offer `n`"));
    let error = fails("huge_text", json!({ "n": 4 })).await;
    assert!(error.hint.unwrap().contains("this profile fixes `n` to 3"));
    assert_eq!(text(&call(&toolbox, "huge_text", json!({})).await.unwrap()), "xxx");
    let error = fails("ehco", json!({})).await;
    assert_eq!((error.code.as_str(), error.hint.as_deref()), ("unknown_tool", Some("did you mean `echo`?")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_is_passed_and_shown() {
    let home = Home::new();
    let toolbox = toolbox(&home, "[tool.echo]\ndefault = { n = 9 }");
    let schema = &toolbox.tool("echo").unwrap().input_schema;
    assert_eq!(schema["properties"]["n"]["default"], 9);
    assert_eq!(schema["properties"]["n"]["description"], "how much (at least 0, default 9)");
    assert_eq!(text(&call(&toolbox, "echo", json!({})).await.unwrap()), r#"{"n":9}"#);
    assert_eq!(text(&call(&toolbox, "echo", json!({ "n": 1 })).await.unwrap()), r#"{"n":1}"#);
}

#[derive(Default)]
struct Heard(Mutex<Vec<(f64, Option<String>)>>);

impl CallObserver for Heard {
    fn progress(&self, done: f64, _: Option<f64>, message: Option<&str>) {
        self.0.lock().unwrap().push((done, message.map(str::to_owned)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_reaches_the_observer_and_time_left_the_component() {
    let home = Home::new();
    let toolbox = toolbox(&home, "limits = { call_seconds = 50 }");
    let heard = Arc::new(Heard::default());
    let options = CallOptions { observer: Arc::clone(&heard) as Arc<dyn CallObserver>, ..CallOptions::default() };
    let outcome = toolbox.call("rest", arguments(json!({ "n": 30 })), options).await.unwrap();
    assert_eq!(*heard.0.lock().unwrap(), [(1.0, Some("resting".to_owned()))]);
    let left: u64 = text(&outcome).trim_end_matches(" ms left").parse().unwrap();
    assert!((30_000..=49_970).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_come_from_the_engine_within_the_grant() {
    let home = Home::new();
    let granted = home.toolbox("uses_machines", "grants = [\"machines\", \"exec\"]").unwrap();
    let error = call(&granted, "use_machine", json!({})).await.unwrap_err();
    assert_eq!(error.code, "unknown_environment", "{error}");
    let scoped = "grants = { machines = { environments = [\"debian:*\"] }, exec = {} }";
    let scoped = home.toolbox("uses_machines", scoped).unwrap();
    let error = call(&scoped, "use_machine", json!({})).await.unwrap_err();
    assert_eq!(error.code, "denied");
    assert!(error.message.contains("`nowhere:0` is outside the grant"), "{error}");
}
