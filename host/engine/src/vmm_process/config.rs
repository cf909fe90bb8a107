//! What a VM process is told: `machine.json` in its run directory, written by the engine of the same program.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pyro_vmm::config::CpuConfig;
use serde::{Deserialize, Serialize};

use crate::{
    error::{EngineError, ErrorCode},
    spec::{ExecutionMode, MachineInfo, MachineSpec, MachineState, TTL_SECONDS},
};

/// Name of the file in the run directory.
const FILE: &str = "machine.json";
/// Far more than a configuration takes; a file beyond it is not one.
const MAX_BYTES: u64 = 64 * 1024;

/// The longest time to live in seconds, whatever a clock that was set meanwhile says.
const MAX_TTL: f64 = *TTL_SECONDS.end() as f64;

/// Everything that a VM process needs to know. The files it names are read-only and shared by all machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfig {
    /// The machine's id.
    pub id: String,
    /// What was asked for.
    pub spec: MachineSpec,
    /// Version of the installed environment.
    pub environment_version: String,
    /// What it runs on.
    pub execution_mode: ExecutionMode,
    /// What is changed of its CPU; only the KVM engine can.
    #[serde(default)]
    pub cpu: CpuConfig,
    /// The kernel, an ELF file.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// The environment's image: raw, never written.
    pub rootfs: PathBuf,
    /// A raw image that the machine runs on and that outlives it; without one, a copy of `rootfs` that ends with it.
    pub disk: Option<PathBuf>,
    /// Files whose shared locks keep the ones above.
    pub leases: Vec<PathBuf>,
    /// How long the agent may take to answer.
    pub boot_limit: Duration,
    /// Unix time in seconds.
    pub created_at: f64,
    /// Unix time in seconds. A machine that is started again keeps the end it was given, so this need not be
    /// `spec.ttl` after `created_at`.
    pub expires_at: f64,
    /// When the VM process was started, on the host's monotonic clock, in nanoseconds.
    pub spawned_at_ns: u64,
    /// Whether the kernel's messages go to the console, which slows the boot.
    pub verbose_console: bool,
    /// Where the self-test's verdict on KVM is kept, for a machine that finds out otherwise.
    pub verdict_dir: Option<PathBuf>,
}

impl MachineConfig {
    /// Writes the file.
    ///
    /// # Errors
    /// `io`, `disk_full`.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), EngineError> {
        let path = dir.join(FILE);
        let bytes = serde_json::to_vec(self)
            .map_err(|e| EngineError::new(ErrorCode::Internal, format!("render `{}`: {e}", path.display())))?;
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&bytes))
            .map_err(|e| EngineError::io(format_args!("write `{}`", path.display()), &e))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// `io`, and `invalid_argument` when the file is not one.
    pub(crate) fn read(dir: &Path) -> Result<Self, EngineError> {
        let path = dir.join(FILE);
        let failed = |e: &std::io::Error| EngineError::io(format_args!("read `{}`", path.display()), e);
        let size = fs::metadata(&path).map_err(|e| failed(&e))?.len();
        if size > MAX_BYTES {
            return Err(EngineError::new(
                ErrorCode::InvalidArgument,
                format!("`{}` has {size} bytes, more than a machine's configuration takes", path.display()),
            ));
        }
        let bytes = fs::read(&path).map_err(|e| failed(&e))?;
        let config: Self = serde_json::from_slice(&bytes).map_err(|e| {
            EngineError::new(ErrorCode::InvalidArgument, format!("`{}` is not a machine: {e}", path.display()))
        })?;
        config.spec.check()?;
        Ok(config)
    }

    /// Returns how long the machine has, from now.
    pub(crate) fn time_left(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Duration::try_from_secs_f64((self.expires_at - now).min(MAX_TTL)).unwrap_or_default()
    }

    /// Returns the public description of the machine.
    pub(crate) fn describe(&self, state: MachineState) -> MachineInfo {
        MachineInfo {
            id: self.id.clone(),
            environment: self.spec.environment.clone(),
            environment_version: self.environment_version.clone(),
            vcpu_count: self.spec.vcpu_count,
            mem_mib: self.spec.mem_mib,
            ttl_seconds: self.spec.ttl.as_secs(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            state,
            lifetime: self.spec.lifetime,
            execution_mode: self.execution_mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            id: "0123456789ab".to_owned(),
            spec: MachineSpec::default(),
            environment_version: "1".to_owned(),
            execution_mode: ExecutionMode::MicrovmQemuTcg,
            cpu: CpuConfig { extra_msrs: vec![0x10a], ..CpuConfig::default() },
            kernel: "/k".into(),
            initramfs: "/i".into(),
            rootfs: "/r".into(),
            disk: Some("/d".into()),
            leases: vec!["/l".into()],
            boot_limit: Duration::from_secs(30),
            created_at: 1_700_000_000.5,
            expires_at: 1_700_000_600.5,
            spawned_at_ns: 7,
            verbose_console: false,
            verdict_dir: Some("/v".into()),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        config().write(dir.path()).unwrap();
        assert_eq!(MachineConfig::read(dir.path()).unwrap(), config());
    }

    #[test]
    fn bad_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(MachineConfig::read(dir.path()).unwrap_err().code(), ErrorCode::Io);
        let path = dir.path().join(FILE);
        for bad in [b"".as_slice(), b"{}", b"null", b"\xff"] {
            fs::write(&path, bad).unwrap();
            assert_eq!(MachineConfig::read(dir.path()).unwrap_err().code(), ErrorCode::InvalidArgument);
        }
        let mut absurd = config();
        absurd.spec.mem_mib = 0;
        fs::write(&path, serde_json::to_vec(&absurd).unwrap()).unwrap();
        assert_eq!(MachineConfig::read(dir.path()).unwrap_err().code(), ErrorCode::InvalidArgument);
        fs::write(&path, vec![b' '; MAX_BYTES as usize + 1]).unwrap();
        assert_eq!(MachineConfig::read(dir.path()).unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}
