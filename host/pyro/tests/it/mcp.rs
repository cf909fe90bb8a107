//! What an MCP client sees.

use std::io::{BufRead, BufReader, Write};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Client, Home, SOON, Wire, start_unread, wait_for_end, wait_for_pid, wait_for_success};

const VM_RUN: &[&str] = &["--profile", "vm-run"];
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
/// How soon a cancelled call must be gone.
const PROMPT: Duration = Duration::from_secs(2);

#[test]
fn the_handshake_of_every_revision_over_every_wire() {
    let home = Home::new();
    for wire in [Wire::Pipes, Wire::Sockets] {
        for (asked, agreed) in [
            ("2024-11-05", "2024-11-05"),
            ("2025-06-18", "2025-06-18"),
            ("2025-11-25", "2025-11-25"),
            ("2099-01-01", "2025-11-25"),
        ] {
            let mut client = Client::start(&home, VM_RUN, wire);
            let result = client.initialize(asked);
            assert_eq!(result["protocolVersion"], agreed, "{wire:?}");
            assert_eq!(result["serverInfo"]["name"], "pyro");
            assert_eq!(result["capabilities"], json!({"tools": {}}));
            assert!(client.close().0.success(), "{wire:?}");
        }
    }
}

#[test]
fn the_stateless_revision_needs_no_handshake() {
    let home = Home::new();
    for wire in [Wire::Pipes, Wire::Sockets] {
        let mut client = Client::start(&home, VM_RUN, wire);
        client.stateless();
        let discovered = client.request("server/discover", json!({}))["result"].clone();
        assert!(discovered["supportedVersions"].as_array().unwrap().contains(&json!("2026-07-28")), "{discovered}");
        let listed = client.request("tools/list", json!({}))["result"].clone();
        for result in [&discovered, &listed] {
            assert_eq!(result["resultType"], "complete", "{result}");
            assert_eq!(result["_meta"][SERVER_INFO]["name"], "pyro", "{result}");
            assert_eq!(result["ttlMs"], 60_000, "{result}");
            assert_eq!(result["cacheScope"], "private", "{result}");
        }
        // What an older client may do is unknown here.
        assert_eq!(client.request("ping", json!({}))["error"]["code"], -32601);
        // A subscription is acknowledged and ends with the server.
        let id = client.send("subscriptions/listen", json!({"notifications": {"toolsListChanged": true}}));
        let ack = client.next(SOON, |m| m["method"] == "notifications/subscriptions/acknowledged");
        assert!(ack.is_some(), "no acknowledgement for {id}");
        let (status, took) = client.close();
        assert!(status.success() && took < PROMPT, "{status} after {took:?}");
    }
}

#[test]
fn a_request_without_its_metadata_and_without_a_handshake_is_refused() {
    let home = Home::new();
    let mut client = Client::start(&home, VM_RUN, Wire::Pipes);
    client.notify("notifications/initialized", json!({}));
    client.notify("notifications/cancelled", json!({"requestId": 3}));
    client.line(r#"{"jsonrpc":"2.0","id":77,"result":{}}"#);
    assert_eq!(client.request("tools/list", json!({}))["error"]["code"], -32602);
    assert_eq!(client.request("ping", json!({}))["result"], json!({}));
    // None of it ended the server.
    assert_eq!(client.initialize("2025-11-25")["serverInfo"]["name"], "pyro");
}

#[test]
fn the_tools_are_those_of_the_profile_with_real_schemas() {
    let home = Home::new();
    let mut client = Client::ready(&home);
    let listed = client.request("tools/list", json!({}))["result"].clone();
    assert_eq!(listed["_meta"][SERVER_INFO]["name"], "pyro");
    assert!(listed.get("resultType").is_none() && listed.get("ttlMs").is_none(), "{listed}");
    let tools = listed["tools"].as_array().unwrap();
    let names: Vec<&Value> = tools.iter().map(|tool| &tool["name"]).collect();
    assert_eq!(names, ["vm_run"]);
    for tool in tools {
        assert_eq!(tool["inputSchema"]["type"], "object");
        assert_eq!(tool["inputSchema"]["additionalProperties"], false);
        assert_eq!(tool["outputSchema"]["type"], "object");
        assert!(tool["description"].as_str().is_some_and(|text| !text.is_empty()));
        for hint in ["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"] {
            assert!(tool["annotations"][hint].is_boolean(), "{hint}: {tool}");
        }
    }
    assert_eq!(client.request("tools/list", json!({}))["result"], listed);
    assert_eq!(client.request("tools/list", json!({"cursor": "2"}))["error"]["code"], -32602);
}

#[test]
fn wrong_arguments_are_results_that_say_what_to_do() {
    let home = Home::new();
    let mut client = Client::ready(&home);
    for (arguments, says) in [
        (json!({"environment": "debian:12", "command": "true", "timeout": 5}), "timeout_seconds"),
        (json!({"environment": "debian:12"}), "command"),
        (json!({"environment": "debian:12", "command": "true", "mem_mib": "lots"}), "mem_mib"),
        (json!({"environment": "debian:12", "command": "true", "vcpu_count": 0}), "vcpu_count"),
        (json!({}), "environment"),
        (json!({"environment": null, "command": "true"}), "environment"),
        (json!({"environment": "debian:12", "command": "x".repeat(12_000_000)}), "12000027 bytes"),
    ] {
        let result = client.call("vm_run", arguments)["result"].clone();
        let text = result["content"][0]["text"].as_str().unwrap();
        assert_eq!(result["isError"], true, "{says}: {text}");
        assert!(text.starts_with("error [invalid_argument]: "), "{text}");
        assert!(text.contains(says), "{says}: {text}");
        // The tool has an output schema, which an error does not satisfy.
        assert!(result.get("structuredContent").is_none(), "{result}");
        assert_eq!(result["_meta"]["pyro/error"]["code"], "invalid_argument");
        assert_eq!(result["_meta"][SERVER_INFO]["name"], "pyro");
    }
}

#[test]
fn an_unknown_environment_is_an_error_of_the_tool() {
    let home = Home::new();
    let mut client = Client::ready(&home);
    // Null stands for "not given".
    let arguments = json!({"environment": "debian:21", "command": "true", "timeout_seconds": null});
    let result = client.call("vm_run", arguments)["result"].clone();
    assert_eq!(result["isError"], true, "{result}");
    assert_eq!(result["_meta"]["pyro/error"]["code"], "unknown_environment", "{result}");
    assert!(result["content"][0]["text"].as_str().unwrap().contains("debian:12"), "{result}");
}

#[test]
fn faults_of_the_protocol_are_protocol_errors() {
    let home = Home::new();
    for stateless in [false, true] {
        let mut client = Client::start(&home, VM_RUN, Wire::Pipes);
        if stateless {
            client.stateless();
        } else {
            client.initialize("2025-11-25");
        }
        let unknown = client.call("vm_rum", json!({}))["error"].clone();
        assert_eq!(unknown["code"], -32602, "{unknown}");
        assert!(unknown["message"].as_str().unwrap().contains("did you mean `vm_run`?"), "{unknown}");
        assert_eq!(unknown["data"]["tools"], json!(["vm_run"]));
        for params in [json!({"nome": "vm_run"}), json!({"name": "vm_run", "arguments": [1]}), json!({"name": 5})] {
            let answer = client.request("tools/call", params.clone());
            assert_eq!(answer["error"]["code"], -32602, "{params}: {answer}");
        }
        for (method, params) in [
            ("no/such/method", json!({})),
            ("resources/read", json!({"uri": "x:y"})),
            ("logging/setLevel", json!({"level": "info"})),
        ] {
            let answer = client.request(method, params);
            assert_eq!(answer["error"]["code"], -32601, "{answer}");
            assert_eq!(answer["error"]["message"], format!("unknown method `{method}`"));
        }
    }
}

#[test]
fn a_handshake_with_a_mistake_names_it_and_can_be_made_again() {
    let home = Home::new();
    let mut client = Client::start(&home, VM_RUN, Wire::Pipes);
    for (params, named) in [
        (json!({"protocolVersion": "2025-11-25", "capabilities": {}}), "clientInfo"),
        (json!({"protocolVersion": 5, "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}), "5"),
    ] {
        let error = client.request("initialize", params)["error"].clone();
        assert_eq!(error["code"], -32602, "{error}");
        assert!(error["message"].as_str().unwrap().contains(named), "{error}");
    }
    client.initialize("2025-11-25");
    assert!(client.request("tools/list", json!({}))["result"]["tools"].is_array());
}

#[test]
fn every_line_that_has_an_id_is_answered() {
    let home = Home::new();
    let mut client = Client::ready(&home);
    let deep = |open: &str| open.repeat(100_000);
    for (line, id, code) in [
        (format!(r#"{{"jsonrpc":"2.0","id":900,"method":"tools/call","params":{}"#, deep("[")), json!(900), -32700),
        (format!(r#"{{"method":"tools/call","params":{}{},"id":"d"}}"#, deep("["), deep("]")), json!("d"), -32700),
        (r#"{"jsonrpc":"2.0","id":901,"method":"tools/list""#.to_owned(), json!(901), -32700),
        (r#"{"jsonrpc":"2.0","id":902,"method":5}"#.to_owned(), json!(902), -32600),
        (r#"{"jsonrpc":"1.0","id":903,"method":"tools/list"}"#.to_owned(), json!(903), -32600),
        (r#"{"jsonrpc":"2.0","id":9223372036854775808,"method":"tools/list"}"#.to_owned(), json!(1_u64 << 63), -32600),
        (r#"{"jsonrpc":"2.0","id":906,"method":"tools/call","params":[]}"#.to_owned(), json!(906), -32602),
        (r#"{"jsonrpc":"2.0","id":907,"method":"tools/list","params":"x"}"#.to_owned(), json!(907), -32602),
        (r#"{"jsonrpc":"2.0","id":908,"method":"tools/list","params":{"_meta":5}}"#.to_owned(), json!(908), -32602),
        (r#"{"jsonrpc":"2.0","id":909,"method":"tools/list","params":{"cursor":5}}"#.to_owned(), json!(909), -32602),
        (r#"[{"jsonrpc":"2.0","id":904,"method":"tools/list"}]"#.to_owned(), json!(904), -32600),
        ("[]".to_owned(), Value::Null, -32600),
        ("5".to_owned(), Value::Null, -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"tools/list"}"#.to_owned(), Value::Null, -32600),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"tools/list"}"#.to_owned(), Value::Null, -32600),
    ] {
        client.line(&line);
        let short: String = line.chars().take(100).collect();
        let answer = client.next(SOON, |m| m.get("method").is_none()).unwrap_or_else(|| panic!("no answer to {short}"));
        assert_eq!(answer["id"], id, "{short}: {answer}");
        assert_eq!(answer["error"]["code"], code, "{short}: {answer}");
        // The schema of MCP knows errors without an id, but none with null.
        assert_eq!(answer.get("id").is_none(), id.is_null(), "{answer}");
    }
    let mut not_utf8 = br#"{"jsonrpc":"2.0","id":905,"method":"tools/list","params":{"a":""#.to_vec();
    not_utf8.extend(b"\xff\xfe\"}}\n");
    client.raw(&not_utf8);
    assert_eq!(client.answer(&json!(905))["error"]["code"], -32700);
}

#[test]
fn noise_is_passed_over() {
    let home = Home::new();
    let mut client = Client::ready(&home);
    client.raw(b"\n\r\n   \nnot json\n\xff\xfe\x00\n{\"jsonrpc\":\"2.0\",\"method\":\"x/y\"}\n");
    client.line(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":12345}}"#);
    client.raw(b"\xEF\xBB\xBF{\"jsonrpc\":\"2.0\",\"id\":800,\"method\":\"tools/list\"}\r\n");
    let answer = client.next(SOON, |_| true).unwrap();
    assert_eq!(answer["id"], 800, "{answer}");
    assert!(answer["result"]["tools"].is_array());
}

#[test]
fn a_line_that_is_too_long_is_answered_and_the_next_one_read() {
    let home = Home::new();
    for wire in [Wire::Pipes, Wire::Sockets] {
        let mut client = Client::start(&home, VM_RUN, wire);
        client.initialize("2025-11-25");
        let filler = "x".repeat(17 * 1024 * 1024);
        // Where the id stands depends on the client.
        client.line(&format!(r#"{{"jsonrpc":"2.0","id":700,"method":"tools/call","params":{{"a":"{filler}"}}}}"#));
        client.line(&format!(r#"{{"method":"tools/call","params":{{"a":"{filler}"}},"jsonrpc":"2.0","id":701}}"#));
        for id in [700, 701] {
            let answer = client.answer(&json!(id));
            assert_eq!(answer["error"]["code"], -32600, "{answer}");
            assert!(answer["error"]["message"].as_str().unwrap().contains("16777216"), "{answer}");
        }
        assert!(client.request("tools/list", json!({}))["result"]["tools"].is_array());
    }
}

/// Begins a call that waits for a program that never ends: the environment is missing, and what builds it sleeps.
fn begin_endless_call(home: &Home, client: &mut Client) -> (i64, i32) {
    let pid_file = home.path().join("mmdebstrap.pid");
    let id = client.send(
        "tools/call",
        json!({"name": "vm_run", "arguments": {"environment": "debian:12", "command": "true"},
               "_meta": {"progressToken": "t"}}),
    );
    (id, wait_for_pid(&pid_file))
}

fn endless_home() -> Home {
    let home = Home::new();
    home.sleeping_program("mmdebstrap");
    home
}

#[test]
fn a_cancelled_call_ends_at_once_and_is_not_answered() {
    let home = endless_home();
    let mut client = Client::ready(&home);
    let (id, pid) = begin_endless_call(&home, &mut client);
    // Others are served meanwhile.
    assert!(client.request("tools/list", json!({}))["result"]["tools"].is_array());
    client.notify("notifications/cancelled", json!({"requestId": id, "reason": "enough"}));
    assert!(wait_for_end(pid) < PROMPT);
    assert_eq!(client.next(Duration::from_millis(500), |m| m["id"] == json!(id)), None);
    assert!(client.request("tools/list", json!({}))["result"]["tools"].is_array());
    assert!(client.close().0.success());
}

#[test]
fn the_end_of_input_ends_calls_and_server() {
    for wire in [Wire::Pipes, Wire::Sockets] {
        let home = endless_home();
        let mut client = Client::start(&home, VM_RUN, wire);
        client.initialize("2025-11-25");
        let (_, pid) = begin_endless_call(&home, &mut client);
        let (status, took) = client.close();
        assert!(status.success(), "{wire:?}: {status}");
        assert!(took < PROMPT, "{wire:?}: {took:?}");
        assert!(wait_for_end(pid) < PROMPT, "{wire:?}");
    }
}

#[test]
fn signals_end_the_server_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let home = endless_home();
        let mut client = Client::ready(&home);
        let (id, pid) = begin_endless_call(&home, &mut client);
        client.signal(signal);
        let answer = client.answer(&json!(id));
        assert_eq!(answer["result"]["_meta"]["pyro/error"]["code"], "cancelled", "{answer}");
        let (status, took) = client.wait();
        assert_eq!(status.code(), Some(0), "{signal:?}");
        assert!(took < PROMPT, "{signal:?}: {took:?}");
        assert!(wait_for_end(pid) < PROMPT);
    }
    // Before the handshake, too.
    let home = Home::new();
    let mut client = Client::start(&home, VM_RUN, Wire::Pipes);
    assert_eq!(client.request("ping", json!({}))["result"], json!({}));
    client.signal(Signal::TERM);
    assert_eq!(client.wait().0.code(), Some(0));
}

#[test]
fn input_that_ends_at_once_is_no_failure() {
    let home = Home::new();
    for wire in [Wire::Pipes, Wire::Sockets] {
        assert_eq!(Client::start(&home, VM_RUN, wire).close().0.code(), Some(0));
    }
}

#[test]
fn a_silent_call_gives_signs_of_life() {
    let home = endless_home();
    let mut client = Client::ready(&home);
    let started = Instant::now();
    begin_endless_call(&home, &mut client);
    let mut last = f64::NEG_INFINITY;
    let mut latest = started;
    while started.elapsed() < Duration::from_secs(12) {
        let Some(message) = client.next(Duration::from_secs(10), |m| m["method"] == "notifications/progress") else {
            panic!("ten seconds of silence, {:?} after the last sign", latest.elapsed());
        };
        assert_eq!(message["params"]["progressToken"], "t");
        let progress = message["params"]["progress"].as_f64().unwrap();
        assert!(progress > last, "{progress} after {last}");
        last = progress;
        latest = Instant::now();
    }
}

#[test]
fn answers_to_a_client_that_reads_late_are_complete_and_in_order() {
    let home = Home::new();
    for wire in [Wire::Pipes, Wire::Sockets] {
        let mut client = Client::start(&home, VM_RUN, wire);
        client.initialize("2025-11-25");
        // Far more than the stream holds.
        let lines: String = (0..2_000)
            .map(|n| format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"tools/list\"}}\n", 10_000 + n))
            .collect();
        client.raw(lines.as_bytes());
        for n in 0..2_000 {
            let answer = client.answer(&json!(10_000 + n));
            assert!(answer["result"]["tools"].is_array(), "{answer}");
        }
        assert!(client.close().0.success());
    }
}

/// What a client does that has sent much and read nothing.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    Signal,
    EndOfInput,
    Both,
}

#[test]
fn a_client_that_reads_nothing_holds_nobody_up() {
    let home = Home::new();
    for (wire, lists) in [(Wire::Pipes, 2), (Wire::Pipes, 40_000), (Wire::Sockets, 40_000)] {
        thread::scope(|scope| {
            for leaving in [Leaving::Signal, Leaving::EndOfInput, Leaving::Both] {
                let home = &home;
                scope.spawn(move || leave_unread(home, wire, lists, leaving));
            }
        });
    }
}

fn leave_unread(home: &Home, wire: Wire, lists: usize, leaving: Leaving) {
    let (server, mut input, output) = start_unread(home, &["--profile", "workspace-extended"], wire);
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
    }});
    writeln!(input, "{hello}").unwrap();
    let mut output = BufReader::new(output);
    assert!(output.read_line(&mut String::new()).unwrap() > 0);
    writeln!(input, r#"{{"jsonrpc":"2.0","method":"notifications/initialized"}}"#).unwrap();

    rustix::io::ioctl_fionbio(&input, true).unwrap();
    let mut refused = 0;
    for id in 1..=lists {
        let line = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"tools/list\"}}\n");
        // A server that has taken nothing for a second takes no more.
        refused = 0;
        while refused < 100 && input.write_all(line.as_bytes()).is_err() {
            refused += 1;
            thread::sleep(Duration::from_millis(10));
        }
        if refused == 100 {
            break;
        }
    }
    assert_eq!(refused == 100, lists > 1000, "{wire:?} {lists}: how much it takes has a limit");
    let pid = server.id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")?.trim().parse().ok());
    let peak: u64 = peak.unwrap();
    assert!(peak < 640 * 1024, "{wire:?} {lists}: {peak} KiB");

    match leaving {
        Leaving::Signal => {
            let pid = rustix::process::Pid::from_child(&server);
            rustix::process::kill_process(pid, Signal::TERM).unwrap();
            wait_for_success(server, &format!("{wire:?} {lists} {leaving:?}"));
            drop((input, output));
        }
        Leaving::EndOfInput => {
            drop(input);
            wait_for_success(server, &format!("{wire:?} {lists} {leaving:?}"));
            drop(output);
        }
        Leaving::Both => {
            drop((input, output));
            wait_for_success(server, &format!("{wire:?} {lists} {leaving:?}"));
        }
    }
}
