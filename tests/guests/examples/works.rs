//! Makes a workspace and works in it, through every interface that reaches a guest. Its tools have the names that the
//! interceptors of the tests amend.

use pyro_test_guests::bindings::exports::pyro::plugin::tools::{CallContext, Guest, ToolDef, ToolError, ToolResult};
use pyro_test_guests::bindings::pyro::host::blobs::{self, Blob};
use pyro_test_guests::bindings::pyro::vm::types::{Error, Machine};
use pyro_test_guests::bindings::pyro::vm::{exec, files, ports, services, terminals, workspaces};
use pyro_test_guests::{error, structured, text, tool};

struct Plugin;

const PROMISE: &str = r#"{"type":"object","properties":{"answer":{"type":"integer"}},"required":["answer"]}"#;

fn shell(machine: &Machine, line: &str) -> Result<exec::Output, Error> {
    exec::run(
        machine,
        &exec::Command {
            program: exec::Program::Shell(line.to_owned()),
            cwd: Some("/workspace".to_owned()),
            env: Vec::new(),
            stdin: exec::Input::None,
            timeout_ms: 30_000,
            keep_bytes: 65_536,
            meta: Vec::new(),
        },
    )
}

fn said(blob: &Blob) -> String {
    String::from_utf8_lossy(&blob.read(0, 1 << 20)).into_owned()
}

/// Returns what each step saw, one line each.
fn work() -> Result<String, Error> {
    let workspace = workspaces::create(workspaces::WorkspaceConfig {
        environment: "debian:12".to_owned(),
        vcpu_count: 1,
        mem_mib: 512,
        ttl_seconds: 600,
        name: Some("works".to_owned()),
        labels: Vec::new(),
        seed: None,
        meta: Vec::new(),
    })?;
    let machine = workspace.machine()?;
    let mut seen = Vec::new();
    let output = shell(&machine, "cat /run/pyro-secrets/TOKEN; echo; base64 -w0 /run/pyro-secrets/TOKEN")?;
    seen.push(format!("exec {}", said(&output.stdout.bytes).replace('\n', " ")));
    let command = "echo a value of some length";
    workspace.record_command(command, "/workspace", output.exit_code, 1, &output.stdout.bytes, &output.stderr.bytes)?;
    seen.push(format!("history {}", workspace.commands(0, 10)?[0].command));

    let change = |path: &str, content: Option<&[u8]>| files::Change {
        path: path.to_owned(),
        content: content.map(blobs::from_bytes),
        mode: None,
    };
    files::apply(&machine, "/workspace", vec![change("/workspace/d/a", Some(b"content"))])?;
    let (blob, size) = files::read(&machine, "/workspace", "/workspace/d/a", 0, 100)?;
    seen.push(format!("file {} of {size}", said(&blob)));
    let escaped = files::read(&machine, "/workspace", "/etc/passwd", 0, 100).err().map(|e| e.code);
    seen.push(format!("escape {}", escaped.unwrap_or_default()));
    let outside = files::stat(&machine, "/etc", "/etc/passwd").err().map(|e| e.code);
    seen.push(format!("scope {}", outside.unwrap_or_default()));
    let tree = files::archive(&machine, "/workspace", "/workspace/d")?;
    let (entries, _) = files::extract(&machine, "/workspace", "/workspace/copy", &tree)?;
    seen.push(format!("copied {entries}"));

    let terminal = terminals::open(&machine, "/workspace", 80, 24, &[])?;
    terminals::write(&machine, &terminal.id, b"cat /run/pyro-secrets/TOKEN\n")?;
    let mut output = String::new();
    let mut cursor = 0;
    for _ in 0..20 {
        // Small pieces, so that a secret is cut somewhere.
        let read = terminals::read(&machine, &terminal.id, cursor, 7, Some(300))?;
        output.push_str(&said(&read.data));
        cursor = read.next;
    }
    seen.push(format!("terminal {} {}", output.contains("[REDACTED]"), output.contains("some length")));
    terminals::close(&machine, &terminal.id)?;

    let config = services::ServiceConfig {
        name: "web".to_owned(),
        program: exec::Program::Shell("cat /run/pyro-secrets/TOKEN; sleep 100".to_owned()),
        cwd: "/workspace".to_owned(),
        env: Vec::new(),
        log_limit_bytes: 65_536,
        meta: Vec::new(),
    };
    services::start(&machine, &config)?;
    services::wait(&machine, "web", 1_000)?;
    seen.push(format!("service {}", said(&services::logs(&machine, "web")?.0)));
    seen.push(format!("running {}", workspace.info()?.running_service_count));
    let port = ports::publish(&machine, 8080, None, Some("web"))?;
    seen.push(format!("ports {}", ports::list(&machine)?.iter().any(|other| other.host_port == port.host_port)));

    workspace.create_snapshot("one")?;
    seen.push(format!("snapshots {}", workspace.snapshots()?.len()));
    Ok(seen.join("\n"))
}

/// A process with a bound variable; then the disk, and the end.
fn finish() -> Result<String, Error> {
    let id = workspaces::list()?.first().map(|info| info.id.clone()).unwrap_or_default();
    let workspace = workspaces::open(&id)?;
    let output = shell(&workspace.machine()?, "test -n \"$TOKEN\" && echo \"bound $TOKEN\"")?;
    let bound = said(&output.stdout.bytes);
    workspace.stop()?;
    let refused = workspace.machine().err().map(|e| e.code).unwrap_or_default();
    let disk = workspace.disk()?;
    // The magic of ext4.
    let ext4 = disk.read(1024 + 56, 2) == [0x53, 0xef];
    workspace.delete()?;
    Ok(format!("{} {refused} {ext4}", bound.trim()))
}

impl Guest for Plugin {
    fn list_tools() -> Result<Vec<ToolDef>, ToolError> {
        Ok(vec![tool("echo", None), tool("keep_promise", Some(PROMISE))])
    }

    fn call(name: String, _: String, _: CallContext) -> Result<ToolResult, ToolError> {
        let failed = |e: Error| error(&e.code, &e.message);
        match name.as_str() {
            "echo" => work().map(text).map_err(failed),
            _ => {
                let found = finish().map_err(failed)?;
                Ok(structured(format!("{{\"answer\":42,\"found\":\"{found}\"}}")))
            }
        }
    }
}

pyro_test_guests::bindings::export_platform!(Plugin with_types_in pyro_test_guests::bindings);
