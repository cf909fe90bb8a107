//! What the VMM gives up before the guest runs.
//!
//! Every thread that a guest can reach gets, before its first contact with the guest:
//!
//! - a seccomp filter for its job alone. What is not listed kills the process: a thread that asks
//!   for it is not ours any more. `ioctl` is limited to the requests the job needs, and no memory
//!   can be made executable;
//! - a Landlock domain without any right to the file system (where the kernel has Landlock): all
//!   files are open by then;
//! - no new privileges.
//!
//! The thread that owns the VM keeps its rights: it removes the run directory in the end.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::config::JailConfig;

/// A thread's job, which decides what it may ask of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU.
    Vcpu,
    /// Serves a disk.
    Block,
    /// Serves vsock and entropy, waits for the end.
    Loop,
}

impl ThreadKind {
    /// All jobs.
    pub const ALL: [ThreadKind; 3] = [ThreadKind::Vcpu, ThreadKind::Block, ThreadKind::Loop];
}

/// A jail that could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// See the message.
    #[error("cannot build the seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// See the message.
    #[error("cannot install the seccomp filter: {0}")]
    Install(#[from] seccompiler::Error),
    /// See the message.
    #[error("cannot enter a Landlock domain: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// See the message.
    #[error("cannot give up rights of the process: {0}")]
    Process(std::io::Error),
}

/// The jails of all threads, compiled before any of them starts.
pub struct ThreadJail {
    filters: Option<[BpfProgram; 3]>,
    landlock: bool,
}

impl ThreadJail {
    /// Compiles the filters.
    pub fn new(config: &JailConfig) -> Result<ThreadJail, SandboxError> {
        let filters = if config.seccomp {
            let [vcpu, block, run_loop] = ThreadKind::ALL.map(compile);
            Some([vcpu?, block?, run_loop?])
        } else {
            None
        };
        Ok(ThreadJail { filters, landlock: config.landlock })
    }

    /// Jails the calling thread for good.
    pub fn enter(&self, kind: ThreadKind) -> Result<(), SandboxError> {
        if self.landlock {
            // Best effort by design of the crate: an older kernel enforces what it knows.
            Ruleset::default().handle_access(AccessFs::from_all(ABI::V5))?.create()?.restrict_self()?;
        }
        if let Some([vcpu, block, run_loop]) = &self.filters {
            let filter = match kind {
                ThreadKind::Vcpu => vcpu,
                ThreadKind::Block => block,
                ThreadKind::Loop => run_loop,
            };
            seccompiler::apply_filter(filter)?;
        }
        Ok(())
    }
}

/// Gives up what no part of a VMM process needs: new privileges and core dumps, which would hold
/// guest memory.
pub fn enter_process() -> Result<(), SandboxError> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    rustix::thread::set_no_new_privs(true).map_err(|error| SandboxError::Process(error.into()))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|error| SandboxError::Process(error.into()))
}

/// Returns the number of system calls that a job may make.
pub fn syscall_count(kind: ThreadKind) -> usize {
    COMMON.len() + RESTRICTED.len() + job(kind).len()
}

/// What every thread needs: memory, locks, its log, its end.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Calls that every thread may make with restricted arguments only.
const RESTRICTED: &[libc::c_long] =
    &[libc::SYS_fcntl, libc::SYS_ioctl, libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_tgkill];

/// Nothing of its own: exits are served with locks, event counters and the console's file.
const VCPU: &[libc::c_long] = &[];

const BLOCK: &[libc::c_long] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_pread64,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev2,
];

/// `exit_group` and friends are in [`COMMON`]; ending the VM joins threads and closes everything.
const LOOP: &[libc::c_long] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_timerfd_settime,
    libc::SYS_socketpair,
];

fn job(kind: ThreadKind) -> &'static [libc::c_long] {
    match kind {
        ThreadKind::Vcpu => VCPU,
        ThreadKind::Block => BLOCK,
        ThreadKind::Loop => LOOP,
    }
}

/// Numbers of KVM's requests (`linux/kvm.h`), as direction, number and size of the argument.
mod request {
    use kvm_bindings::{
        kvm_cpuid2, kvm_debugregs, kvm_irq_routing, kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_regs, kvm_sregs,
        kvm_translation, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
    };

    const NONE: u64 = 0;
    const WRITE: u64 = 1;
    const READ: u64 = 2;

    const fn kvm(direction: u64, number: u64, size: usize) -> u64 {
        (direction << 30) | ((size as u64) << 16) | (0xae << 8) | number
    }

    /// To run, to route interrupts, and to save or report a vCPU's state.
    pub const VCPU: &[u64] = &[
        kvm(NONE, 0x80, 0),
        kvm(WRITE, 0x6a, size_of::<kvm_irq_routing>()),
        kvm(READ, 0x81, size_of::<kvm_regs>()),
        kvm(READ, 0x83, size_of::<kvm_sregs>()),
        kvm(READ | WRITE, 0x85, size_of::<kvm_translation>()),
        kvm(READ | WRITE, 0x88, size_of::<kvm_msrs>()),
        kvm(READ, 0x8e, size_of::<kvm_lapic_state>()),
        kvm(READ | WRITE, 0x91, size_of::<kvm_cpuid2>()),
        kvm(READ, 0x98, size_of::<kvm_mp_state>()),
        kvm(READ, 0x9f, size_of::<kvm_vcpu_events>()),
        kvm(READ, 0xa1, size_of::<kvm_debugregs>()),
        kvm(NONE, 0xa3, 0),
        // The extended areas behind these two have no fixed size in the bindings' types.
        kvm(READ, 0xa4, 4096),
        kvm(READ, 0xa6, size_of::<kvm_xcrs>()),
    ];

    const _: () = assert!(size_of::<kvm_xsave>() >= 4096);

    /// Making a socket non-blocking.
    pub const LOOP: &[u64] = &[libc::FIONBIO];
}

fn compile(kind: ThreadKind) -> Result<BpfProgram, SandboxError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in COMMON.iter().chain(job(kind)) {
        rules.insert(*call, Vec::new());
    }
    let requests = match kind {
        ThreadKind::Vcpu => request::VCPU,
        ThreadKind::Block => &[],
        ThreadKind::Loop => request::LOOP,
    };
    let ioctls = requests.iter().map(|request| rule(1, SeccompCmpOp::Eq, *request)).collect::<Result<Vec<_>, _>>()?;
    if !ioctls.is_empty() {
        rules.insert(libc::SYS_ioctl, ioctls);
    }
    // Never executable.
    let not_executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, not_executable.clone(), 0)?]);
    }
    // Looking at descriptors (debug builds check what they close) and duplicating them.
    let looks = [libc::F_GETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC]
        .map(|command| rule(1, SeccompCmpOp::Eq, command as u64));
    rules.insert(libc::SYS_fcntl, looks.into_iter().collect::<Result<_, _>>()?);
    // The loop gets vCPUs out of the guest when the VM ends; any thread may abort.
    let kick = libc::SIGRTMIN() as u64;
    let signals = [kick, libc::SIGABRT as u64].map(|signal| rule(2, SeccompCmpOp::Eq, signal));
    rules.insert(libc::SYS_tgkill, signals.into_iter().collect::<Result<_, _>>()?);
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, seccompiler::TargetArch::x86_64)?;
    Ok(BpfProgram::try_from(filter)?)
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, SandboxError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Runs `action` in a thread of a copy of this test program, jailed as `kind`. Returns
    /// whether the process survived.
    fn survives(kind: &str, action: &str) -> bool {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sandbox::tests::jailed_child", "--ignored", "--nocapture"])
            .env("PYRO_TEST_JAIL", format!("{kind}:{action}"))
            .output()
            .unwrap()
            .status;
        assert!(status.success() || status.signal() == Some(libc::SIGSYS), "{status:?}");
        status.success()
    }

    /// The body of the children that [`survives`] starts; run by itself it has nothing to do.
    #[test]
    #[ignore = "started by the other tests as a process of its own"]
    fn jailed_child() {
        let Ok(plan) = std::env::var("PYRO_TEST_JAIL") else {
            return;
        };
        let (kind, action) = plan.split_once(':').unwrap();
        let kind = match kind {
            "vcpu" => ThreadKind::Vcpu,
            "block" => ThreadKind::Block,
            _ => ThreadKind::Loop,
        };
        let jail = ThreadJail::new(&JailConfig { seccomp: true, landlock: true }).unwrap();
        let action = action.to_owned();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        std::thread::spawn(move || {
            jail.enter(kind).unwrap();
            match action.as_str() {
                "nothing" => drop(vec![0u8; 1 << 20]),
                "open" => drop(std::fs::File::open("/etc/passwd")),
                "socket" => drop(std::os::unix::net::UnixDatagram::unbound()),
                "exec" => drop(Command::new("/bin/true").status()),
                "pread" => {
                    let mut byte = [0];
                    std::os::unix::fs::FileExt::read_at(&file, &mut byte, 0).unwrap();
                }
                "executable" => {
                    // SAFETY: a fresh anonymous mapping, never used.
                    unsafe {
                        libc::mmap(
                            std::ptr::null_mut(),
                            4096,
                            libc::PROT_READ | libc::PROT_EXEC,
                            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                            -1,
                            0,
                        )
                    };
                }
                "tty" => {
                    // SAFETY: the request takes no argument.
                    unsafe { libc::ioctl(0, libc::TIOCNOTTY) };
                }
                other => panic!("unknown action {other}"),
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_jailed_thread_does_its_job_and_nothing_else() {
        for kind in ["vcpu", "block", "loop"] {
            assert!(survives(kind, "nothing"), "{kind}");
            for action in ["open", "socket", "exec", "executable", "tty"] {
                assert!(!survives(kind, action), "{kind} could {action}");
            }
        }
        assert!(survives("block", "pread"));
        assert!(!survives("vcpu", "pread"));
    }
}
