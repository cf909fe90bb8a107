//! How fast the MCP server answers, as a host sees it: raw JSON lines over pipes and over socket pairs.
//!
//!     cargo run --release -p pyro --example latency -- [PYRO] [--rounds N]
//!
//! No microVM takes part. Two calls are measured: one that the argument check refuses, which is the cost of the protocol
//! alone, and one that enters the component and fails there (its environment does not exist), which adds a fresh
//! instance and the way through the engine. `--json` prints the figures as one object.

#![expect(clippy::print_stdout, reason = "an example that reports figures")]

mod support;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use support::{Server, micros, quantiles};

const WARM_UP: usize = 50;
const HANDSHAKES: usize = 30;

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
            let mut server = Server::start(&program, "vm-run", &home, &std::env::temp_dir(), sockets)?;
            server.initialize()?;
            handshakes.push(micros(started));
            ends.push(server.end()?);
        }
        let mut server = Server::start(&program, "vm-run", &home, &std::env::temp_dir(), sockets)?;
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
