//! The door to environments and machines.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use pyro_vmm::config::CpuConfig;

use crate::{
    Paths, Progress,
    choice::{EnginePick, pick_engine},
    control::{LineBuffer, MAX_REPLY, OkBody, Request},
    cpu,
    environments::{Environments, Installed},
    error::{EngineError, ErrorCode},
    machine::{self, Machine},
    prepare::prepare,
    run_dir,
    spawn::{self, Boot, ForRecord},
    spec::{EngineChoice, ExecutionMode, MachineInfo, MachineReport, MachineSpec},
};

/// How long a VM process may take to describe its machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long a VM process whose maker is gone may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Memory that is left to the host when a machine's size is checked, in MiB.
const HOST_RESERVE_MIB: u64 = 128;

/// Bytes of the guest agent, a static program.
#[derive(Debug, Clone, Copy)]
pub struct AgentSource(pub &'static [u8]);

/// How an [`Engine`] works.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Which engine to run machines on.
    pub engine: EngineChoice,
    /// How many machines may run at once, counted over all processes that share the run directory; `None` is no limit.
    pub max_machines: Option<u32>,
    /// The program that is the VM process when started with `vmm_args`, then `--run-dir DIR`.
    pub vmm_program: PathBuf,
    /// Arguments before `--run-dir`.
    pub vmm_args: Vec<String>,
    /// The agent that goes into every machine's initramfs.
    pub agent: AgentSource,
    /// A machine whose agent does not answer within this is ended.
    pub boot_limit: Duration,
    /// Whether the guest's kernel writes all its messages to the console, which slows the boot.
    pub verbose_console: bool,
    /// A kernel for every machine instead of its environment's: an ELF or bzImage file; see
    /// [`Environments::with_kernel`].
    pub kernel: Option<PathBuf>,
}

impl EngineOptions {
    /// Default number of machines at once.
    pub const MAX_MACHINES: u32 = 4;
    /// Default of `boot_limit`: ten times what a boot takes on a slow and busy host.
    pub const BOOT_LIMIT: Duration = Duration::from_secs(30);

    /// Returns options with every default: `PROGRAM vmm --run-dir DIR`, where the program is the running one.
    ///
    /// # Errors
    /// `io` when the running program's path cannot be found.
    pub fn with_agent(agent: AgentSource) -> Result<Self, EngineError> {
        let vmm_program = std::env::current_exe().map_err(|e| EngineError::io("find the running program", &e))?;
        Ok(Self {
            engine: EngineChoice::Auto,
            max_machines: Some(Self::MAX_MACHINES),
            vmm_program,
            vmm_args: vec!["vmm".to_owned()],
            agent,
            boot_limit: Self::BOOT_LIMIT,
            verbose_console: false,
            kernel: None,
        })
    }
}

/// What a machine boots from. The files are read by many machines and must not change while one runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel, an ELF file.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// The root file system, a raw image. Machines write to a copy.
    pub rootfs: PathBuf,
    /// What to call this set of files.
    pub version: String,
    /// Files to hold a shared lock on while the machine runs, so that nobody removes the others; see
    /// [`Installed::lease_paths`](crate::environments::Installed::lease_paths).
    pub leases: Vec<PathBuf>,
}

impl From<&Installed> for BootFiles {
    fn from(installed: &Installed) -> Self {
        Self {
            kernel: installed.kernel.clone(),
            initramfs: installed.initramfs.clone(),
            rootfs: installed.rootfs.clone(),
            version: installed.version.clone(),
            leases: installed.lease_paths(),
        }
    }
}

/// Environments and machines of one state directory; cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    paths: Paths,
    options: EngineOptions,
    environments: Environments,
    /// Handles that were asked for before, by id.
    watched: Mutex<HashMap<String, Machine>>,
}

impl Engine {
    /// Opens a state directory and removes what dead machines left in it. Starts nothing.
    ///
    /// # Errors
    /// `io` when the directories cannot be used.
    pub fn open(paths: Paths, options: EngineOptions) -> Result<Self, EngineError> {
        if let Err(error) = run_dir::sweep(&paths.run) {
            // Listing tools needs no machine; creating one will say it again.
            tracing::debug!(%error, "leftovers are not removed");
        }
        let mut environments = Environments::new(&paths, options.agent);
        if let Some(kernel) = &options.kernel {
            environments = environments.with_kernel(kernel.clone());
        }
        Ok(Self { inner: Arc::new(Inner { paths, options, environments, watched: Mutex::default() }) })
    }

    /// Returns the environments machines are made from.
    pub fn environments(&self) -> &Environments {
        &self.inner.environments
    }

    /// Returns the directories it works in.
    pub fn paths(&self) -> &Paths {
        &self.inner.paths
    }

    /// Returns how it was opened.
    pub fn options(&self) -> &EngineOptions {
        &self.inner.options
    }

    /// Creates a machine: makes sure that its environment is installed, boots it, and returns when its agent answered.
    /// Dropping the future ends whatever was started.
    ///
    /// # Errors
    /// `invalid_argument`, `unknown_environment`, `environment_build_failed`, `limit_exceeded`, `disk_full`,
    /// `engine_unavailable`, `boot_failed`, `boot_timeout`, `guest_panic`, `io`.
    pub async fn create_machine(&self, spec: MachineSpec, progress: &dyn Progress) -> Result<Machine, EngineError> {
        let begun = Instant::now();
        self.check(&spec)?;
        // Held until the VM process holds it too.
        let installed = prepare(&self.inner.environments, &spec.environment, progress).await?;
        let prepared = begun.elapsed();
        progress.report("booting", 0.0, None);
        self.start(BootFiles::from(&installed), spec, prepared, None).await
    }

    /// Makes sure that an environment is installed. Its files stay as long as the result lives.
    pub(crate) async fn prepare(&self, environment: &str, progress: &dyn Progress) -> Result<Installed, EngineError> {
        prepare(&self.inner.environments, environment, progress).await
    }

    /// Boots the machine of a record. The caller holds the environment until this returns. As [`Self::boot`] otherwise.
    pub(crate) async fn boot_record(
        &self,
        installed: &Installed,
        spec: MachineSpec,
        record: ForRecord,
    ) -> Result<Machine, EngineError> {
        self.start(BootFiles::from(installed), spec, Duration::ZERO, Some(record)).await
    }

    /// Waits until a machine that nobody can talk to yet, or any more, has ended, and removes what it left. To be used
    /// when its maker is gone: the VM process then ends by itself.
    ///
    /// # Errors
    /// `timeout` when it does not end.
    pub(crate) async fn end_by_lock(&self, id: &str) -> Result<(), EngineError> {
        let run = &self.inner.paths.run;
        let begun = Instant::now();
        while run_dir::is_live(run, id) {
            if begun.elapsed() > END_LIMIT {
                return Err(EngineError::new(
                    ErrorCode::Timeout,
                    format!("machine {id} does not answer and has not ended within {} s", END_LIMIT.as_secs()),
                )
                .with_hint("end its `pyro vmm` process")
                .retry_may_help());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if run.join(id).exists() {
            run_dir::sweep(run)?;
        }
        Ok(())
    }

    /// Boots a machine from given files; its environment's name is only a label. As [`Self::create_machine`] otherwise.
    ///
    /// # Errors
    /// As [`Self::create_machine`], but for those of environments.
    pub async fn boot(&self, files: BootFiles, spec: MachineSpec) -> Result<Machine, EngineError> {
        self.check(&spec)?;
        self.start(files, spec, Duration::ZERO, None).await
    }

    /// Refuses a machine that cannot be.
    pub(crate) fn check(&self, spec: &MachineSpec) -> Result<(), EngineError> {
        spec.check()?;
        // A host that cannot run it should say so before minutes go into its environment.
        pick_engine(self.inner.options.engine)?;
        check_memory(spec.mem_mib, &std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    async fn start(
        &self,
        files: BootFiles,
        spec: MachineSpec,
        prepared: Duration,
        record: Option<ForRecord>,
    ) -> Result<Machine, EngineError> {
        let EnginePick { execution_mode, reason } = pick_engine(self.inner.options.engine)?;
        tracing::info!(engine = execution_mode.as_str(), %reason, "chose the engine");
        let cpu = match execution_mode {
            ExecutionMode::MicrovmKvm => cpu::operators_changes(&self.inner.paths.config)?,
            _ => CpuConfig::default(),
        };
        let boot = Boot { files, spec, execution_mode, cpu, prepared, record };
        spawn::boot(&self.inner.paths.run, &self.inner.options, boot).await
    }

    /// Returns the machines that run now, whichever process made them.
    ///
    /// # Errors
    /// `io` when the run directory cannot be read.
    pub async fn machines(&self) -> Result<Vec<MachineInfo>, EngineError> {
        let mut machines = Vec::new();
        if !self.inner.paths.run.exists() {
            return Ok(machines);
        }
        for id in run_dir::sweep(&self.inner.paths.run)? {
            // One that ends meanwhile is not running any more.
            if let Ok(body) = self.status(&id).await {
                machines.extend(body.machine);
            }
        }
        Ok(machines)
    }

    /// Returns a handle to a running machine, whichever process made it. The handle does not keep it alive.
    ///
    /// # Errors
    /// `not_found`, `timeout` when its process lives and does not answer, `io` when it cannot be asked.
    pub async fn machine(&self, id: &str) -> Result<Machine, EngineError> {
        let none = || {
            EngineError::new(ErrorCode::NotFound, format!("no machine `{}` is running", id.escape_debug()))
                .with_hint("a machine ends when its time to live is over")
        };
        if !run_dir::is_live(&self.inner.paths.run, id) {
            return Err(none());
        }
        let watched = || self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = watched().get(id).filter(|machine| machine.is_watched()) {
            return Ok(machine.clone());
        }
        let dir = self.inner.paths.run.join(id);
        let attached = async {
            let events = machine::connect(&dir).await?;
            let body = machine::ask(&events, &Request::Watch).await?;
            Ok::<_, io::Error>((events, body))
        };
        let attached = tokio::time::timeout(ANSWER_LIMIT, attached).await;
        let (events, body) = match attached {
            Ok(Ok(attached)) => attached,
            // It ended while it was asked.
            _ if !run_dir::is_live(&self.inner.paths.run, id) => return Err(none()),
            // It does not listen yet, or any more: its lock goes a moment after its sockets.
            Ok(Err(e)) if is_no_listener(&e) => return Err(none()),
            Ok(Err(e)) => return Err(EngineError::io(format_args!("ask machine {id}"), &e)),
            Err(_) => {
                return Err(EngineError::new(
                    ErrorCode::Timeout,
                    format!("the process of machine {id} did not answer within {} s", ANSWER_LIMIT.as_secs()),
                )
                .with_hint("try again; if it stays so, end its `pyro vmm` process, and its disk is kept")
                .retry_may_help());
            }
        };
        let (Some(info), Some(timings)) = body.map(|body| (body.machine, body.timings))? else {
            return Err(none());
        };
        let machine = Machine::new(info, timings, dir, Arc::new(events), LineBuffer::new(MAX_REPLY));
        let mut watched = watched();
        watched.retain(|_, machine| machine.is_watched());
        watched.insert(id.to_owned(), machine.clone());
        Ok(machine)
    }

    async fn status(&self, id: &str) -> Result<OkBody, EngineError> {
        status(&self.inner.paths.run, id).await
    }
}

/// Returns the machines that run and what each costs the host, and changes nothing. A machine that ends meanwhile is
/// left out.
pub async fn running_machines(paths: &Paths) -> Vec<MachineReport> {
    let mut machines = Vec::new();
    for id in run_dir::live(&paths.run) {
        if let Ok(OkBody { machine: Some(machine), statistics, .. }) = status(&paths.run, &id).await {
            machines.push(MachineReport { machine, statistics });
        }
    }
    machines
}

async fn status(run: &Path, id: &str) -> Result<OkBody, EngineError> {
    let asked = async {
        let stream = machine::connect(&run.join(id)).await?;
        machine::ask(&stream, &Request::Status).await
    };
    tokio::time::timeout(ANSWER_LIMIT, asked)
        .await
        .map_err(|_| EngineError::new(ErrorCode::Timeout, format!("machine {id} does not answer")))?
        .map_err(|e| EngineError::io(format_args!("ask machine {id}"), &e))?
}

/// Whether nobody is at the other end of a control socket, as before a VM process listens and while it ends.
fn is_no_listener(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof)
}

/// Refuses a machine that is larger than what the host has left.
fn check_memory(mem_mib: u32, meminfo: &str) -> Result<(), EngineError> {
    let available_mib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib / 1024);
    match available_mib {
        Some(available) if u64::from(mem_mib) + HOST_RESERVE_MIB > available => Err(EngineError::new(
            ErrorCode::LimitExceeded,
            format!("the machine asks for {mem_mib} MiB of memory, and the host has {available} MiB available"),
        )
        .with_hint("pass a smaller mem_mib, or end other machines")
        .retry_may_help()),
        // A host that does not tell is not a reason to refuse.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(home: &Path) -> Engine {
        let options = EngineOptions::with_agent(AgentSource(&[])).unwrap();
        Engine::open(Paths::below(home), options).unwrap()
    }

    #[tokio::test]
    async fn a_vm_process_that_stands_still_is_not_one_that_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let engine = engine(home.path());
        let run = home.path().join("run");
        std::fs::create_dir_all(&run).unwrap();
        let held = run_dir::RunDir::create(&run, None).unwrap();
        // It has its lock, and listens later.
        assert_eq!(engine.machine(&held.id).await.unwrap_err().code(), ErrorCode::NotFound);
        // The kernel lets others connect to a process that is stopped.
        let silent = std::os::unix::net::UnixListener::bind(held.path.join("control.sock")).unwrap();
        let error = engine.machine(&held.id).await.unwrap_err();
        assert_eq!((error.code(), error.retryable()), (ErrorCode::Timeout, true), "{error}");
        assert_eq!(error.message(), format!("the process of machine {} did not answer within 2 s", held.id));
        assert!(error.hint().is_some());
        drop(silent);
        let id = held.id.clone();
        drop(held);
        assert_eq!(engine.machine(&id).await.unwrap_err().code(), ErrorCode::NotFound);
    }

    #[test]
    fn more_memory_than_there_is_is_refused() {
        let meminfo = "MemTotal: 4194304 kB\nMemAvailable:    2097152 kB\n";
        assert!(check_memory(1024, meminfo).is_ok());
        assert!(check_memory(1920, meminfo).is_ok());
        let error = check_memory(1921, meminfo).unwrap_err();
        assert_eq!(error.code(), ErrorCode::LimitExceeded);
        assert_eq!(error.message(), "the machine asks for 1921 MiB of memory, and the host has 2048 MiB available");
        assert!(check_memory(32_768, "").is_ok());
        assert!(check_memory(32_768, "MemAvailable: lots\n").is_ok());
    }
}
