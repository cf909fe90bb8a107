//! Why a VM ended.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{kvm_regs, kvm_sregs};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset. This VMM does not restart it.
    Reset,
    /// The guest's kernel panicked and then reset.
    GuestPanic {
        /// The kernel's own words.
        message: String,
    },
    /// The owner ended it.
    Stopped,
    /// The CPU could not go on; see the report.
    Crash {
        /// Everything known about it.
        report: Box<CrashReport>,
    },
    /// The VMM failed.
    Failed {
        /// What failed.
        message: String,
    },
}

impl ExitReason {
    /// Returns whether this host's KVM, not the guest, is at fault: the engine must not be
    /// chosen here again.
    pub fn blames_host(&self) -> bool {
        match self {
            ExitReason::Crash { report } => {
                matches!(report.cause, CrashCause::InternalError { .. } | CrashCause::FailEntry { .. })
            }
            _ => false,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitReason::PowerOff => f.write_str("the guest powered off"),
            ExitReason::Reset => f.write_str("the guest asked for a reset"),
            ExitReason::GuestPanic { message } => write!(f, "the guest kernel panicked: {message}"),
            ExitReason::Stopped => f.write_str("the VM was stopped"),
            ExitReason::Crash { report } => write!(f, "the virtual CPU failed: {report}"),
            ExitReason::Failed { message } => write!(f, "the VMM failed: {message}"),
        }
    }
}

/// What stopped a vCPU for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum CrashCause {
    /// `KVM_EXIT_INTERNAL_ERROR`; suberror 1 is an instruction that KVM could not emulate.
    InternalError {
        /// KVM's suberror.
        suberror: u32,
    },
    /// `KVM_EXIT_FAIL_ENTRY`: the CPU refused the guest's state.
    FailEntry {
        /// The hardware's reason.
        reason: u64,
    },
    /// A triple fault.
    TripleFault,
    /// An exit that this VMM gives no guest a way to cause.
    Unexpected {
        /// KVM's name or number of it.
        exit: String,
    },
    /// `KVM_RUN` failed.
    RunError {
        /// The error number.
        errno: i32,
    },
}

/// State of a vCPU that cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashReport {
    /// What happened.
    #[serde(flatten)]
    pub cause: CrashCause,
    /// Which vCPU.
    pub vcpu: u8,
    /// Instruction pointer.
    pub rip: u64,
    /// Bytes at the instruction pointer, in hexadecimal; empty when it cannot be translated.
    pub instruction: String,
    /// General and control registers, one `name=value` each.
    pub registers: String,
}

impl CrashReport {
    /// Makes a report from what the vCPU could still tell.
    pub fn new(cause: CrashCause, vcpu: u8, regs: &kvm_regs, sregs: &kvm_sregs, bytes: &[u8]) -> CrashReport {
        let values = [
            ("rip", regs.rip),
            ("rflags", regs.rflags),
            ("rsp", regs.rsp),
            ("rax", regs.rax),
            ("rbx", regs.rbx),
            ("rcx", regs.rcx),
            ("rdx", regs.rdx),
            ("rsi", regs.rsi),
            ("rdi", regs.rdi),
            ("rbp", regs.rbp),
            ("r8", regs.r8),
            ("r9", regs.r9),
            ("r10", regs.r10),
            ("r11", regs.r11),
            ("r12", regs.r12),
            ("r13", regs.r13),
            ("r14", regs.r14),
            ("r15", regs.r15),
            ("cr0", sregs.cr0),
            ("cr2", sregs.cr2),
            ("cr3", sregs.cr3),
            ("cr4", sregs.cr4),
            ("efer", sregs.efer),
            ("cs", u64::from(sregs.cs.selector)),
        ];
        let registers: Vec<String> = values.iter().map(|(name, value)| format!("{name}={value:#x}")).collect();
        let instruction: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        CrashReport { cause, vcpu, rip: regs.rip, instruction: instruction.join(" "), registers: registers.join(" ") }
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            CrashCause::InternalError { suberror: 1 } => f.write_str("KVM could not emulate an instruction")?,
            CrashCause::InternalError { suberror } => write!(f, "KVM internal error, suberror {suberror}")?,
            CrashCause::FailEntry { reason } => write!(f, "guest entry failed with reason {reason:#x}")?,
            CrashCause::TripleFault => f.write_str("triple fault")?,
            CrashCause::Unexpected { exit } => write!(f, "unexpected exit {exit}")?,
            CrashCause::RunError { errno } => write!(f, "KVM_RUN failed with error {errno}")?,
        }
        write!(f, " on vCPU {} at {:#x}", self.vcpu, self.rip)?;
        if !self.instruction.is_empty() {
            write!(f, " (bytes {})", self.instruction)?;
        }
        Ok(())
    }
}

/// Where threads of a VM say that it is over. The first reason stays.
#[derive(Debug)]
pub struct ExitSignal {
    reason: Mutex<Option<ExitReason>>,
    event: EventFd,
}

impl ExitSignal {
    /// Makes a signal that nobody has set.
    pub fn new() -> std::io::Result<ExitSignal> {
        Ok(ExitSignal { reason: Mutex::new(None), event: EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)? })
    }

    /// Ends the VM for `reason`, unless it has ended before.
    pub fn set(&self, reason: ExitReason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        // The counter cannot overflow: it is written once per thread.
        let _ = self.event.write(1);
    }

    /// Returns the reason once there is one.
    pub fn reason(&self) -> Option<ExitReason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the descriptor of [`ExitSignal::event`].
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the event counter owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }

    /// Becomes readable when a reason is set. Nobody reads it, so it stays so.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let signal = ExitSignal::new().unwrap();
        signal.set(ExitReason::Reset);
        signal.set(ExitReason::Stopped);
        assert_eq!(signal.reason(), Some(ExitReason::Reset));
    }

    #[test]
    fn a_report_names_the_instruction_and_blames_the_host() {
        let regs = kvm_regs { rip: 0x1234, ..Default::default() };
        let report = CrashReport::new(
            CrashCause::InternalError { suberror: 1 },
            0,
            &regs,
            &kvm_sregs::default(),
            &[0xf0, 0x48, 0x0f, 0xc7, 0x0e],
        );
        assert_eq!(
            report.to_string(),
            "KVM could not emulate an instruction on vCPU 0 at 0x1234 (bytes f0 48 0f c7 0e)"
        );
        assert!(ExitReason::Crash { report: Box::new(report) }.blames_host());
        assert!(!ExitReason::PowerOff.blames_host());
    }
}
