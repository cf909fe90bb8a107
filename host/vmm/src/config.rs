//! What a caller asks for when it builds a microVM.
//!
//! Plain data, checked by [`VmmConfig::validate`]. Paths are opened while the VM is built and
//! never again: a jailed VMM has no path left to open.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Largest number of vCPUs of one VM.
pub const MAX_VCPUS: u8 = 32;

/// Smallest guest memory: below it Debian's kernel and an initramfs do not fit.
pub const MIN_MEM_MIB: u32 = 64;

/// Largest guest memory, 1 TiB: far above any host seen, far below address arithmetic limits.
pub const MAX_MEM_MIB: u32 = 1 << 20;

/// Most disks of one VM: one virtio-mmio interrupt line each.
pub const MAX_DRIVES: usize = 8;

/// Longest kernel command line in bytes, as Linux on x86 takes it (`COMMAND_LINE_SIZE`).
pub const MAX_CMDLINE: usize = 2047;

/// Kernel arguments that suit this machine: nothing to probe that it does not have, and a reset
/// instead of an endless loop after a panic.
///
/// No `i8042.nopnp`: it makes Linux probe for a keyboard controller although the FADT denies one,
/// which costs it half a second.
///
/// `reboot=k` although the FADT has a reset register: on a hardware-reduced machine Linux prefers
/// EFI's reset, and without EFI it jumps into a BIOS that is not there either.
pub const BASE_CMDLINE: &str = "panic=-1 reboot=k pci=off";

/// Kernel arguments that spare a machine of minutes what it does not need: self-tests of ciphers,
/// the search for more serial ports, slow grace periods, and accounting of stalls and of the
/// kernel's own memory, which is a tenth of what starting a program costs.
///
/// What defends the guest's kernel against its own programs stays on.
pub const LEAN_CMDLINE: &str = "8250.nr_uarts=1 cryptomgr.notests random.trust_cpu=on \
     rcupdate.rcu_expedited=1 psi=0 cgroup.memory=nokmem,nosocket";

/// One microVM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpu_count: u8,
    /// Guest memory in MiB.
    pub mem_mib: u32,
    /// The kernel.
    pub kernel: KernelConfig,
    /// The initramfs, as the kernel takes it.
    pub initramfs: Option<PathBuf>,
    /// The whole kernel command line; [`BASE_CMDLINE`] is a good start.
    pub cmdline: String,
    /// Disks, in the order in which the guest names them (`vda`, `vdb`, ...).
    #[serde(default)]
    pub drives: Vec<DriveConfig>,
    /// The vsock device; without it the guest has none.
    pub vsock: Option<VsockConfig>,
    /// Whether the guest gets a virtio entropy source.
    #[serde(default = "yes")]
    pub rng: bool,
    /// Where the serial console goes.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// An operator's changes to the CPU the guest sees.
    #[serde(default)]
    pub cpu: CpuConfig,
    /// What the VMM gives up before the guest runs.
    #[serde(default)]
    pub jail: JailConfig,
}

/// The kernel file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// An ELF (`vmlinux`) or bzImage file.
    pub path: PathBuf,
}

/// One virtio disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// A raw image; its length is the disk's, rounded down to 512 bytes.
    pub path: PathBuf,
    /// An image below it that never changes: `path` is then an overlay, empty at first, that
    /// holds only what the guest has written.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// Whether writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// Whether a flush reaches the host's disk. False for disks that die with their VM.
    #[serde(default = "yes")]
    pub durable: bool,
    /// The serial number the guest reads, at most 20 bytes.
    #[serde(default)]
    pub serial: String,
}

/// The vsock device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub guest_cid: u32,
}

/// The serial console.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// File that gets the output; without it only the last lines are kept in memory.
    pub path: Option<PathBuf>,
    /// Bytes after which the file stops growing.
    #[serde(default = "default_console_limit")]
    pub limit: u64,
}

impl Default for ConsoleConfig {
    fn default() -> ConsoleConfig {
        ConsoleConfig { path: None, limit: default_console_limit() }
    }
}

/// An operator's changes to the guest's CPU: what some call a CPU template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// Bits to clear in CPUID results.
    #[serde(default)]
    pub cpuid_masks: Vec<CpuidMask>,
    /// MSRs to save with a vCPU besides the ones KVM lists.
    #[serde(default)]
    pub extra_msrs: Vec<u32>,
}

/// Bits to clear in one CPUID leaf.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidMask {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input; all subleaves when absent.
    pub subleaf: Option<u32>,
    /// Bits to clear in EAX.
    #[serde(default)]
    pub eax: u32,
    /// Bits to clear in EBX.
    #[serde(default)]
    pub ebx: u32,
    /// Bits to clear in ECX.
    #[serde(default)]
    pub ecx: u32,
    /// Bits to clear in EDX.
    #[serde(default)]
    pub edx: u32,
}

/// What the threads of the VMM give up before the guest runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// Whether the threads that a guest can reach get seccomp filters.
    #[serde(default = "yes")]
    pub seccomp: bool,
    /// Whether those threads lose their rights to the file system, where the kernel has Landlock.
    #[serde(default = "yes")]
    pub landlock: bool,
}

impl Default for JailConfig {
    fn default() -> JailConfig {
        JailConfig { seccomp: true, landlock: true }
    }
}

fn yes() -> bool {
    true
}

fn default_console_limit() -> u64 {
    1 << 20
}

/// What is wrong with a [`VmmConfig`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// See the message.
    #[error("vcpu_count is {0}, not 1 to {MAX_VCPUS}")]
    VcpuCount(u8),
    /// See the message.
    #[error("mem_mib is {0}, not {MIN_MEM_MIB} to {MAX_MEM_MIB}")]
    MemSize(u32),
    /// See the message.
    #[error("the kernel command line has {0} bytes, more than {MAX_CMDLINE}")]
    CmdlineLength(usize),
    /// See the message.
    #[error("the kernel command line holds a NUL byte")]
    CmdlineNul,
    /// See the message.
    #[error("{0} disks, more than {MAX_DRIVES}")]
    DriveCount(usize),
    /// See the message.
    #[error("disk serial number `{0}` is longer than 20 bytes")]
    DriveSerial(String),
    /// See the message.
    #[error("guest_cid is {0}; 0 to 2 and 4294967295 are reserved")]
    GuestCid(u32),
}

impl VmmConfig {
    /// Checks every bound that does not need the file system.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.vcpu_count == 0 || self.vcpu_count > MAX_VCPUS {
            return Err(ConfigError::VcpuCount(self.vcpu_count));
        }
        if !(MIN_MEM_MIB..=MAX_MEM_MIB).contains(&self.mem_mib) {
            return Err(ConfigError::MemSize(self.mem_mib));
        }
        if self.cmdline.len() > MAX_CMDLINE {
            return Err(ConfigError::CmdlineLength(self.cmdline.len()));
        }
        if self.cmdline.as_bytes().contains(&0) {
            return Err(ConfigError::CmdlineNul);
        }
        if self.drives.len() > MAX_DRIVES {
            return Err(ConfigError::DriveCount(self.drives.len()));
        }
        if let Some(drive) = self.drives.iter().find(|drive| drive.serial.len() > 20) {
            return Err(ConfigError::DriveSerial(drive.serial.clone()));
        }
        if let Some(vsock) = &self.vsock
            && (vsock.guest_cid < 3 || vsock.guest_cid == u32::MAX)
        {
            return Err(ConfigError::GuestCid(vsock.guest_cid));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmmConfig {
        serde_json::from_str(
            r#"{"vcpu_count":1,"mem_mib":256,"kernel":{"path":"vmlinux"},"initramfs":null,
                "cmdline":"quiet","vsock":{"guest_cid":3}}"#,
        )
        .unwrap()
    }

    #[test]
    fn bounds_are_named_with_their_value() {
        assert_eq!(config().validate(), Ok(()));
        let bad = VmmConfig { vcpu_count: 33, ..config() };
        assert_eq!(bad.validate().unwrap_err().to_string(), "vcpu_count is 33, not 1 to 32");
        let bad = VmmConfig { mem_mib: 0, ..config() };
        assert_eq!(bad.validate(), Err(ConfigError::MemSize(0)));
        let bad = VmmConfig { cmdline: "a\0b".into(), ..config() };
        assert_eq!(bad.validate(), Err(ConfigError::CmdlineNul));
        let bad = VmmConfig { vsock: Some(VsockConfig { guest_cid: 2 }), ..config() };
        assert_eq!(bad.validate(), Err(ConfigError::GuestCid(2)));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = r#"{"vcpu_count":1,"mem_mb":256}"#;
        assert!(serde_json::from_str::<VmmConfig>(text).is_err());
    }
}
