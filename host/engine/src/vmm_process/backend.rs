//! What a VM process asks of an engine: to run one machine, and nothing about files, shells or services.
//!
//! An implementation owns whatever it needs (a child process, threads, descriptors) and is driven by the process's one
//! loop: its descriptors are polled, and [`Backend::turn`] is called when one of them is ready.

use std::{os::fd::BorrowedFd, path::Path};

use pyro_vmm::vsock::VsockHandle;

use super::{config::MachineConfig, console::Console, kvm::KvmVm, qemu::QemuVm};
use crate::{
    error::{EngineError, ErrorCode},
    spec::{ExecutionMode, Statistics},
};

/// A machine that was started.
pub(crate) trait Backend {
    /// Returns the machine's vsock device.
    fn vsock(&self) -> VsockHandle;

    /// Returns the descriptors to be polled for reading.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Handles what is ready without waiting: gives the console its bytes and notices the machine's end.
    fn turn(&mut self, console: &mut Console) -> Option<VmExit>;

    /// Stops the vCPUs.
    fn pause(&mut self) -> Result<(), EngineError>;

    /// Lets the vCPUs run again.
    fn resume(&mut self) -> Result<(), EngineError>;

    /// Ends the machine at once and returns when it is gone. It may be gone already.
    fn kill(&mut self, console: &mut Console);

    /// Returns what the machine costs the host.
    fn statistics(&self) -> Statistics;
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmExit {
    /// Whether the guest ended it, by powering off or by a reset.
    pub orderly: bool,
    /// What happened, for a person.
    pub how: String,
}

/// Makes the machine's disk in the current directory (the run directory), unless it was given one.
///
/// # Errors
/// `io`, `disk_full`.
pub(crate) fn make_disk(config: &MachineConfig) -> Result<(), EngineError> {
    if let Some(disk) = &config.disk {
        // Said here, because an engine would say it less well.
        return std::fs::metadata(disk)
            .map(drop)
            .map_err(|e| EngineError::io(format_args!("find the disk `{}`", disk.display()), &e));
    }
    match config.execution_mode {
        ExecutionMode::MicrovmQemuTcg => QemuVm::make_disk(config),
        ExecutionMode::MicrovmKvm => KvmVm::make_disk(),
        mode => Err(unavailable(mode)),
    }
}

/// Starts the machine. `dir` is the run directory and the current directory.
///
/// # Errors
/// `boot_failed`, `engine_unavailable`, `io`.
pub(crate) fn boot(config: &MachineConfig, dir: &Path) -> Result<Box<dyn Backend>, EngineError> {
    match config.execution_mode {
        ExecutionMode::MicrovmQemuTcg => Ok(Box::new(QemuVm::boot(config, dir)?)),
        ExecutionMode::MicrovmKvm => Ok(Box::new(KvmVm::boot(config)?)),
        mode => Err(unavailable(mode)),
    }
}

fn unavailable(mode: ExecutionMode) -> EngineError {
    EngineError::new(
        ErrorCode::EngineUnavailable,
        format!("this program has no engine for execution mode `{}`", mode.as_str()),
    )
}
