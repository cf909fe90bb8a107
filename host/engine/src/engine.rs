//! The door to environments and machines.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    Paths, Progress,
    error::{EngineError, ErrorCode},
    machine::Machine,
    spec::{EngineChoice, MachineInfo, MachineSpec},
};

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
        })
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
}

impl Engine {
    /// Opens a state directory. Starts nothing and reads nothing but directories.
    ///
    /// # Errors
    /// `io` or `denied` when the directories cannot be used.
    pub fn open(paths: Paths, options: EngineOptions) -> Result<Self, EngineError> {
        Ok(Self { inner: Arc::new(Inner { paths, options }) })
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
    pub async fn create_machine(&self, spec: MachineSpec, _progress: &dyn Progress) -> Result<Machine, EngineError> {
        spec.check()?;
        Err(EngineError::new(ErrorCode::EngineUnavailable, "this build cannot boot machines yet"))
    }

    /// Returns the machines that run now, whichever process made them.
    ///
    /// # Errors
    /// `io` when the run directory cannot be read.
    pub async fn machines(&self) -> Result<Vec<MachineInfo>, EngineError> {
        Ok(Vec::new())
    }

    /// Returns a handle to a running machine, whichever process made it. The handle does not keep it alive.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn machine(&self, id: &str) -> Result<Machine, EngineError> {
        Err(EngineError::new(ErrorCode::NotFound, format!("no machine `{id}` is running")))
    }
}
