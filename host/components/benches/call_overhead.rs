//! What a call of a component costs: `call_overhead GUESTS [CALLS]`, where GUESTS is a folder with `behaviours.wasm`.
//!
//! Prints one JSON object, times in microseconds: `load` is opening a profile and listing its tools, `call` is one
//! call with validation, a fresh instance and its end.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use pyro_components::{Builtins, CallOptions, HostServices, ResolvedProfile, Toolbox, pack};
use pyro_engine::{AgentSource, Engine, EngineOptions, Paths};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let guests = arguments.next().ok_or("usage: call_overhead GUESTS [CALLS]")?;
    let calls: usize = arguments.next().map_or(Ok(5_000), |n| n.parse())?;
    let home = tempfile::tempdir()?;
    std::fs::write(home.path().join("guest.wasm"), pack(&std::fs::read(Path::new(&guests).join("behaviours.wasm"))?)?)?;
    let text = "schema = 1\nname = \"bench\"\n[components.guest]\nsource = \"./guest.wasm\"\n";
    let in_home = |name: &str| home.path().join(name);
    let services = HostServices {
        engine: Engine::open(Paths::below(home.path()), EngineOptions::with_agent(AgentSource(b""))?)?,
        aot_cache_dir: in_home("aot"),
        aot_state_dir: in_home("aot-state"),
    };
    let open = || -> Result<Toolbox, Box<dyn Error>> {
        let profile = ResolvedProfile::from_toml(text, "bench.toml", home.path(), &Builtins::default())?;
        Ok(Toolbox::load(&profile, services.clone())?)
    };
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;

    let started = Instant::now();
    let toolbox = open()?;
    let first_load = started.elapsed();
    let echo = async |toolbox: &Toolbox| toolbox.call("echo", serde_json::Map::new(), CallOptions::default()).await;
    let started = Instant::now();
    tokio.block_on(echo(&toolbox))?;
    let compile_and_call = started.elapsed();

    let mut loads = Vec::new();
    let mut first_calls = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        let toolbox = open()?;
        loads.push(started.elapsed());
        let started = Instant::now();
        tokio.block_on(echo(&toolbox))?;
        first_calls.push(started.elapsed());
    }
    let mut each = Vec::with_capacity(calls);
    tokio.block_on(async {
        for _ in 0..calls.div_ceil(10) {
            echo(&toolbox).await?;
        }
        for _ in 0..calls {
            let started = Instant::now();
            echo(&toolbox).await?;
            each.push(started.elapsed());
        }
        Ok::<(), Box<dyn Error>>(())
    })?;
    let report = serde_json::json!({
        "load_first_us": us(first_load),
        "load_us": percentiles(&mut loads),
        "compile_and_first_call_us": us(compile_and_call),
        "cached_first_call_us": percentiles(&mut first_calls),
        "call_us": percentiles(&mut each),
        "calls": calls,
    });
    write_line(&report.to_string())
}

fn write_line(text: &str) -> Result<(), Box<dyn Error>> {
    use std::io::Write;
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn percentiles(times: &mut [Duration]) -> serde_json::Value {
    times.sort();
    let at = |share: f64| {
        let index = ((times.len() as f64 - 1.0) * share) as usize;
        times.get(index).copied().map_or(0.0, us)
    };
    serde_json::json!({ "p50": at(0.5), "p99": at(0.99), "min": at(0.0) })
}

fn us(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}
