//! Boots a machine from files and measures it, without the `pyro` program.
//!
//! ```text
//! cargo run -p pyro-engine --example machine -- KERNEL INITRAMFS ROOTFS [--home DIR] [--engine auto|kvm|qemu] [--mem MIB] [--vcpus N]
//!     [--boots N] [--execs N] [--pause MS] [--first COMMAND] [--last COMMAND] [-- COMMAND...]
//! ```
//!
//! `--first` and `--last` are lines for the guest's shell that run before and after what is measured.
//! `--pause` is how long it waits between one command and the next.
//!
//! It works in a temporary directory, or in `--home`. With `PYRO_TRACE` set it prints every command's times, with
//! `PYRO_VERBOSE` the guest's kernel says everything on the console.
//!
//! Started as `vmm --run-dir DIR` it is a VM process, which is also how the tests of this crate get one.
#![allow(clippy::print_stdout, reason = "a development program prints its measurements")]

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use pyro_engine::{
    AgentSource, BootFiles, Engine, EngineChoice, EngineError, EngineOptions, ExecCommand, ExecEvent, ExecRequest,
    Machine, MachineSpec, Paths, pick_engine,
};

/// A port of the guest that nothing listens on.
const NO_PORT: u32 = 9999;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, option, dir] = arguments.as_slice()
        && command == "vmm"
        && option == "--run-dir"
    {
        return pyro_engine::vmm_process::main(dir.as_ref());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map(|runtime| runtime.block_on(measure(&arguments))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            println!("{}: {error}", error.code());
            println!("{}", error.console_tail().unwrap_or_default());
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &[String]) -> Result<(), EngineError> {
    // Removed at the end.
    let own = tempfile::Builder::new().prefix("pyro-example-").tempdir();
    let own = own.map_err(|e| EngineError::io("make a directory", &e))?;
    let mut home = own.path().to_owned();
    let mut pause = Duration::ZERO;
    let (mut first, mut last) = (None, None);
    let (mut boots, mut execs, mut files, mut argv) = (1, 0, Vec::new(), vec!["true".to_owned()]);
    let (mut spec, mut choice) = (MachineSpec::default(), EngineChoice::Auto);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut number = || rest.next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(1);
        match argument.as_str() {
            "--boots" => boots = number(),
            "--execs" => execs = number(),
            "--first" => first = rest.next().cloned(),
            "--last" => last = rest.next().cloned(),
            "--pause" => pause = Duration::from_millis(number().into()),
            "--mem" => spec.mem_mib = number(),
            "--vcpus" => spec.vcpu_count = number(),
            "--engine" => {
                choice = match rest.next().map(String::as_str) {
                    Some("kvm") => EngineChoice::Kvm,
                    Some("qemu") => EngineChoice::Qemu,
                    _ => EngineChoice::Auto,
                };
            }
            "--home" => home = rest.next().map(PathBuf::from).unwrap_or(home),
            "--" => argv = rest.by_ref().cloned().collect(),
            file => files.push(PathBuf::from(file)),
        }
    }
    let [kernel, initramfs, rootfs] = files.as_slice() else {
        println!("usage: machine KERNEL INITRAMFS ROOTFS [OPTIONS] [-- COMMAND...]; see the source for the options");
        return Ok(());
    };
    let files = BootFiles {
        kernel: kernel.clone(),
        initramfs: initramfs.clone(),
        rootfs: rootfs.clone(),
        version: "example".to_owned(),
        leases: Vec::new(),
    };
    let paths = Paths::below(&home);
    let mut options = EngineOptions::with_agent(AgentSource(&[]))?;
    options.engine = choice;
    // The lab is slow when its host is busy.
    options.boot_limit = Duration::from_secs(120);
    options.verbose_console = std::env::var_os("PYRO_VERBOSE").is_some();
    let pick = pick_engine(choice)?;
    println!("{}: {}", pick.execution_mode.as_str(), pick.reason);
    let engine = Engine::open(paths, options)?;
    for _ in 0..boots {
        let begun = Instant::now();
        let machine = engine.boot(files.clone(), spec.clone()).await?;
        let booted = begun.elapsed();
        if let Some(line) = &first {
            let shell = ["sh", "-c", line].map(str::to_owned);
            println!("{}", run(&machine, &shell).await?.0.trim());
        }
        let (output, took) = run(&machine, &argv).await?;
        let all = begun.elapsed();
        let mut pings: Vec<Duration> = Vec::new();
        for _ in 0..execs {
            // Nobody listens there: the guest's kernel answers, and no process takes part.
            let begun = Instant::now();
            let refused = machine.connect(NO_PORT).await.is_err();
            pings.extend(refused.then(|| begun.elapsed()));
        }
        report("vsock ping", pings);
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..execs {
            times.push(run(&machine, &argv).await?.1);
            tokio::time::sleep(pause).await;
        }
        report("exec round trip", times);
        if let Some(line) = &last {
            let shell = ["sh", "-c", line].map(str::to_owned);
            println!("{}", run(&machine, &shell).await?.0.trim());
        }
        let ending = Instant::now();
        machine.end().await?;
        let t = machine.timings();
        println!(
            "boot {booted:.1?} (spawn {:.1} disk {:.1} engine {:.1} kernel {:.1} agent {:.1} handover {:.1} ms), \
             first exec {took:.1?}, start to result {all:.1?}, end {:.1?}: {}",
            t.spawn_ms,
            t.disk_ms,
            t.engine_ms,
            t.kernel_ms,
            t.agent_ms,
            t.handover_ms,
            ending.elapsed(),
            output.trim()
        );
    }
    Ok(())
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    if let (Some(p50), Some(p99)) = (times.get(times.len() / 2), times.get(times.len() * 99 / 100)) {
        println!("{what}: n {} p50 {p50:.1?} p99 {p99:.1?}", times.len());
    }
}

async fn run(machine: &Machine, argv: &[String]) -> Result<(String, Duration), EngineError> {
    let begun = Instant::now();
    let mut session = machine
        .exec(ExecRequest {
            command: ExecCommand::Argv(argv.to_vec()),
            cwd: None,
            env: Vec::new(),
            timeout: Duration::from_secs(60),
            stdin: false,
        })
        .await?;
    let mut output = String::new();
    let mut started = Duration::ZERO;
    let trace = std::env::var_os("PYRO_TRACE").is_some();
    loop {
        match session.next().await? {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => output.push_str(&String::from_utf8_lossy(&bytes)),
            ExecEvent::Exited(exit) => {
                let took = begun.elapsed();
                if trace {
                    println!(
                        "started {started:.1?} exited {took:.1?}, in the guest {:.1?}, cpu {:.1?}",
                        exit.duration, exit.cpu
                    );
                }
                return Ok((output, took));
            }
            ExecEvent::Started { .. } => started = begun.elapsed(),
        }
    }
}
