//! How fast the MCP server answers, as a host sees it: raw JSON lines over pipes and over socket pairs.
//!
//!     cargo run --release -p pyro --example latency -- [PYRO] [--rounds N]
//!
//! No microVM takes part. Two calls are measured: one that the argument check refuses, which is the cost of the protocol
//! alone, and one that enters the component and fails there (its environment does not exist), which adds a fresh
//! instance and the way through the engine. `--json` prints the figures as one object.

#![expect(clippy::print_stdout, reason = "an example that reports figures")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const WARM_UP: usize = 50;
const HANDSHAKES: usize = 30;

struct Server {
    child: Child,
    input: Option<Box<dyn Write>>,
    output: BufReader<Box<dyn Read>>,
    next_id: u64,
}

impl Server {
    fn start(program: &PathBuf, home: &std::path::Path, sockets: bool) -> Result<Server> {
        let mut command = Command::new(program);
        command.args(["mcp", "serve", "--profile", "vm-run"]).env("PYRO_HOME", home).stderr(Stdio::inherit());
        let (child, input, output): (Child, Box<dyn Write>, Box<dyn Read>) = if sockets {
            let (input, theirs_in) = UnixStream::pair()?;
            let (output, theirs_out) = UnixStream::pair()?;
            command.stdin(OwnedFd::from(theirs_in)).stdout(OwnedFd::from(theirs_out));
            (command.spawn()?, Box::new(input), Box::new(output))
        } else {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let input = child.stdin.take().context("a pipe")?;
            let output = child.stdout.take().context("a pipe")?;
            (child, Box::new(input), Box::new(output))
        };
        Ok(Server { child, input: Some(input), output: BufReader::new(output), next_id: 0 })
    }

    fn request(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params});
        let input = self.input.as_mut().context("the server's input is open")?;
        input.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the server ended");
        }
        let answer: Value = serde_json::from_str(&line)?;
        if answer["id"] != json!(self.next_id) {
            bail!("not the answer to {request}: {answer}");
        }
        Ok(answer)
    }

    fn initialize(&mut self) -> Result<()> {
        let client = json!({"name": "latency", "version": "1"});
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
        self.request("initialize", &params)?;
        Ok(())
    }

    fn end(mut self) -> Result<f64> {
        let started = Instant::now();
        drop(self.input.take());
        self.child.wait()?;
        Ok(micros(started))
    }
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// Returns p50, p99 and the largest.
fn quantiles(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let at = |share: usize| values.get((values.len() * share / 100).min(values.len().saturating_sub(1)));
    json!({"p50_us": at(50), "p99_us": at(99), "max_us": values.last(), "count": values.len()})
}

fn measure(server: &mut Server, rounds: usize, method: &str, params: &Value, code: Option<&str>) -> Result<Value> {
    let mut values = Vec::with_capacity(rounds);
    for round in 0..rounds + WARM_UP {
        let started = Instant::now();
        let answer = server.request(method, params)?;
        let took = micros(started);
        if let Some(code) = code
            && answer["result"]["_meta"]["pyro/error"]["code"] != json!(code)
        {
            bail!("expected the error {code}, got {answer}");
        }
        if round >= WARM_UP {
            values.push(took);
        }
    }
    Ok(quantiles(values))
}

fn main() -> Result<()> {
    let mut program =
        std::env::current_exe()?.parent().and_then(|dir| dir.parent()).context("a directory")?.join("pyro");
    let mut rounds = 2_000;
    let mut as_json = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => rounds = args.next().context("--rounds needs a number")?.parse()?,
            "--json" => as_json = true,
            path => program = path.into(),
        }
    }
    let home = std::env::temp_dir().join(format!("pyro-latency-{}", std::process::id()));
    let refused = json!({"name": "vm_run", "arguments": {}});
    let entered = json!({"name": "vm_run", "arguments": {"environment": "no-such-environment", "command": "true"}});
    let mut figures = serde_json::Map::new();
    for (wire, sockets) in [("pipes", false), ("socket pairs", true)] {
        let mut handshakes = Vec::new();
        let mut ends = Vec::new();
        for _ in 0..HANDSHAKES {
            let started = Instant::now();
            let mut server = Server::start(&program, &home, sockets)?;
            server.initialize()?;
            handshakes.push(micros(started));
            ends.push(server.end()?);
        }
        let mut server = Server::start(&program, &home, sockets)?;
        server.initialize()?;
        let list = measure(&mut server, rounds, "tools/list", &json!({}), None)?;
        let first = Instant::now();
        server.request("tools/call", &entered)?;
        let first = micros(first);
        let refused = measure(&mut server, rounds, "tools/call", &refused, Some("invalid_argument"))?;
        let entered = measure(&mut server, rounds, "tools/call", &entered, Some("unknown_environment"))?;
        server.end()?;
        figures.insert(
            wire.to_owned(),
            json!({
                "start to handshake": quantiles(handshakes),
                "end of input to exit": quantiles(ends),
                "tools/list": list,
                "tools/call, refused by the schema": refused,
                "tools/call, into the component": entered,
                "first call into the component": {"p50_us": first},
            }),
        );
    }
    // What the servers made of it is of no use to anybody.
    let _ = std::fs::remove_dir_all(&home);
    if as_json {
        println!("{:#}", Value::Object(figures));
        return Ok(());
    }
    for (wire, rows) in &figures {
        println!("{wire}");
        for (name, row) in rows.as_object().into_iter().flatten() {
            let cell = |key: &str| row[key].as_f64().map_or_else(String::new, |us| format!("{us:.0} us"));
            println!("  {name:<36} p50 {:>10}  p99 {:>10}", cell("p50_us"), cell("p99_us"));
        }
    }
    Ok(())
}
