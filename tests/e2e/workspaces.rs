//! Workspaces: the whole of a session, over the command line and over MCP.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pyro_tests::{Client, Home};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::{Value, json};

const CLEAN: Duration = Duration::from_secs(10);
const SECRET: &str = "swordfish-4711";

/// A directory of the host to start from.
fn seed(home: &Home) {
    fs::create_dir_all(home.path().join("seed/src")).expect("the home is writable");
    fs::write(home.path().join("seed/src/main.py"), "print('hello')\n").expect("the home is writable");
    fs::write(home.path().join("seed/notes.txt"), "one\ntwo\nthree\n").expect("the home is writable");
}

#[track_caller]
fn ok(home: &Home, args: &[&str]) -> String {
    let run = home.run(args);
    run.expect_code(0);
    run.text().to_owned()
}

#[track_caller]
fn json_of(home: &Home, args: &[&str]) -> Value {
    let mut all = args.to_vec();
    let before_words = all.iter().position(|word| *word == "--").unwrap_or(all.len());
    all.insert(before_words, "--json");
    let run = home.run(&all);
    run.expect_code(0);
    run.json()
}

#[test]
fn a_whole_session_on_the_command_line() {
    whole_session(&Home::new(), CLEAN);
}

/// Goes through a session once, on the command line. Nothing may be left `clean` after its end.
pub(crate) fn whole_session(home: &Home, clean: Duration) {
    seed(home);
    let secret = format!("TOKEN={SECRET}");
    let id = ok(
        home,
        &[
            "workspace",
            "create",
            "debian:12",
            "--seed-path",
            "seed",
            "--name",
            "s",
            "--label",
            "a=b",
            "--secret",
            &secret,
            "--id-only",
        ],
    );
    let id = id.trim();

    // Edit and run.
    ok(home, &["workspace", "file", "write", id, "src/new.py", "--text", "print('new')\n"]);
    let run = home.run(&["workspace", "exec", id, "--", "python3 src/main.py; python3 src/new.py; exit 3"]);
    run.expect_code(3);
    assert_eq!(run.text(), "hello\nnew\n");
    let patch = "--- a/notes.txt\n+++ b/notes.txt\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n";
    ok(home, &["workspace", "patch", "apply", id, "--patch", patch]);
    assert_eq!(ok(home, &["workspace", "file", "read", id, "notes.txt", "--content-only"]), "one\nTWO\nthree\n");
    let diff = ok(home, &["workspace", "diff", id]);
    assert!(diff.contains("+TWO") && diff.contains("+++ b/src/new.py"), "{diff}");
    let listed = json_of(home, &["workspace", "file", "list", id, "--recursive"]);
    assert!(listed.to_string().contains("/workspace/src/new.py"), "{listed}");
    ok(home, &["workspace", "export", id, "src", "--output", "out"]);
    assert_eq!(fs::read_to_string(home.path().join("out/new.py")).expect("it was exported"), "print('new')\n");

    // Snapshots and reset.
    ok(home, &["workspace", "snapshot", "create", id, "edited"]);
    ok(home, &["workspace", "reset", id]);
    assert_eq!(ok(home, &["workspace", "file", "read", id, "notes.txt", "--content-only"]), "one\ntwo\nthree\n");
    ok(home, &["workspace", "reset", id, "--snapshot", "edited"]);
    assert_eq!(ok(home, &["workspace", "file", "read", id, "notes.txt", "--content-only"]), "one\nTWO\nthree\n");

    // A secret reaches the command and no output.
    let run = home.run(&[
        "workspace",
        "exec",
        id,
        "--secret-env",
        "TOKEN",
        "--",
        "echo $TOKEN; echo ${#TOKEN}; echo -n $TOKEN | base64",
    ]);
    run.expect_code(0);
    assert!(!run.text().contains(SECRET) && !run.text().contains("c3dvcmRmaXNo"), "{}", run.text());
    assert!(run.text().contains(&SECRET.len().to_string()), "{}", run.text());
    let logs = ok(home, &["workspace", "logs", id, "--json"]);
    assert!(!logs.contains(SECRET), "{logs}");

    // A shell.
    let shell = ok(home, &["workspace", "shell", "open", id, "--id-only"]);
    let shell = shell.trim();
    ok(home, &["workspace", "shell", "write", id, shell, "--input", "echo sum $((20+22)); cd src"]);
    let begin = Instant::now();
    loop {
        let read = json_of(home, &["workspace", "shell", "read", id, shell, "--plain", "--wait-for-idle-ms", "500"]);
        if read["output"].as_str().is_some_and(|text| text.contains("sum 42")) {
            break;
        }
        // A slow guest may say nothing for half a second before it says this.
        assert!(begin.elapsed() < Duration::from_secs(30), "{read}");
    }
    ok(home, &["workspace", "shell", "close", id, shell]);

    // A service with a published port, reached from the host.
    let started = json_of(
        home,
        &[
            "workspace",
            "service",
            "start",
            id,
            "web",
            "--ready-tcp",
            "127.0.0.1:8000",
            "--publish",
            "8000",
            "--",
            "python3 -m http.server 8000",
        ],
    );
    assert_eq!(started["state"], "running", "{started}");
    let port = started["published_ports"][0]["host_port"].as_u64().expect("a port");
    let page = fetch(port);
    assert!(page.contains("notes.txt"), "{page}");
    ok(home, &["workspace", "service", "logs", id, "web"]);
    assert!(fetch(port).contains("notes.txt"), "reading the logs ended the port");
    ok(home, &["workspace", "service", "stop", id, "web"]);
    assert!(TcpStream::connect(("127.0.0.1", u16::try_from(port).expect("a port"))).is_err(), "the port outlived it");

    // The disk of the stopped workspace.
    ok(home, &["workspace", "stop", id]);
    let disk = ok(home, &["workspace", "disk", "read", id, "/workspace/notes.txt", "--content-only"]);
    assert_eq!(disk, "one\nTWO\nthree\n");
    assert!(ok(home, &["workspace", "disk", "list", id, "/workspace"]).contains("notes.txt"));
    assert!(!ok(home, &["workspace", "disk", "list", id, "/", "--recursive", "--json"]).contains("pyro-secrets/TOKEN"));
    ok(home, &["workspace", "start", id]);
    assert_eq!(ok(home, &["workspace", "file", "read", id, "notes.txt", "--content-only"]), "one\nTWO\nthree\n");
    ok(home, &["workspace", "delete", id]);
    home.run(&["workspace", "status", id]).expect_code(1);
    home.expect_clean_within(clean);
    let left: Vec<_> = fs::read_dir(home.path().join("state/records")).expect("it was used").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn fetch(port: u64) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", u16::try_from(port).expect("a port"))).expect("it is published");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket has timeouts");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("the guest reads");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("the guest answers");
    page
}

#[test]
fn a_workspace_outlives_its_server_and_is_shared() {
    let home = Home::new();
    let mut client = Client::initialized(&home, &["--profile", "workspace-core"]);
    let tools = client.request("tools/list", json!({}));
    assert_eq!(tools["result"]["tools"].as_array().map(Vec::len), Some(16));
    let made = client.call("workspace_create", json!({"environment": "debian:12", "name": "kept"}));
    let id = made["structuredContent"]["workspace_id"].as_str().expect("an id").to_owned();
    let written = client.call("workspace_file_write", json!({"workspace_id": id, "path": "a.txt", "text": "kept\n"}));
    assert_ne!(written["isError"], true, "{written}");
    client.close();

    // Another server and the command line find it running.
    let mut client = Client::initialized(&home, &["--profile", "workspace-core"]);
    let ids: Vec<i64> = (0..32)
        .map(|number| {
            let arguments = json!({"workspace_id": id, "command": format!("cat a.txt; echo {number}")});
            client.send("tools/call", json!({"name": "workspace_exec", "arguments": arguments}))
        })
        .collect();
    for (number, call) in ids.into_iter().enumerate() {
        let answer = client.answer(call);
        assert_eq!(answer["result"]["structuredContent"]["stdout"], format!("kept\n{number}\n"), "{answer}");
    }
    let refused = client.call("workspace_create", json!({"environment": "debian:12", "allow_host_compat": true}));
    assert_eq!(refused["isError"], true, "{refused}");
    assert!(refused["content"][0]["text"].as_str().is_some_and(|text| text.contains("allow_host_compat")), "{refused}");
    let outside = client.call("workspace_create", json!({"environment": "debian:12", "seed_path": "/etc"}));
    assert_eq!(outside["isError"], true, "{outside}");
    client.close();
    assert!(ok(&home, &["workspace", "list"]).contains("kept"));

    // The VM process is killed: the workspace is stopped, and starts again with what was on its disk.
    let (pid, _) = home.processes().into_iter().find(|(_, line)| line.contains(" vmm ")).expect("it runs");
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    // Its run directory goes when the next pyro looks.
    while !home.processes().is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(json_of(&home, &["workspace", "status", &id])["state"], "stopped");
    ok(&home, &["workspace", "start", &id]);
    ok(&home, &["workspace", "exec", &id, "--", "true"]);
    ok(&home, &["workspace", "delete", &id]);
    home.expect_clean_within(CLEAN);
}

#[test]
fn edits_at_once_are_all_made() {
    const EDITS: usize = 10;
    let home = Home::new();
    let mut client = Client::initialized(&home, &["--profile", "workspace-extended"]);
    let made = client.call("workspace_create", json!({"environment": "debian:12"}));
    let id = made["structuredContent"]["workspace_id"].as_str().expect("an id").to_owned();
    let text: String = (0..EDITS).map(|number| format!("key{number}=old\n\n\n\n")).collect();
    client.call("workspace_file_write", json!({"workspace_id": id, "path": "text", "text": text}));
    let edit = |number: usize, from: &str, to: &str| {
        let (old_text, new_text) = (format!("key{number}={from}"), format!("key{number}={to}"));
        json!({"workspace_id": id, "path": "text", "old_text": old_text, "new_text": new_text})
    };
    let patch = |number: usize| {
        let line = 1 + 4 * number;
        let patch = format!("--- a/text\n+++ b/text\n@@ -{line} +{line} @@\n-key{number}=new\n+key{number}=newer\n");
        json!({"workspace_id": id, "patch": patch})
    };
    for round in 0..2 {
        let calls: Vec<i64> = (0..EDITS)
            .map(|number| {
                let (name, arguments) = match round {
                    0 => ("workspace_file_edit", edit(number, "old", "new")),
                    _ => ("workspace_patch_apply", patch(number)),
                };
                client.send("tools/call", json!({"name": name, "arguments": arguments}))
            })
            .collect();
        for call in calls {
            let answer = client.answer(call);
            assert_ne!(answer["result"]["isError"], true, "{answer}");
        }
        let read = client.call("workspace_exec", json!({"workspace_id": id, "command": "grep . text"}));
        let word = if round == 0 { "new" } else { "newer" };
        let expected: String = (0..EDITS).map(|number| format!("key{number}={word}\n")).collect();
        assert_eq!(read["structuredContent"]["stdout"], expected);
    }
    client.call("workspace_delete", json!({"workspace_id": id}));
    client.close();
    home.expect_clean_within(CLEAN);
}

#[test]
fn commands_go_on_in_the_background() {
    let home = Home::new();
    let secret = format!("TOKEN={SECRET}");
    let id = ok(&home, &["workspace", "create", "debian:12", "--secret", &secret, "--id-only"]);
    let id = id.trim();
    let line = "echo begun; echo $TOKEN $COLOUR; echo oops >&2; pwd; while [ ! -e go ]; do sleep 0.1; done; exit 7";
    let started = home.run(&[
        "workspace",
        "exec",
        id,
        "--background",
        "--env",
        "COLOUR=red",
        "--cwd",
        "/workspace",
        "--secret-env",
        "TOKEN",
        "--",
        line,
    ]);
    started.expect_code(0);
    let handle = started.text().trim().to_owned();
    assert_eq!(handle.len(), 12, "{}", started.text());

    // It runs while others do; its output is read in parts, without the secret, and costs no place of a service.
    let deadline = Instant::now() + Duration::from_secs(20);
    let read = loop {
        let read = json_of(&home, &["workspace", "background", "output", id, &handle]);
        if read["output"].as_str().is_some_and(|text| text.ends_with("/workspace\n")) {
            break read;
        }
        assert!(Instant::now() < deadline, "{read}");
    };
    assert_eq!((&read["state"], read.get("exit_code")), (&json!("running"), None));
    let whole = read["output"].as_str().expect("a text");
    assert!(whole.starts_with("begun\n") && whole.ends_with(" red\noops\n/workspace\n"), "{whole}");
    assert!(!read.to_string().contains(SECRET), "{read}");
    let part = json_of(&home, &["workspace", "background", "output", id, &handle, "--offset", "2", "--max-bytes", "3"]);
    assert_eq!((&part["output"], &part["offset"], &part["next_offset"]), (&json!("gun"), &json!(2), &json!(5)));
    assert_eq!(json_of(&home, &["workspace", "service", "list", id])["count"], 0);
    assert_eq!(json_of(&home, &["workspace", "status", id])["service_count"], 0);
    let summary = json_of(&home, &["workspace", "summary", id, "--profile", "workspace-extended"]);
    assert_eq!(summary["background"][0]["id"], handle.as_str(), "{summary}");

    // Its end is waited for, and its exit code told.
    ok(&home, &["workspace", "file", "write", id, "go", "--text", ""]);
    let next = read["next_offset"].to_string();
    let ended =
        json_of(&home, &["workspace", "background", "output", id, &handle, "--offset", &next, "--wait-seconds", "20"]);
    assert_eq!((&ended["state"], &ended["exit_code"], &ended["output"]), (&json!("exited"), &json!(7), &json!("")));

    // Another is stopped, with all that it started.
    let other = ok(&home, &["workspace", "exec", id, "--background", "--", "sleep 1000 & echo $!; wait"]);
    let stopped = json_of(&home, &["workspace", "background", "stop", id, other.trim()]);
    assert_eq!((&stopped["state"], &stopped["signal"]), (&json!("stopped"), &json!("SIGTERM")), "{stopped}");
    home.run(&["workspace", "exec", id, "--", "cat /proc/[0-9]*/comm | grep sleep"]).expect_code(1);

    // What needs a caller is refused, and a handle that is none leads to those that are.
    let refused = home.run(&["workspace", "exec", id, "--background", "--timeout-seconds", "5", "--", "true"]);
    refused.expect_code(125);
    assert!(refused.stderr.contains("timeout_seconds and background"), "{}", refused.stderr);
    let unknown = home.run(&["workspace", "background", "output", id, "0123456789ab"]);
    unknown.expect_code(1);
    assert!(unknown.stderr.contains(&handle), "{}", unknown.stderr);
    ok(&home, &["workspace", "delete", id]);
    home.expect_clean_within(CLEAN);
}

#[test]
fn a_service_that_is_waited_for_may_be_ended_and_replaced() {
    let home = Home::new();
    let id = ok(&home, &["workspace", "create", "debian:12", "--id-only"]);
    let id = id.trim();
    let status = |name: &str| json_of(&home, &["workspace", "service", "status", id, name]);
    let until_running = |name: &str| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !home.run(&["workspace", "service", "status", id, name, "--json"]).text().contains("\"running\"") {
            assert!(Instant::now() < deadline, "{name} does not run");
        }
    };
    let start = ["workspace", "service", "start", id];
    let waiting = |name: &str, ready: &str, seconds: &str| {
        let options = ["--json", "--ready-command", ready, "--ready-timeout-seconds", seconds, "--", "sleep 1000"];
        home.start(&[&start[..], &[name], &options].concat())
    };

    // One that is stopped while it is waited for was stopped, whoever asks.
    let mut pending = waiting("web", "sleep 0.2; false", "60");
    until_running("web");
    let stopped = json_of(&home, &["workspace", "service", "stop", id, "web"]);
    assert_eq!((&stopped["state"], &stopped["stop_reason"]), (&json!("stopped"), &json!("sigterm")), "{stopped}");
    let mut told = String::new();
    pending.child.stdout.take().expect("a pipe").read_to_string(&mut told).expect("text");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((&told["state"], &told["stop_reason"]), (&json!("stopped"), &json!("sigterm")), "{told}");
    assert_eq!(status("web")["stop_reason"], "sigterm");

    // What comes after it under its name is not its own. Its command is over when its time is, too.
    let mut pending = waiting("web", "touch looked; sleep 8; false", "4");
    until_running("web");
    ok(&home, &["workspace", "exec", id, "--", "while [ ! -e looked ]; do sleep 0.1; done"]);
    ok(&home, &["workspace", "service", "stop", id, "web"]);
    let next = json_of(&home, &[&start[..], &["web", "--", "sleep 1000"]].concat());
    let mut told = String::new();
    pending.child.stderr.take().expect("a pipe").read_to_string(&mut told).expect("text");
    assert!(told.contains("anew"), "{told}");
    let there = status("web");
    assert_eq!((&there["state"], &there["pid"]), (&json!("running"), &next["pid"]), "{there}");
    assert_eq!(there.get("stop_reason"), None);

    // Nothing is started for an address that is none, and a command that hangs takes no longer than was given.
    home.run(&[&start[..], &["bad", "--ready-http", "http://a b", "--", "sleep 1000"]].concat()).expect_code(1);
    home.run(&["workspace", "service", "status", id, "bad"]).expect_code(1);
    let late = json_of(
        &home,
        &[&start[..], &["late", "--ready-command", "sleep 1000", "--ready-timeout-seconds", "1", "--", "sleep 1000"]]
            .concat(),
    );
    assert_eq!((&late["state"], &late["stop_reason"]), (&json!("failed"), &json!("readiness_timeout")), "{late}");
    let took = late["ended_at"].as_f64().zip(late["started_at"].as_f64()).map(|(end, start)| end - start);
    assert!(took.is_some_and(|seconds| (0.9..6.0).contains(&seconds)), "{late}");

    // A service that ends by itself leaves no port behind, though no service tool looks.
    let web = ["brief", "--publish", "8000", "--", "while [ ! -e go ]; do sleep 0.1; done"];
    json_of(&home, &[&start[..], &web].concat());
    let count = || json_of(&home, &["workspace", "port", "list", id])["count"].clone();
    assert_eq!(count(), 1);
    ok(&home, &["workspace", "exec", id, "--", "touch go"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while count() != 0 {
        assert!(Instant::now() < deadline, "the port is still there");
    }
    ok(&home, &["workspace", "delete", id]);
    home.expect_clean_within(CLEAN);
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let home = Home::new();
    let id = ok(&home, &["workspace", "create", "debian:12", "--id-only"]);
    let id = id.trim();
    let shell = ok(&home, &["workspace", "shell", "open", id, "--id-only"]);
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("it is ours");
        unlockpt(&master).expect("it is ours");
        let name = ptsname(&master, Vec::new()).expect("it has a name").into_string().expect("text");
        let terminal = || fs::File::options().read(true).write(true).open(&name).expect("it is there");
        // One that is too small for a shell is no reason not to attach.
        tcsetwinsize(&master, Winsize { ws_row: 3, ws_col: 10, ws_xpixel: 0, ws_ypixel: 0 }).expect("it has a size");
        let ours = terminal();
        let is_raw =
            || !tcgetattr(&ours).expect("it has settings").local_modes.contains(LocalModes::ICANON | LocalModes::ECHO);
        assert!(!is_raw());
        let mut command = home.command(&["workspace", "shell", "attach", id, shell.trim()]);
        let mut child = command.stdin(terminal()).stdout(terminal()).spawn().expect("the binary runs");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_raw() {
            assert!(Instant::now() < deadline, "{signal:?}: it does not attach");
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).expect("it runs");
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(code), "{status}");
        assert!(!is_raw(), "{signal:?}");
    }
    ok(&home, &["workspace", "delete", id]);
    home.expect_clean_within(CLEAN);
}

#[test]
fn secrets_go_with_a_restart_and_stay_hidden_when_replaced() {
    let home = Home::new();
    let secret = format!("TOKEN={SECRET}");
    let id = ok(&home, &["workspace", "create", "debian:12", "--secret", &secret, "--id-only"]);
    let id = id.trim();
    let line = "echo at $WORD; echo ${#WORD}; sleep 1000";
    ok(
        &home,
        &[
            "workspace",
            "service",
            "start",
            id,
            "s",
            "--secret-env",
            "TOKEN=WORD",
            "--ready-command",
            "test $WORD",
            "--",
            line,
        ],
    );
    let shell = ok(&home, &["workspace", "shell", "open", id, "--secret-env", "TOKEN", "--id-only"]);

    // Restarted, it has the secret as it is now.
    ok(&home, &["workspace", "secret", "set", id, "TOKEN", "--value", "another-value"]);
    let restarted = json_of(&home, &["workspace", "service", "restart", id, "s"]);
    assert_eq!(restarted["state"], "running", "{restarted}");
    let logs = json_of(&home, &["workspace", "service", "logs", id, "s"]);
    assert_eq!(logs["stdout"], "at [REDACTED]\n13\n", "{logs}");

    // The shell still has the old one, which nobody gets to see, nor in the history once nobody knows it any more.
    let shell = shell.trim();
    ok(&home, &["workspace", "shell", "write", id, shell, "--input", "echo ${#TOKEN} is $TOKEN"]);
    let read = json_of(&home, &["workspace", "shell", "read", id, shell, "--plain", "--wait-for-idle-ms", "700"]);
    let output = read["output"].as_str().expect("a text");
    assert!(output.contains("14 is [REDACTED]") && !output.contains(SECRET), "{output}");
    let run = home.run(&["workspace", "exec", id, "--", &format!("echo {SECRET} another-value")]);
    assert_eq!(run.text(), "[REDACTED] [REDACTED]\n");

    // One that is gone is named, and the service goes on.
    ok(&home, &["workspace", "secret", "remove", id, "TOKEN"]);
    let refused = home.run(&["workspace", "service", "restart", id, "s"]);
    refused.expect_code(1);
    assert!(refused.stderr.contains("secret 'TOKEN'") && refused.stderr.contains("hint: "), "{}", refused.stderr);
    assert_eq!(json_of(&home, &["workspace", "service", "status", id, "s"])["state"], "running");
    let run = home.run(&["workspace", "exec", id, "--", "echo another-value"]);
    assert_eq!(run.text(), "[REDACTED]\n");
    let files = || -> Vec<String> {
        let record = home.path().join("state/records").join(id);
        let names = fs::read_dir(record).expect("it is there").flatten();
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(files().iter().filter(|name| name.starts_with("retired.")).count(), 2);

    // With the machine they are forgotten.
    ok(&home, &["workspace", "stop", id]);
    assert!(!files().iter().any(|name| name.starts_with("retired.")), "{:?}", files());
    let logs = ok(&home, &["workspace", "logs", id, "--json"]);
    assert!(!logs.contains(SECRET) && !logs.contains("another-value"), "{logs}");
    ok(&home, &["workspace", "delete", id]);
    home.expect_clean_within(CLEAN);
}

/// What people have in files, and what terminals and encoders make of it.
#[test]
fn secrets_of_files_are_hidden_however_they_are_printed() {
    const KEY: &str = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n9w0BAQEFAASCBKcwggSj\n-----END KEY-----\n";
    let home = Home::new();
    let key = home.path().join("key.pem");
    fs::write(&key, KEY).expect("the home is writable");
    let token = home.path().join("token");
    fs::write(&token, format!("{SECRET}-of-a-file\n")).expect("the home is writable");
    let id = ok(&home, &["workspace", "create", "debian:12", "--id-only"]);
    let id = id.trim();
    for (name, file) in [("KEY", &key), ("FILE", &token)] {
        let file = file.to_str().expect("a path of text");
        ok(&home, &["workspace", "secret", "set", id, name, "--value-file", file]);
    }
    let line = "cd /run/pyro-secrets; echo \"https://u:$(cat FILE)@h\"; sed 's/^/log: /' KEY; base64 KEY; cat KEY";
    let run = ok(&home, &["workspace", "exec", id, "--", line]);
    assert!(run.starts_with("https://u:[REDACTED]@h\n"), "{run}");
    for part in [SECRET, "MIIEvQ", "9w0BAQ", "LS0tLS1CRUdJTi", "TUlJRXZR"] {
        assert!(!run.contains(part), "{part}: {run}");
    }
    let shell = ok(&home, &["workspace", "shell", "open", id, "--id-only"]);
    let shell = shell.trim();
    let input = "cat /run/pyro-secrets/KEY; grep --color=always word /run/pyro-secrets/FILE; echo done";
    ok(&home, &["workspace", "shell", "write", id, shell, "--input", input]);
    let read = json_of(&home, &["workspace", "shell", "read", id, shell, "--plain", "--wait-for-idle-ms", "700"]);
    let output = read["output"].as_str().expect("a text");
    assert!(output.contains("[REDACTED]") && output.contains("done"), "{output}");
    assert!(!output.contains("MIIEvQ") && !output.contains(SECRET), "{output}");

    // One that is set while a command runs is in neither what it says nor the history.
    let mut command = home.start(&[
        "workspace",
        "exec",
        id,
        "--json",
        "--",
        "while ! cat /run/pyro-secrets/LATE; do sleep 0.1; done",
    ]);
    std::thread::sleep(Duration::from_secs(1));
    ok(&home, &["workspace", "secret", "set", id, "LATE", "--value", "late-to-the-party"]);
    assert!(command.wait_within(CLEAN).success());
    let logs = ok(&home, &["workspace", "logs", id, "--json"]);
    assert!(logs.contains("[REDACTED]") && !logs.contains("late-to-the-party"), "{logs}");
    ok(&home, &["workspace", "delete", id]);
    home.expect_clean_within(CLEAN);
}

/// The scopes that `docs/profiles.md` teaches, with built-in components.
#[test]
fn scopes_leave_what_they_allow() {
    let home = Home::new();
    let profile = home.path().join("narrow.toml");
    fs::write(
        &profile,
        "schema = 1\nname = \"narrow\"\n\
         [components.workspace-exec]\nsource = \"builtin:workspace-exec\"\n\
         grants = { workspaces = {}, exec = { argv = [\"ls *\"] } }\n\
         [components.files]\nsource = \"builtin:files\"\n\
         grants = { workspaces = {}, files = { roots = [\"/workspace/src\"] } }\n",
    )
    .expect("the home is writable");
    let profile = profile.to_str().expect("a path of text");
    seed(&home);
    let from = home.path().join("seed");
    let from = from.to_str().expect("a path of text");
    let id = ok(&home, &["workspace", "create", "debian:12", "--seed-path", from, "--id-only"]);
    let id = id.trim();
    ok(&home, &["workspace", "exec", id, "--", "ln -s ../notes.txt src/notes; ln -s /etc src/etc"]);
    let run = |args: &[&str]| home.run(&[&["--profile", profile, "workspace"], args].concat());

    assert_eq!(run(&["exec", id, "--", "ls src"]).expect_code(0).text(), "etc\nmain.py\nnotes\n");
    for line in ["ls; id", "cat notes.txt", "ls $(id)", "A=1 ls"] {
        let refused = run(&["exec", id, "--", line]);
        refused.expect_code(125);
        assert!(refused.stderr.contains("outside the grant `exec` (ls *)"), "{line}: {}", refused.stderr);
    }

    assert_eq!(run(&["file", "read", id, "src/main.py"]).expect_code(0).text(), "print('hello')\n");
    run(&["file", "write", id, "src/new/file.txt", "--text", "new"]).expect_code(0);
    run(&["file", "edit", id, "src/new/file.txt", "--old-text", "new", "--new-text", "old"]).expect_code(0);
    assert!(run(&["file", "search", id, "old", "src"]).expect_code(0).text().contains("file.txt"));
    run(&["file", "list", id, "src", "--recursive"]).expect_code(0);
    for args in [
        &["file", "read", id, "notes.txt"] as &[&str],
        &["file", "read", id, "src/../notes.txt"],
        &["file", "read", id, "src/notes"],
        &["file", "read", id, "src/etc/hostname"],
        &["file", "write", id, "src/etc/x", "--text", "x"],
        &["file", "write", id, "other.txt", "--text", "x"],
        &["file", "list", id],
    ] {
        let refused = run(args);
        refused.expect_code(1);
        assert!(refused.text().is_empty(), "{args:?}: {}", refused.text());
    }
    assert_eq!(ok(&home, &["workspace", "exec", id, "--", "ls; ls /etc/x 2>&1 | wc -l"]), "notes.txt\nsrc\n1\n");
    ok(&home, &["workspace", "delete", id]);
    home.expect_clean_within(CLEAN);
}

#[test]
fn what_a_dead_machine_left_half_made_is_gone_at_the_next_start() {
    let home = Home::new();
    let id = ok(&home, &["workspace", "create", "debian:12", "--id-only"]);
    let id = id.trim();
    // A change is announced while it is made, and leaves nothing behind.
    ok(&home, &["workspace", "file", "write", id, "note", "--text", "kept\n"]);
    ok(&home, &["workspace", "exec", id, "--", "test -d /var/lib/pyro-staging && rmdir /var/lib/pyro-staging"]);
    // As a machine leaves it that dies in the middle, and a user's file that only looks like it.
    let line = "d=.pyro-0123456789abcdef; mkdir -p $d/deep /var/lib/pyro-staging; echo part > $d/deep/a; \
        ln -s /workspace/$d /var/lib/pyro-staging/$d; echo mine > .pyro-00000000000000aa; sync";
    ok(&home, &["workspace", "exec", id, "--", line]);
    ok(&home, &["workspace", "stop", id]);
    ok(&home, &["workspace", "start", id]);
    let left = ok(&home, &["workspace", "exec", id, "--", "ls -A; ls -A /var/lib/pyro-staging"]);
    assert_eq!(left, ".pyro-00000000000000aa\nnote\n");
    ok(&home, &["workspace", "delete", id]);
    home.expect_clean_within(CLEAN);
}
