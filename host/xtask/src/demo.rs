//! The main job on real input: a command in a microVM, over the CLI and over MCP.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::shell::{self, Cmd};
use crate::{build, setup};

const ENVIRONMENT: &str = "debian:12";
const PROFILE: &str = "profiles/vm-run.toml";

/// Sets up, builds, prepares the environment and shows both surfaces.
pub fn run(root: &Path) -> Result<()> {
    setup::run(root)?;
    build(root)?;
    let pyro = shell::pyro(root);
    shell::step("check this machine");
    Cmd::new(&pyro).arg("doctor").run()?;
    shell::step("prepare the environment (a minute or two the first time)");
    Cmd::new(&pyro).args(["env", "pull", ENVIRONMENT]).run()?;
    shell::step("run a command in a microVM: CLI");
    Cmd::new(&pyro).args(["run", ENVIRONMENT, "--", "git", "--version"]).run()?;
    shell::step("run a command in a microVM: MCP over stdio");
    session(root, &pyro)?;
    shell::step("done");
    eprintln!("    the binary: {}", pyro.display());
    Ok(())
}

/// One client session: initialize, tools/list, tools/call.
fn session(root: &Path, pyro: &Path) -> Result<()> {
    let mut client = Client::start(root, pyro)?;
    client.request(
        "initialize",
        json!({
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": { "name": "pyro-demo", "version": env!("CARGO_PKG_VERSION") },
        }),
    )?;
    client.notify("notifications/initialized")?;
    client.request("tools/list", json!({}))?;
    let called = client.request(
        "tools/call",
        json!({
            "name": "vm_run",
            "arguments": { "environment": ENVIRONMENT, "command": "git --version && uname -srm && id -un" },
            "_meta": { "progressToken": "demo" },
        }),
    )?;
    client.finish()?;
    let structured = &called["structuredContent"];
    if called["isError"] == json!(true) || structured["exit_code"] != json!(0) {
        bail!("vm_run did not succeed: {called}");
    }
    let stdout = structured["stdout"].as_str().unwrap_or_default();
    if !stdout.starts_with("git version") {
        bail!("vm_run printed {stdout:?}, not git's version");
    }
    Ok(())
}

struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    next_id: u64,
}

impl Client {
    fn start(root: &Path, pyro: &Path) -> Result<Self> {
        eprintln!("    $ pyro mcp serve --profile {PROFILE}");
        let mut child = Cmd::new(pyro)
            .current_dir(root)
            .args(["mcp", "serve", "--profile", PROFILE])
            .into_command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the server")?;
        let input = child.stdin.take().context("the pipe was asked for")?;
        let output = BufReader::new(child.stdout.take().context("the pipe was asked for")?);
        Ok(Self { child, input, output, next_id: 1 })
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        eprintln!("    -> {message}");
        writeln!(self.input, "{message}").context("the server closed its input")
    }

    fn notify(&mut self, method: &str) -> Result<()> {
        self.send(&json!({ "jsonrpc": "2.0", "method": method }))
    }

    fn request(&mut self, method: &str, params: Value) -> Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let begin = Instant::now();
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))?;
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).context("cannot read from the server")? == 0 {
                bail!("the server ended without answering {method}");
            }
            let message: Value =
                serde_json::from_str(&line).with_context(|| format!("not JSON on stdout: {line:?}"))?;
            eprintln!("    <- {}", message);
            if message["id"] == json!(id) {
                eprintln!("       ({method}: {:.1} ms)", begin.elapsed().as_secs_f64() * 1e3);
                if let Some(error) = message.get("error") {
                    bail!("{method} failed: {error}");
                }
                return Ok(message["result"].clone());
            }
        }
    }

    fn finish(self) -> Result<()> {
        let Self { mut child, input, .. } = self;
        drop(input);
        let status = child.wait().context("cannot wait for the server")?;
        if !status.success() {
            bail!("the server ended with {status}");
        }
        Ok(())
    }
}
