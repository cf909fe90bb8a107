//! The KVM engine: our own VMM, in this process, on threads of its own.
//!
//! The VMM's threads jail themselves before the guest runs; this process's loop keeps its rights, because it removes the
//! run directory in the end. The disk is an overlay on the environment's image, made in no time whatever its size.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::PathBuf,
    thread::JoinHandle,
};

use pyro_vmm::{
    ExitReason, Vmm, VmmConfig, VmmError, VmmHandle,
    config::{BASE_CMDLINE, ConsoleConfig, DriveConfig, JailConfig, KernelConfig, LEAN_CMDLINE, VsockConfig},
    selftest,
    vsock::VsockHandle,
};

use rustix::pipe::PipeFlags;

use super::{
    backend::{Backend, VmExit},
    config::MachineConfig,
    console::Console,
};
use crate::{
    error::{EngineError, ErrorCode},
    spec::Statistics,
};

/// File in the run directory, which is the current directory.
const DISK: &str = "disk.overlay";
/// The guest's context id. Every machine has its own device, so they may all have the same.
const GUEST_CID: u32 = 3;

/// A machine on KVM.
pub(crate) struct KvmVm {
    handle: VmmHandle,
    vsock: VsockHandle,
    console: File,
    verdict_dir: Option<PathBuf>,
    run: Option<JoinHandle<ExitReason>>,
}

impl KvmVm {
    /// Makes the disk: an empty overlay.
    pub(crate) fn make_disk() -> Result<(), EngineError> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(DISK)
            .map(drop)
            .map_err(|e| EngineError::io(format_args!("make `{DISK}`"), &e))
    }

    /// Builds the machine and starts it.
    pub(crate) fn boot(config: &MachineConfig) -> Result<Self, EngineError> {
        // A pipe, not a socket: a vCPU's thread may write but not send.
        let (console, output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|e| EngineError::io("make the console", &e.into()))?;
        let (console, output) = (File::from(console), File::from(output));
        let vmm = Vmm::build_with_console(&vmm_config(config)?, Some(output)).map_err(|e| failed(&e))?;
        let handle = vmm.handle();
        let vsock = handle
            .vsock()
            .ok_or_else(|| EngineError::new(ErrorCode::Internal, "the machine has no vsock device".to_owned()))?;
        let run = std::thread::Builder::new()
            .name("vmm".to_owned())
            .spawn(move || vmm.run())
            .map_err(|e| EngineError::io("start the machine's thread", &e))?;
        Ok(Self { handle, vsock, console, verdict_dir: config.verdict_dir.clone(), run: Some(run) })
    }

    fn drain(&mut self, console: &mut Console) {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = self.console.read(&mut bytes) {
            console.push(bytes.get(..count).unwrap_or_default());
        }
    }

    /// Notes that this host's KVM cannot be used, so that `auto` does not choose it again.
    fn blame_host(&self, reason: &ExitReason) {
        let Some(dir) = &self.verdict_dir else { return };
        if let Err(error) = selftest::mark_unusable(dir, format!("a machine ended: {reason}")) {
            tracing::warn!(%error, "cannot note that this host's KVM fails");
        }
    }

    fn wait(&mut self) {
        if let Some(run) = self.run.take() {
            let _ = run.join();
        }
    }
}

impl Backend for KvmVm {
    fn vsock(&self) -> VsockHandle {
        self.vsock.clone()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.console.as_fd(), self.handle.exit_event()]
    }

    fn turn(&mut self, console: &mut Console) -> Option<VmExit> {
        let reason = self.handle.exit_reason();
        if reason.is_some() {
            self.wait();
        }
        // After the wait, the guest's last words are all there.
        self.drain(console);
        let reason = reason?;
        if reason.blames_host() {
            self.blame_host(&reason);
        }
        let orderly = matches!(reason, ExitReason::PowerOff | ExitReason::Reset);
        Some(VmExit { orderly, how: describe(&reason) })
    }

    fn pause(&mut self) -> Result<(), EngineError> {
        self.handle.pause();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), EngineError> {
        self.handle.resume();
        Ok(())
    }

    fn kill(&mut self, console: &mut Console) {
        self.handle.stop();
        self.wait();
        self.drain(console);
    }

    fn statistics(&self) -> Statistics {
        let (vsock, kvm) = (self.vsock.stats(), self.handle.stats());
        Statistics {
            resident_bytes: kvm.rss_kib * 1024,
            cpu_ms: cpu_ms(),
            connections: vsock.connections_opened.saturating_sub(vsock.connections_closed),
            kvm: Some(kvm),
            cgroup: None,
        }
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        self.handle.stop();
        self.wait();
    }
}

/// Returns what happened, with the registers of a CPU that could not go on.
fn describe(reason: &ExitReason) -> String {
    match reason {
        ExitReason::Crash { report } => format!("{reason}; registers {}", report.registers),
        _ => reason.to_string(),
    }
}

/// Returns the CPU time of this process, which is the machine's.
fn cpu_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let ms = time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}

fn vmm_config(config: &MachineConfig) -> Result<VmmConfig, EngineError> {
    let too_many = |_| EngineError::new(ErrorCode::InvalidArgument, format!("{} vCPUs", config.spec.vcpu_count));
    Ok(VmmConfig {
        vcpu_count: u8::try_from(config.spec.vcpu_count).map_err(too_many)?,
        mem_mib: config.spec.mem_mib,
        kernel: KernelConfig { path: config.kernel.clone() },
        initramfs: Some(config.initramfs.clone()),
        cmdline: kernel_arguments(config.verbose_console),
        drives: vec![DriveConfig {
            path: config.disk.clone().unwrap_or_else(|| PathBuf::from(DISK)),
            base: config.disk.is_none().then(|| config.rootfs.clone()),
            read_only: false,
            // The overlay dies with the machine.
            durable: config.disk.is_some(),
            serial: "root".to_owned(),
        }],
        vsock: Some(VsockConfig { guest_cid: GUEST_CID }),
        rng: true,
        console: ConsoleConfig::default(),
        cpu: config.cpu.clone(),
        jail: JailConfig::default(),
    })
}

fn kernel_arguments(verbose: bool) -> String {
    let volume = if verbose { "ignore_loglevel" } else { "quiet" };
    format!("console=ttyS0 {volume} {BASE_CMDLINE} {LEAN_CMDLINE}")
}

fn failed(error: &VmmError) -> EngineError {
    let code = match error {
        VmmError::Kvm(_) => ErrorCode::EngineUnavailable,
        VmmError::Config(_) => ErrorCode::InvalidArgument,
        _ => ErrorCode::BootFailed,
    };
    EngineError::new(code, error.to_string())
}
