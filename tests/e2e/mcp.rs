//! `pyro mcp serve`: what a client sees.

use std::thread;
use std::time::{Duration, Instant};

use pyro_tests::{Client, Home, Transport};
use serde_json::{Value, json};

const CLEAN: Duration = Duration::from_secs(5);
const PROFILE: &[&str] = &["--profile", "vm-run"];

fn run(command: &str) -> Value {
    json!({ "environment": "debian:12", "command": command })
}

/// What both eras promise of a result: text equal to the structured content,
/// and the server named in `_meta`.
#[track_caller]
fn check_result(result: &Value) {
    let text = result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {result}"));
    let parsed: Value = serde_json::from_str(text).expect("the text is JSON");
    assert_eq!(parsed, result["structuredContent"]);
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "pyro", "{result}");
}

#[test]
fn a_client_of_either_era_over_either_transport_runs_a_command() {
    for transport in [Transport::Pipes, Transport::SocketPair] {
        for stateless in [false, true] {
            let home = Home::new();
            let mut client = Client::connect(&home, PROFILE, transport);
            if stateless {
                client.stateless();
                let discovered = client.request("server/discover", json!({}));
                assert!(
                    discovered["result"]["supportedVersions"]
                        .as_array()
                        .is_some_and(|list| list.contains(&json!("2026-07-28"))),
                    "{discovered}"
                );
            } else {
                let server = client.initialize();
                assert_eq!(server["protocolVersion"], "2025-11-25");
                assert_eq!(server["serverInfo"]["name"], "pyro");
            }
            let tools = client.request("tools/list", json!({}));
            let tools = tools["result"]["tools"].as_array().expect("a list").clone();
            assert_eq!(tools.len(), 1, "{tools:?}");
            assert_eq!(tools[0]["name"], "vm_run");
            assert_eq!(tools[0]["inputSchema"]["type"], "object");
            assert_eq!(tools[0]["inputSchema"]["additionalProperties"], false);
            assert!(tools[0]["outputSchema"]["properties"]["exit_code"].is_object());
            assert!(home.processes().iter().all(|(_, line)| !line.contains("vmm")), "listing started a machine");

            let result = client.call("vm_run", run("git --version; echo oops >&2; exit 3"));
            check_result(&result);
            let structured = &result["structuredContent"];
            assert_ne!(result["isError"], true);
            assert_eq!(structured["exit_code"], 3);
            assert!(structured["stdout"].as_str().is_some_and(|text| text.starts_with("git version")), "{structured}");
            assert_eq!(structured["stderr"], "oops\n");

            assert!(client.close_within(CLEAN).success(), "{transport:?}");
            home.expect_clean_within(CLEAN);
        }
    }
}

#[test]
fn calls_run_in_parallel() {
    let home = Home::new();
    let mut client = Client::initialized(&home, PROFILE);
    // The guests' clocks are set from the host's, so each can say when its command ran.
    let command = "date +%s.%N; sleep 5; date +%s.%N";
    let ids = [(); 2].map(|()| client.send("tools/call", json!({ "name": "vm_run", "arguments": run(command) })));
    let [one, two] = ids.map(|id| {
        let answer = client.answer(id);
        let stdout = answer["result"]["structuredContent"]["stdout"].as_str().expect("text").to_owned();
        let times: Vec<f64> = stdout.lines().map(|line| line.parse().expect("a time")).collect();
        (times[0], times[1])
    });
    assert!(one.0 < two.1 && two.0 < one.1, "one after the other: {one:?}, {two:?}");
}

#[test]
fn a_cancelled_call_ends_its_machine_and_is_not_answered() {
    let home = Home::new();
    let mut client = Client::initialized(&home, PROFILE);
    let id = client.send("tools/call", json!({ "name": "vm_run", "arguments": run("sleep 600") }));
    let begin = Instant::now();
    while !home.processes().iter().any(|(_, line)| line.contains("vmm")) {
        assert!(begin.elapsed() < CLEAN, "no machine was started");
        thread::sleep(Duration::from_millis(20));
    }
    // Long enough for the command to run, whatever the boot takes.
    thread::sleep(Duration::from_secs(4));
    client.notify("notifications/cancelled", json!({ "requestId": id, "reason": "enough" }));
    home_has_no_machine(&home);
    assert_eq!(client.next(Duration::from_secs(1), |message| message["id"] == json!(id)), None);
    // The server goes on.
    assert!(client.request("tools/list", json!({}))["result"]["tools"].is_array());
    assert!(client.close_within(CLEAN).success());
}

fn home_has_no_machine(home: &Home) {
    let begin = Instant::now();
    while home.processes().iter().any(|(_, line)| line.contains("vmm") || line.contains("qemu")) {
        assert!(begin.elapsed() < CLEAN, "still there: {:?}", home.processes());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_end_of_input_ends_the_server_and_its_machines() {
    for transport in [Transport::Pipes, Transport::SocketPair] {
        let home = Home::new();
        let mut client = Client::connect(&home, PROFILE, transport);
        client.initialize();
        client.send("tools/call", json!({ "name": "vm_run", "arguments": run("sleep 600") }));
        thread::sleep(Duration::from_secs(3));
        client.close_within(CLEAN);
        home.expect_clean_within(CLEAN);
    }
}

#[test]
fn large_output_is_bounded_and_says_so() {
    let home = Home::new();
    let mut client = Client::initialized(&home, PROFILE);
    let result = client.call("vm_run", run("echo begin; head -c 100000000 /dev/zero | tr '\\0' x; echo; echo end"));
    check_result(&result);
    let structured = &result["structuredContent"];
    assert_eq!(structured["exit_code"], 0);
    assert_eq!(structured["stdout_bytes"], 100_000_011);
    assert_eq!(structured["truncated"], true);
    let stdout = structured["stdout"].as_str().expect("text");
    assert!(stdout.starts_with("begin\n") && stdout.ends_with("end\n"), "{} bytes", stdout.len());
    assert!(stdout.len() < 1_000_000, "{} bytes", stdout.len());
}

#[test]
fn output_that_is_not_utf8_is_decoded_and_flagged() {
    let home = Home::new();
    let mut client = Client::initialized(&home, PROFILE);
    let result = client.call("vm_run", run("printf 'a\\377b'"));
    check_result(&result);
    assert_eq!(result["structuredContent"]["stdout"], "a\u{fffd}b");
    assert_eq!(result["structuredContent"]["encoding_lossy"], true);
}

#[test]
fn a_timeout_is_a_result_with_the_output_so_far() {
    let home = Home::new();
    let mut client = Client::initialized(&home, PROFILE);
    let result = client.call(
        "vm_run",
        json!({ "environment": "debian:12", "command": "echo so far; sleep 600", "timeout_seconds": 5 }),
    );
    check_result(&result);
    assert_ne!(result["isError"], true);
    assert_eq!(result["structuredContent"]["timed_out"], true);
    assert_eq!(result["structuredContent"]["exit_code"], 124);
    assert_eq!(result["structuredContent"]["stdout"], "so far\n");
}

#[test]
fn unknown_and_wrong_arguments_are_errors_a_model_can_act_on() {
    let home = Home::new();
    let mut client = Client::initialized(&home, PROFILE);
    for (arguments, says) in [
        (json!({ "environment": "debian:12", "command": "true", "timeout": 5 }), "timeout_seconds"),
        (json!({ "environment": "debian:12", "command": "true", "network": true }), "network"),
        (json!({ "environment": "debian:12", "command": "true", "allow_host_compat": true }), "host"),
        (json!({ "environment": "debian:12" }), "command"),
        (json!({ "environment": "debian:12", "command": "true", "mem_mib": "lots" }), "mem_mib"),
        (json!({ "environment": "debian:12", "command": "true", "mem_mib": 1 }), "256"),
        (json!({ "environment": "debian:77", "command": "true" }), "debian:12"),
    ] {
        let result = client.call("vm_run", arguments.clone());
        assert_eq!(result["isError"], true, "{arguments}: {result}");
        let text = result["content"][0]["text"].as_str().expect("text");
        assert!(text.contains(says), "{arguments}: {says:?} is not in {text:?}");
    }
    let unknown = client.request("tools/call", json!({ "name": "vm_rum", "arguments": {} }));
    assert_eq!(unknown["error"]["code"], -32602, "{unknown}");
    assert!(home.processes().iter().all(|(_, line)| !line.contains("vmm")), "a refused call started a machine");
}

#[test]
fn progress_is_reported_during_a_long_call() {
    let home = Home::new();
    let mut client = Client::initialized(&home, PROFILE);
    let id = client.send(
        "tools/call",
        json!({ "name": "vm_run", "arguments": run("sleep 11"), "_meta": { "progressToken": "t" } }),
    );
    let mut last = -1.0;
    let mut count = 0;
    while let Some(message) = client.next(Duration::from_secs(30), |message| {
        message["method"] == "notifications/progress" || message["id"] == json!(id)
    }) {
        if message["id"] == json!(id) {
            break;
        }
        assert_eq!(message["params"]["progressToken"], "t");
        let done = message["params"]["progress"].as_f64().expect("a number");
        assert!(done > last, "{done} after {last}");
        last = done;
        count += 1;
    }
    assert!(count >= 1, "no progress in more than ten seconds");
}

#[test]
fn malformed_input_does_not_end_the_server() {
    let home = Home::new();
    let mut client = Client::initialized(&home, PROFILE);
    client.send_line(b"this is not json");
    client.send_line(b"");
    client.send_line(b"\xff\xfe\x00");
    client.send_line(b"[]");
    client.send_line(
        &[b"{\"jsonrpc\":\"2.0\",\"id\":99,\"method\":\"x\",\"params\":".as_slice(), &b"[".repeat(100_000)].concat(),
    );
    client.send_line(b"{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"tools/list\"}");
    let wrong = client.request("tools/call", json!({ "nome": "vm_run" }));
    assert_eq!(wrong["error"]["code"], -32602, "{wrong}");
    let unknown = client.request("no/such/method", json!({}));
    assert_eq!(unknown["error"]["code"], -32601, "{unknown}");
    assert!(client.request("tools/list", json!({}))["result"]["tools"].is_array());
    assert!(client.close_within(CLEAN).success());
}
