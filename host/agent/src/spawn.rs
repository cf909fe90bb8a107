//! Starts one process, directly in its cgroup.
//!
//! `clone3` with `CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP`: no page tables are copied, the agent sleeps until the
//! child has executed its program or failed, and no instant exists in which the child is outside its cgroup. Because the
//! memory is shared, the child leaves the reason of a failure where the agent reads it.
//!
//! Everything the child needs is made ready before; between clone and execve it allocates nothing and takes no lock.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::process::{Resource, getrlimit};

/// The soft limit of open files that commands get. Programs that use `select` break above it.
const COMMAND_NOFILE_SOFT: u64 = 1024;

/// What to start.
pub struct Command<'a> {
    /// The paths to try in turn, as `execvp` does.
    pub candidates: &'a [CString],
    /// The arguments, the program's name first.
    pub argv: &'a [CString],
    /// The variables, as `NAME=value`.
    pub envp: &'a [CString],
    /// The working directory.
    pub cwd: BorrowedFd<'a>,
    /// Standard input, output and error. All above 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// The directory of the cgroup to start in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether standard input is a terminal, which then controls the new session.
    pub on_terminal: bool,
}

/// A started process, leader of its own session and process group.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id.
    pub pid: i32,
    /// A descriptor that becomes readable when it has ended.
    pub pidfd: OwnedFd,
}

/// Why nothing was started.
#[derive(Debug)]
pub enum SpawnError {
    /// No candidate could be executed.
    Exec(Errno),
    /// The system refused something else.
    System(&'static str, io::Error),
}

/// Starts processes. Holds the stack on which children run until they execute their program.
#[derive(Debug)]
pub struct Spawner {
    stack: *mut libc::c_void,
    /// The limit of open files that commands get.
    files: libc::rlimit,
    /// Signals that are ignored here, a bit each. All others start with their default: the kernel clears handlers.
    ignored: u32,
}

const STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 4096;

// SAFETY: the stack is plain memory that only `spawn`, which takes `&mut self`, uses.
unsafe impl Send for Spawner {}

impl Spawner {
    /// Returns a spawner.
    ///
    /// # Errors
    /// When there is no memory for the stack.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address the kernel chooses; its lowest page, which nothing uses, becomes the guard.
        let stack = unsafe {
            let stack = mmap_anonymous(
                ptr::null_mut(),
                STACK_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::STACK,
            )?;
            mprotect(stack, GUARD_BYTES, MprotectFlags::empty())?;
            stack
        };
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(libc::RLIM_INFINITY);
        let files = libc::rlimit { rlim_cur: COMMAND_NOFILE_SOFT.min(hard), rlim_max: hard };
        Ok(Self { stack, files, ignored: ignored_signals() })
    }

    /// Starts `command` and returns once it executes its program.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing runs then.
    pub fn spawn(&mut self, command: &Command<'_>) -> Result<Spawned, SpawnError> {
        let candidates = pointers(command.candidates);
        let argv = pointers(command.argv);
        let envp = pointers(command.envp);
        let stdio = command.stdio.map(|fd| fd.as_raw_fd());
        if stdio.iter().any(|fd| *fd <= 2) {
            return Err(SpawnError::System("descriptors", Errno::BADF.into()));
        }
        let mut child = Child {
            candidates: candidates.as_ptr(),
            argv: argv.as_ptr(),
            envp: envp.as_ptr(),
            cwd: command.cwd.as_raw_fd(),
            stdio,
            on_terminal: command.on_terminal,
            files: self.files,
            ignored: self.ignored,
            failure: Failure { stage: Stage::None, errno: 0 },
        };
        let mut pidfd: RawFd = -1;
        let mut args = CloneArgs {
            flags: CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
            pidfd: (&raw mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            stack: self.stack as u64,
            stack_size: STACK_BYTES as u64,
            ..CloneArgs::default()
        };
        if let Some(cgroup) = command.cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }

        // SAFETY: `args` describes a stack that nothing else uses, and `child` holds pointers to arrays that end in a null
        // pointer; all of it lives until the child has executed a program or ended, because CLONE_VFORK suspends this
        // thread until then. `child_main` fulfils its contract.
        let pid = unsafe { clone_child(&mut args, &raw mut child) };
        // SAFETY: the child wrote `failure` through a pointer that the compiler saw escape into the assembly block.
        let failure = unsafe { ptr::read_volatile(&raw const child.failure) };
        if pid < 0 {
            let errno = i32::try_from(-pid).unwrap_or(libc::EINVAL);
            return Err(SpawnError::System("clone3", io::Error::from_raw_os_error(errno)));
        }
        let pid = i32::try_from(pid).map_err(|_| SpawnError::System("clone3", Errno::OVERFLOW.into()))?;
        // SAFETY: the kernel stored a fresh descriptor that nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let system = |what| SpawnError::System(what, io::Error::from_raw_os_error(failure.errno));
        let error = match failure.stage {
            Stage::None => return Ok(Spawned { pid, pidfd }),
            Stage::Exec => SpawnError::Exec(Errno::from_raw_os_error(failure.errno)),
            Stage::Stdio => system("dup2"),
            Stage::Terminal => system("take the terminal"),
            Stage::Cwd => system("fchdir"),
        };
        // The child has called _exit; CLONE_VFORK means that it is a zombie by now or will be in a moment.
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
            rustix::process::WaitIdOptions::EXITED,
        );
        Err(error)
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; no child runs on it any more.
        let _ = unsafe { munmap(self.stack, STACK_BYTES) };
    }
}

/// Returns which signals are ignored, a bit each.
fn ignored_signals() -> u32 {
    (1..=31).fold(0, |mask, number| {
        // SAFETY: only asks; a zeroed `sigaction` is a valid one to write over.
        let ignored = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(number, ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
        };
        mask | u32::from(ignored) << number
    })
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// `struct clone_args` of linux/sched.h.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

// Flags of linux/sched.h, as the 64-bit values clone3 takes.
const CLONE_VM: u64 = 0x100;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the child reads, and where it leaves the reason of a failure.
#[repr(C)]
struct Child {
    candidates: *const *const libc::c_char,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    cwd: RawFd,
    stdio: [RawFd; 3],
    on_terminal: bool,
    files: libc::rlimit,
    ignored: u32,
    failure: Failure,
}

#[derive(Clone, Copy)]
struct Failure {
    stage: Stage,
    errno: i32,
}

#[derive(Clone, Copy)]
enum Stage {
    None,
    Stdio,
    Terminal,
    Cwd,
    Exec,
}

/// Calls `clone3`; the child enters [`child_main`] on its new stack. Returns the pid, or a negative errno.
///
/// # Safety
/// `args` must name a stack for the child's sole use, and set CLONE_VM and CLONE_VFORK. `child` and what it points to
/// must live across the call.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_child(args: &mut CloneArgs, child: *mut Child) -> isize {
    let result: isize;
    // SAFETY: the parent gets the result in rax and falls through to label 2, with only the registers that `syscall`
    // destroys changed. The child has its own registers and, by the caller's contract, its own stack, which the kernel
    // starts at its 16-byte aligned top; it never returns from `child_main`, so it never runs compiled parent code.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") ptr::from_mut(args),
            in("rsi") std::mem::size_of::<CloneArgs>(),
            in("r12") child,
            in("r13") child_main as unsafe extern "C" fn(*mut Child) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The child, from its first instruction to `execve`.
///
/// # Safety
/// Runs in the parent's memory while the parent is suspended. `child` must be what [`Spawner::spawn`] prepared.
unsafe extern "C" fn child_main(child: *mut Child) -> ! {
    // SAFETY: by the contract above `child` and its arrays are valid and nobody else uses them now. Only calls that are
    // safe between vfork and exec are made: none allocates, locks, or runs code that could unwind.
    unsafe {
        // Handlers are cleared by the kernel; what is ignored and blocked is not. SIGPIPE is ignored here, and a program
        // that was started in the background has SIGINT and SIGQUIT ignored by its shell.
        for number in (1..=31).filter(|number| (*child).ignored >> number & 1 == 1) {
            libc::signal(number, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::setsid();
        libc::umask(0o022);

        for (target, fd) in (0..).zip((*child).stdio) {
            if libc::dup2(fd, target) < 0 {
                fail(child, Stage::Stdio);
            }
        }
        if (*child).on_terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            fail(child, Stage::Terminal);
        }
        if libc::fchdir((*child).cwd) < 0 {
            fail(child, Stage::Cwd);
        }
        // Every descriptor of the agent closes on execve by itself; this also covers any it was started with.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const (*child).files);

        let mut denied = false;
        let mut candidate = (*child).candidates;
        while !(*candidate).is_null() {
            libc::execve(*candidate, (*child).argv, (*child).envp);
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                _ => fail(child, Stage::Exec),
            }
            candidate = candidate.add(1);
        }
        if denied {
            *libc::__errno_location() = libc::EACCES;
        }
        fail(child, Stage::Exec)
    }
}

/// Leaves `errno` for the parent and ends the child.
///
/// # Safety
/// As for [`child_main`].
unsafe fn fail(child: *mut Child, stage: Stage) -> ! {
    // SAFETY: as for `child_main`.
    unsafe {
        let errno = *libc::__errno_location();
        ptr::write_volatile(&raw mut (*child).failure, Failure { stage, errno });
        libc::_exit(127)
    }
}
