//! Starting a VM process and waiting for its word.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pyro_vmm::config::CpuConfig;
use tokio::net::UnixStream;

use crate::{
    choice,
    control::{Event, LineBuffer, MAX_REPLY},
    engine::{BootFiles, EngineOptions},
    error::{EngineError, ErrorCode},
    machine::{Machine, next_event},
    paths::make_private_dir,
    run_dir::{self, RunDir},
    spec::{ExecutionMode, MachineSpec},
    vmm_process::{self, MachineConfig},
};

/// How long the VM process may take beyond the boot limit to say that it was passed.
const WORD_GRACE: Duration = Duration::from_secs(10);
/// Bytes of the VM process's log that go with an error.
const LOG_TAIL: usize = 2048;

/// A machine to start.
#[derive(Debug)]
pub(crate) struct Boot {
    /// What it boots from.
    pub files: BootFiles,
    /// What it is.
    pub spec: MachineSpec,
    /// What it runs on.
    pub execution_mode: ExecutionMode,
    /// What an operator changes of its CPU.
    pub cpu: CpuConfig,
    /// How long making sure of its environment took.
    pub prepared: Duration,
    /// What makes it the machine of a record.
    pub record: Option<ForRecord>,
}

/// What the machine of a record is given.
#[derive(Debug)]
pub(crate) struct ForRecord {
    /// The machine's id, written down before it exists.
    pub id: String,
    /// The raw disk that it runs on.
    pub disk: PathBuf,
    /// Unix seconds.
    pub expires_at: f64,
    /// Whether it needs a place below the limit of machines; one that replaces another has that one's.
    pub counted: bool,
}

/// Starts a machine and returns when its agent answered. Dropping the future ends the machine.
pub(crate) async fn boot(run: &Path, options: &EngineOptions, boot: Boot) -> Result<Machine, EngineError> {
    let begun = Instant::now();
    let prepared = boot.prepared;
    let (run, options) = (run.to_owned(), options.clone());
    let limit = options.boot_limit + WORD_GRACE;
    let sweep_run = run.clone();
    // Directories, locks and starting a program all wait for the disk.
    let spawned = tokio::task::spawn_blocking(move || spawn(&run, &options, boot));
    let (dir, channel) = spawned.await.map_err(|e| EngineError::new(ErrorCode::Internal, format!("boot: {e}")))??;
    let channel = UnixStream::from_std(channel).map_err(|e| EngineError::io("watch the VM process", &e))?;
    let mut buffer = LineBuffer::new(MAX_REPLY);
    let word = async {
        loop {
            match next_event(&channel, &mut buffer).await {
                Some(Event::Changed { .. }) => {}
                Some(Event::Ready { timings, machine }) => return Some(Ok((timings, machine))),
                Some(Event::Ended { error }) => return Some(Err(error)),
                None => return None,
            }
        }
    };
    let word = tokio::time::timeout(limit, word).await.map_err(|_| {
        EngineError::new(ErrorCode::BootTimeout, format!("the VM process said nothing for {} s", limit.as_secs()))
    })?;
    match word {
        Some(Ok((mut timings, machine))) => {
            timings.prepare_ms = prepared.as_secs_f64() * 1e3;
            timings.total_ms = (prepared + begun.elapsed()).as_secs_f64() * 1e3;
            Ok(Machine::new(machine, timings, dir, Arc::new(channel), buffer))
        }
        Some(Err(error)) => Err(error),
        None => {
            let log = log_tail(&dir);
            // It is gone, so its directory is a leftover.
            let _ = tokio::task::spawn_blocking(move || run_dir::sweep(&sweep_run)).await;
            let what = if log.is_empty() { "it logged nothing".to_owned() } else { log };
            Err(EngineError::new(ErrorCode::BootFailed, format!("the VM process ended without a word: {what}")))
        }
    }
}

fn spawn(run: &Path, options: &EngineOptions, boot: Boot) -> Result<(PathBuf, StdUnixStream), EngineError> {
    make_private_dir(run).map_err(|e| EngineError::io(format_args!("create `{}`", run.display()), &e))?;
    let dir = match &boot.record {
        None => RunDir::create(run, options.max_machines)?,
        Some(record) => {
            let limit = options.max_machines.filter(|_| record.counted);
            RunDir::create_as(run, &record.id, limit)?.ok_or_else(|| {
                EngineError::new(ErrorCode::AlreadyExists, format!("there is a machine {} already", record.id))
            })?
        }
    };
    let path = dir.path.clone();
    spawn_in(dir, options, boot).map(|channel| (path.clone(), channel)).inspect_err(|_| {
        let _ = fs::remove_dir_all(&path);
    })
}

fn spawn_in(dir: RunDir, options: &EngineOptions, boot: Boot) -> Result<StdUnixStream, EngineError> {
    let Boot { files, spec, execution_mode, cpu, record, .. } = boot;
    let failed = |e: &io::Error| EngineError::io("start the VM process", e);
    let created_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let config = MachineConfig {
        id: dir.id,
        expires_at: record.as_ref().map_or(created_at + spec.ttl.as_secs_f64(), |record| record.expires_at),
        disk: record.map(|record| record.disk),
        spec,
        environment_version: files.version,
        execution_mode,
        cpu,
        kernel: files.kernel,
        initramfs: files.initramfs,
        rootfs: files.rootfs,
        leases: files.leases,
        boot_limit: options.boot_limit,
        created_at,
        spawned_at_ns: vmm_process::monotonic_ns(),
        verbose_console: options.verbose_console,
        verdict_dir: choice::verdict_dir(),
    };
    config.write(&dir.path)?;
    let (ours, theirs) = StdUnixStream::pair().map_err(|e| failed(&e))?;
    ours.set_nonblocking(true).map_err(|e| failed(&e))?;
    let log = OpenOptions::new()
        .create_new(true)
        .append(true)
        .mode(0o600)
        .open(dir.path.join("vmm.log"))
        .map_err(|e| failed(&e))?;
    let mut command = tokio::process::Command::new(&options.vmm_program);
    command
        .args(&options.vmm_args)
        .arg("--run-dir")
        .arg(&dir.path)
        .current_dir(&dir.path)
        .env_clear()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::from(dir.lock))
        .stderr(Stdio::from(log))
        .kill_on_drop(false);
    for name in ["PATH", "PYRO_LOG", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // The handle is dropped: the runtime reaps the process whenever it ends.
    command.spawn().map_err(|e| {
        EngineError::new(
            ErrorCode::EngineUnavailable,
            format!("the VM process `{}` cannot be started: {e}", options.vmm_program.display()),
        )
    })?;
    Ok(ours)
}

fn log_tail(dir: &Path) -> String {
    let bytes = fs::read(dir.join("vmm.log")).unwrap_or_default();
    let from = bytes.len().saturating_sub(LOG_TAIL);
    String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).trim().to_owned()
}
