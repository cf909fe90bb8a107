//! What work in a workspace costs, as a host of the MCP server `workspace-core` sees it.
//!
//!     cargo run --release -p pyro --example workspaces -- [PYRO] [--rounds N] [--pause MS] [--mib N]
//!
//! It creates a workspace of `debian:12`, measures what the idle workspace holds, runs `true` in it N times with the
//! pause between one and the next, and copies a directory of incompressible files in and out again, checking that what
//! comes out is what went in. `PYRO_HOME` names where the environment is installed, `PYRO_ENGINE` what runs the microVM.

#![expect(clippy::print_stdout, reason = "an example that reports figures")]

mod support;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use support::{Server, micros, quantiles};

const WARM_UP: usize = 20;
/// Files that are copied have this size, in MiB.
const FILE_MIB: usize = 4;
/// How long a new workspace is left alone before its memory is looked at.
const SETTLE: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let mut program =
        std::env::current_exe()?.parent().and_then(|dir| dir.parent()).context("a directory")?.join("pyro");
    let (mut rounds, mut pause, mut mib) = (200, 0, 256);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || -> Result<usize> { Ok(args.next().context("a number is missing")?.parse()?) };
        match arg.as_str() {
            "--rounds" => rounds = number()?,
            "--pause" => pause = number()? as u64,
            "--mib" => mib = number()?,
            path => program = std::path::absolute(path)?,
        }
    }
    let home = std::env::var_os("PYRO_HOME").map(PathBuf::from).context("PYRO_HOME names no directory")?;
    let dir = std::env::temp_dir().join(format!("pyro-workspaces-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let mut server = Server::start(&program, "workspace-core", &home, &dir, false)?;
    server.initialize()?;

    let started = Instant::now();
    let created = call(&mut server, "workspace_create", json!({"environment": "debian:12"}))?;
    let id = created["workspace_id"].as_str().context("an id")?.to_owned();
    println!("create {:.2} s ({})", started.elapsed().as_secs_f64(), created["execution_mode"]);
    let measured = measure(&mut server, &id, &home, &dir, rounds, Duration::from_millis(pause), mib);
    let started = Instant::now();
    call(&mut server, "workspace_delete", json!({"workspace_id": id}))?;
    println!("delete {:.2} s", started.elapsed().as_secs_f64());
    server.end()?;
    fs::remove_dir_all(&dir)?;
    measured
}

fn measure(
    server: &mut Server,
    id: &str,
    home: &Path,
    dir: &Path,
    rounds: usize,
    pause: Duration,
    mib: usize,
) -> Result<()> {
    std::thread::sleep(SETTLE);
    let (processes, private, shared) = memory(home)?;
    println!(
        "idle workspace: {processes} processes hold {:.0} MiB, of which {:.0} MiB are the guest's",
        (private + shared) as f64 / 1024.0,
        shared as f64 / 1024.0
    );

    let mut values = Vec::new();
    for round in 0..rounds + WARM_UP {
        let started = Instant::now();
        call(server, "workspace_exec", json!({"workspace_id": id, "command": "true"}))?;
        if round >= WARM_UP {
            values.push(micros(started));
        }
        std::thread::sleep(pause);
    }
    let q = quantiles(values);
    let ms = |key: &str| q[key].as_f64().unwrap_or_default() / 1000.0;
    println!("workspace_exec `true`: p50 {:.1} ms, p99 {:.1} ms of {rounds}", ms("p50_us"), ms("p99_us"));

    let tree = dir.join("in");
    fs::create_dir(&tree)?;
    let mut random = fs::File::open("/dev/urandom")?.take((mib << 20) as u64);
    for number in 0..mib.div_ceil(FILE_MIB) {
        let mut bytes = Vec::new();
        random.by_ref().take((FILE_MIB << 20) as u64).read_to_end(&mut bytes)?;
        fs::write(tree.join(format!("{number}.bin")), bytes)?;
    }
    let started = Instant::now();
    call(server, "workspace_sync_push", json!({"workspace_id": id, "source_path": "in", "dest": "/workspace/data"}))?;
    rate("in", mib, started);
    let started = Instant::now();
    call(server, "workspace_export", json!({"workspace_id": id, "path": "data", "output_path": "out"}))?;
    rate("out", mib, started);
    for entry in fs::read_dir(&tree)? {
        let name = entry?.file_name();
        ensure!(fs::read(tree.join(&name))? == fs::read(dir.join("out").join(&name))?, "{name:?} came back changed");
    }
    Ok(())
}

fn rate(way: &str, mib: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println!("{mib} MiB {way}: {seconds:.1} s, {:.0} MiB/s", mib as f64 / seconds);
}

/// Calls a tool and returns its structured result.
fn call(server: &mut Server, name: &str, arguments: Value) -> Result<Value> {
    let answer = server.request("tools/call", &json!({"name": name, "arguments": arguments}))?;
    if answer["result"]["isError"] == json!(true) || answer["error"].is_object() {
        bail!("{name}: {answer}");
    }
    Ok(answer["result"]["structuredContent"].clone())
}

/// Returns how many processes work in the home's run directory, and the KiB that are theirs alone and that are the
/// guest's memory, each process's share of it.
fn memory(home: &Path) -> Result<(usize, u64, u64)> {
    let home = fs::canonicalize(home)?;
    let (mut processes, mut private, mut shared) = (0, 0, 0);
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        if !fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&home)) {
            continue;
        }
        let Ok(maps) = fs::read_to_string(process.join("smaps_rollup")) else {
            continue;
        };
        let field = |name: &str| -> u64 {
            let line = maps.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
        };
        processes += 1;
        private += field("Pss_Anon:") + field("Pss_File:");
        shared += field("Pss_Shmem:");
    }
    Ok((processes, private, shared))
}
