//! Calls something of every gated interface: it needs all grants. `config.text` of the profile is what it passes.

use pyro_test_guests::bindings::exports::pyro::plugin::tools::{CallContext, Guest, ToolDef, ToolError, ToolResult};
use pyro_test_guests::bindings::pyro::host::{blobs, config};
use pyro_test_guests::bindings::pyro::secrets::{bindings, store};
use pyro_test_guests::bindings::pyro::vm::types::Error;
use pyro_test_guests::bindings::pyro::vm::{
    environments, exec, files, host_files, machine_lifecycle, machines, ports, services, terminals, workspaces,
};
use pyro_test_guests::{error, text, tool};

struct Plugin;

const TOOLS: [&str; 11] = [
    "everything",
    "make_ephemeral",
    "make_workspace",
    "open_workspace",
    "make_machine",
    "open_machine",
    "list_environments",
    "pack_host",
    "set_secret",
    "seed_flood",
    "read_archive",
];

fn machine_config(environment: &str) -> machines::MachineConfig {
    machines::MachineConfig {
        environment: environment.to_owned(),
        vcpu_count: 1,
        mem_mib: 1024,
        ttl_seconds: 60,
        meta: Vec::new(),
    }
}

fn workspace_config(environment: &str, seed: Option<workspaces::Archive>) -> workspaces::WorkspaceConfig {
    workspaces::WorkspaceConfig {
        environment: environment.to_owned(),
        vcpu_count: 1,
        mem_mib: 1024,
        ttl_seconds: 60,
        name: None,
        labels: Vec::new(),
        seed,
        meta: Vec::new(),
    }
}

/// Never gets past its first line in a test: its calls are what makes the imports.
fn everything() -> Result<String, Error> {
    let machine = machine_lifecycle::open("000000000000")?;
    let command = exec::Command {
        program: exec::Program::Argv(vec!["true".to_owned()]),
        cwd: None,
        env: Vec::new(),
        stdin: exec::Input::None,
        timeout_ms: 1000,
        keep_bytes: 1024,
        meta: Vec::new(),
    };
    exec::run(&machine, &command)?;
    files::stat(&machine, "/workspace", "/workspace/a")?;
    terminals::list(&machine)?;
    services::list(&machine)?;
    ports::list(&machine)?;
    bindings::bind_env("000000000000", "A", "B")?;
    Ok("everything".to_owned())
}

fn serve(name: &str, given: &str) -> Result<String, Error> {
    match name {
        "everything" => everything(),
        "make_ephemeral" => machines::run_ephemeral(&machine_config(given)).map(|_| String::new()),
        "make_workspace" => workspaces::create(workspace_config(given, None)).map(|workspace| workspace.id()),
        "open_workspace" => workspaces::open(given).map(|workspace| workspace.id()),
        "make_machine" => machine_lifecycle::create(&machine_config(given)).map(|machine| machine.info().id),
        "open_machine" => machine_lifecycle::open(given).map(|machine| machine.info().id),
        "list_environments" => {
            Ok(environments::list()?.into_iter().map(|environment| environment.name).collect::<Vec<_>>().join(" "))
        }
        // Archives are files of the host, so a call may hold only a few of them.
        "seed_flood" => {
            let held = (0..100).map(|_| host_files::read_archive(given)).collect::<Result<Vec<_>, _>>()?;
            Ok(held.len().to_string())
        }
        "read_archive" => {
            let archive = host_files::read_archive(given)?;
            let (mut at, mut sum) = (0, 0u64);
            loop {
                let piece = archive.tar.read(at, u32::MAX);
                if piece.is_empty() {
                    break;
                }
                assert!(piece.len() <= 1 << 20, "a read is bounded");
                at += piece.len() as u64;
                sum = piece.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
            }
            let (entries, bytes) = (archive.entry_count, archive.bytes);
            Ok(format!("{} {entries} entries, {bytes} bytes, read whole: {}", archive.mode, at == archive.tar.size()))
        }
        // Packs a directory of the host and writes what it got beside it.
        "pack_host" => {
            let (from, to) = given.split_once(' ').unwrap_or((given, ""));
            let archive = host_files::read_archive(from)?;
            let output = host_files::open_output(to)?;
            output.directory("", 0o755)?;
            output.file("sub/tree.tar", 0o640)?;
            output.write_blob(&archive.tar, 0, u64::MAX)?;
            output.file("note", 0o600)?;
            output.write(b"packed")?;
            output.write_blob(&blobs::from_bytes(b" by a plugin"), 0, 12)?;
            output.symlink("link", "note")?;
            output.commit()?;
            Ok(format!("{} {}", archive.entry_count, archive.bytes))
        }
        "set_secret" => {
            let (name, value) = given.split_once('=').unwrap_or((given, ""));
            let source = match value.strip_prefix('@') {
                Some(path) => store::Source::File(path.to_owned()),
                None => store::Source::Value(value.to_owned()),
            };
            store::set("000000000000", name, &source).map(|secret| secret.name)
        }
        other => Ok(other.to_owned()),
    }
}

impl Guest for Plugin {
    fn list_tools() -> Result<Vec<ToolDef>, ToolError> {
        Ok(TOOLS.iter().map(|name| tool(name, None)).collect())
    }

    fn call(name: String, _: String, _: CallContext) -> Result<ToolResult, ToolError> {
        let config: serde_json::Value = serde_json::from_str(&config::get()).unwrap_or_default();
        let given = config.get("text").and_then(serde_json::Value::as_str).unwrap_or_default();
        serve(&name, given).map(text).map_err(|e| error(&e.code, &e.message))
    }
}

pyro_test_guests::bindings::export_platform!(Plugin with_types_in pyro_test_guests::bindings);
