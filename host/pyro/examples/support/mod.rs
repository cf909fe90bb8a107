//! An MCP client of raw JSON lines, for measurements: it adds nothing to what the server takes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A server that was started, and its client's side.
pub struct Server {
    child: Child,
    input: Option<Box<dyn Write>>,
    output: BufReader<Box<dyn Read>>,
    next_id: u64,
}

impl Server {
    /// Starts `program` as a server of `profile`, in `dir`, over pipes or socket pairs.
    pub fn start(program: &Path, profile: &str, home: &Path, dir: &Path, sockets: bool) -> Result<Server> {
        let mut command = Command::new(program);
        command.args(["mcp", "serve", "--profile", profile]).env("PYRO_HOME", home).current_dir(dir);
        command.stderr(Stdio::inherit());
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

    /// Sends a request and returns the answer to it. Messages without an id are passed over.
    pub fn request(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params});
        let input = self.input.as_mut().context("the server's input is open")?;
        input.write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                bail!("the server ended");
            }
            let answer: Value = serde_json::from_str(&line)?;
            if answer["id"] == json!(self.next_id) {
                return Ok(answer);
            }
            if answer.get("id").is_some() {
                bail!("not the answer to {request}: {answer}");
            }
        }
    }

    /// The handshake.
    pub fn initialize(&mut self) -> Result<()> {
        let client = json!({"name": "latency", "version": "1"});
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
        self.request("initialize", &params)?;
        Ok(())
    }

    /// Closes the server's input and returns how long it took to end, in microseconds.
    pub fn end(mut self) -> Result<f64> {
        let started = Instant::now();
        drop(self.input.take());
        self.child.wait()?;
        Ok(micros(started))
    }
}

/// Returns the microseconds since then.
pub fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// Returns p50, p99, the largest and how many there are.
pub fn quantiles(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let at = |share: usize| values.get((values.len() * share / 100).min(values.len().saturating_sub(1)));
    json!({"p50_us": at(50), "p99_us": at(99), "max_us": values.last(), "count": values.len()})
}
