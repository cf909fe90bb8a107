//! What a machine is asked to be, and what is known about it: plain data, checked before anything starts.

use std::{path::PathBuf, time::Duration};

pub use pyro_vmm::stats::VmmStats;
use serde::{Deserialize, Serialize};

use crate::error::{EngineError, ErrorCode};

/// vCPUs a machine may have.
pub const VCPU_COUNT: std::ops::RangeInclusive<u32> = 1..=8;
/// Guest memory, in MiB.
pub const MEM_MIB: std::ops::RangeInclusive<u32> = 256..=32_768;
/// Time to live, in seconds.
pub const TTL_SECONDS: std::ops::RangeInclusive<u64> = 60..=3600;

/// Which engine to run machines on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// The fastest that is proven to work on this host.
    #[default]
    Auto,
    /// KVM, whatever the self-test says.
    Kvm,
    /// The software engine.
    Qemu,
}

/// Who keeps a machine alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// The machine ends with the last handle of the process that made it, however that process ends.
    #[default]
    Owned,
    /// The machine lives until it is ended or expires.
    Detached,
}

/// How commands of a machine are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionMode {
    /// Not booted yet.
    Pending,
    /// A microVM on QEMU's software CPU.
    MicrovmQemuTcg,
    /// A microVM on KVM.
    MicrovmKvm,
}

impl ExecutionMode {
    /// Returns the snake_case name used in results.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::MicrovmQemuTcg => "microvm_qemu_tcg",
            Self::MicrovmKvm => "microvm_kvm",
        }
    }
}

/// A machine to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Name of the environment, for example `debian:12`.
    pub environment: String,
    /// Number of vCPUs, see [`VCPU_COUNT`].
    pub vcpu_count: u32,
    /// Guest memory in MiB, see [`MEM_MIB`].
    pub mem_mib: u32,
    /// The machine ends this long after it was created, see [`TTL_SECONDS`].
    pub ttl: Duration,
    /// Who keeps it alive.
    pub lifetime: Lifetime,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            environment: "debian:12".to_owned(),
            vcpu_count: 1,
            mem_mib: 1024,
            ttl: Duration::from_secs(600),
            lifetime: Lifetime::Owned,
        }
    }
}

impl MachineSpec {
    /// Checks every range.
    ///
    /// # Errors
    /// `invalid_argument` naming the first value that is out of range.
    pub fn check(&self) -> Result<(), EngineError> {
        let range = |name: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(EngineError::new(
                    ErrorCode::InvalidArgument,
                    format!("{name} must be between {low} and {high}, not {value}"),
                )
                .with_hint(format!("pass {name} between {low} and {high}")))
            }
        };
        range("vcpu_count", self.vcpu_count.into(), (*VCPU_COUNT.start()).into(), (*VCPU_COUNT.end()).into())?;
        range("mem_mib", self.mem_mib.into(), (*MEM_MIB.start()).into(), (*MEM_MIB.end()).into())?;
        // A fraction of a second above the limit is above the limit.
        let ttl = self.ttl.as_secs() + u64::from(self.ttl.subsec_nanos() > 0);
        range("ttl_seconds", ttl, *TTL_SECONDS.start(), *TTL_SECONDS.end())
    }
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// Booting; the agent has not answered yet.
    Booting,
    /// The agent answered.
    Running,
    /// Shutting down.
    Stopping,
}

/// What is known about a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// Name of its environment.
    pub environment: String,
    /// Version of the installed environment.
    pub environment_version: String,
    /// Number of vCPUs.
    pub vcpu_count: u32,
    /// Guest memory in MiB.
    pub mem_mib: u32,
    /// Time to live in seconds, counted from `created_at`.
    pub ttl_seconds: u64,
    /// Unix time in seconds.
    pub created_at: f64,
    /// Unix time in seconds.
    pub expires_at: f64,
    /// Where it is in its life.
    pub state: MachineState,
    /// Who keeps it alive.
    pub lifetime: Lifetime,
    /// What it runs on.
    pub execution_mode: ExecutionMode,
}

/// A port of the host that leads to a port of a guest's loopback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The guest's port.
    pub guest_port: u16,
    /// The host's address: `127.0.0.1`.
    pub host: String,
    /// The host's port.
    pub host_port: u16,
    /// Whose it is, for whoever asks.
    pub owner: Option<String>,
}

/// What a machine costs the host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// Memory that the engine's process holds, guest memory included, in bytes.
    pub resident_bytes: u64,
    /// CPU time that the engine's process used, in milliseconds.
    pub cpu_ms: u64,
    /// Open connections between host and guest.
    pub connections: u64,
    /// What the KVM engine counts beyond that: exits by kind, the work of the disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm: Option<VmmStats>,
    /// The machine's own control group, where it could make one: what the kernel accounts is in there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
}

/// A machine that is running, and what it costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MachineReport {
    /// The machine.
    #[serde(flatten)]
    pub machine: MachineInfo,
    /// Its costs; none when its process did not say.
    pub statistics: Option<Statistics>,
}

/// Where the time of a boot went, in milliseconds. Phases follow one another; `total_ms` is their sum and also covers
/// what lies between them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct BootTimings {
    /// Making sure that the environment is installed.
    pub prepare_ms: f64,
    /// Starting the VM process.
    pub spawn_ms: f64,
    /// Making the machine's disk.
    pub disk_ms: f64,
    /// From starting the engine to the start of the guest's monotonic clock, early in its kernel.
    pub engine_ms: f64,
    /// From the start of the guest's clock to the agent's start in the initramfs.
    pub kernel_ms: f64,
    /// From the agent's start to its readiness.
    pub agent_ms: f64,
    /// From the agent's readiness to the caller's handle.
    pub handover_ms: f64,
    /// Everything.
    pub total_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut MachineSpec)) -> String {
        let mut spec = MachineSpec::default();
        change(&mut spec);
        let error = spec.check().unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        error.message().to_owned()
    }

    #[test]
    fn the_defaults_are_allowed() {
        MachineSpec::default().check().unwrap();
    }

    #[test]
    fn values_out_of_range_are_named() {
        assert_eq!(refused(|s| s.vcpu_count = 0), "vcpu_count must be between 1 and 8, not 0");
        assert_eq!(refused(|s| s.vcpu_count = 9), "vcpu_count must be between 1 and 8, not 9");
        assert_eq!(refused(|s| s.mem_mib = 255), "mem_mib must be between 256 and 32768, not 255");
        assert_eq!(refused(|s| s.mem_mib = u32::MAX), "mem_mib must be between 256 and 32768, not 4294967295");
        assert_eq!(refused(|s| s.ttl = Duration::ZERO), "ttl_seconds must be between 60 and 3600, not 0");
        assert_eq!(
            refused(|s| s.ttl = Duration::from_millis(3_600_001)),
            "ttl_seconds must be between 60 and 3600, not 3601"
        );
    }
}
