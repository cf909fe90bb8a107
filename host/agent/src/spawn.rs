//! Starts processes, each directly in its cgroup.
//!
//! `clone3` with `CLONE_VM | CLONE_INTO_CGROUP`: no page tables are copied, and no instant exists in which the child is
//! outside its cgroup. The agent does not sleep until the child executes its program, as it would with `CLONE_VFORK`: to be
//! woken by it costs two changes of address space while the program runs, which is what a software processor is slowest
//! at. Because the memory is shared, the child leaves the reason of a failure where the agent reads it, and the kernel
//! clears a word there (`CLONE_CHILD_CLEARTID`) when the child has left that memory.
//!
//! Everything the child needs is made ready before and outlives its stay. It allocates nothing, takes no lock, and makes
//! its system calls without the C library, whose `errno` is the agent's at the same time.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::process::{Resource, getrlimit};
use rustix::thread::futex;

/// The soft limit of open files that commands get. Programs that use `select` break above it.
const COMMAND_NOFILE_SOFT: u64 = 1024;
/// How many stacks of children that have left are kept for the next.
const SPARE_STACKS: usize = 4;

/// What to start.
pub struct Command<'a> {
    /// The paths to try in turn, as `execvp` does.
    pub candidates: Vec<CString>,
    /// The arguments, the program's name first.
    pub argv: Vec<CString>,
    /// The variables, as `NAME=value`.
    pub envp: Vec<CString>,
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

/// Starts processes.
#[derive(Debug)]
pub struct Spawner {
    /// Of children that have left.
    stacks: Vec<Stack>,
    /// The limit of open files that commands get.
    files: libc::rlimit,
    /// Signals that are ignored here, a bit each. All others start with their default: the kernel clears handlers.
    ignored: u32,
}

/// A child's way from its first instruction to its program, and the memory it needs for that. Dropped before the child
/// has left, it leaves the memory to it for good.
#[derive(Debug)]
pub struct Launch {
    /// Always there until the end of `drop`.
    memory: Option<Arc<Memory>>,
}

#[derive(Debug)]
struct Memory {
    child: Child,
    stack: Stack,
    /// What `child` points to, and what that points to.
    _pointers: [Vec<*const libc::c_char>; 3],
    _strings: [Vec<CString>; 3],
}

impl Spawner {
    /// Returns a spawner.
    ///
    /// # Errors
    /// When there is no memory for a stack.
    pub fn new() -> io::Result<Self> {
        // Descriptors that the agent opens close on execve by themselves; these are what it was started with.
        // SAFETY: closes nothing now.
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(libc::RLIM_INFINITY);
        let files = libc::rlimit { rlim_cur: COMMAND_NOFILE_SOFT.min(hard), rlim_max: hard };
        Ok(Self { stacks: vec![Stack::new()?], files, ignored: ignored_signals() })
    }

    /// Starts `command` and returns once it executes its program.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing runs then.
    pub fn spawn(&mut self, command: Command<'_>) -> Result<Spawned, SpawnError> {
        let (spawned, launch) = self.start(command)?;
        launch.wait();
        let result = launch.outcome().unwrap_or(Ok(()));
        self.recycle(launch);
        if result.is_err() {
            // The child has left this memory with its last system call, so it is a zombie now or in a moment.
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&spawned.pidfd)),
                rustix::process::WaitIdOptions::EXITED,
            );
        }
        result.map(|()| spawned)
    }

    /// Starts a child that is to execute `command`. Whether it did is the [`Launch`]'s to say; if not, it exits.
    ///
    /// # Errors
    /// [`SpawnError::System`]; there is no child then.
    pub fn start(&mut self, command: Command<'_>) -> Result<(Spawned, Launch), SpawnError> {
        let stdio = command.stdio.map(|fd| fd.as_raw_fd());
        if stdio.iter().any(|fd| *fd <= 2) {
            return Err(SpawnError::System("descriptors", Errno::BADF.into()));
        }
        let stack = match self.stacks.pop() {
            Some(stack) => stack,
            None => Stack::new().map_err(|reason| SpawnError::System("make a stack", reason))?,
        };
        let strings = [command.candidates, command.argv, command.envp];
        let pointers = [&strings[0], &strings[1], &strings[2]].map(|strings| pointers(strings));
        let memory = Arc::new(Memory {
            child: Child {
                candidates: pointers[0].as_ptr(),
                argv: pointers[1].as_ptr(),
                envp: pointers[2].as_ptr(),
                cwd: command.cwd.as_raw_fd(),
                stdio,
                on_terminal: command.on_terminal,
                files: self.files,
                ignored: self.ignored,
                here: AtomicU32::new(1),
                stage: AtomicI32::new(0),
                errno: AtomicI32::new(0),
            },
            stack,
            _pointers: pointers,
            _strings: strings,
        });
        let mut pidfd: RawFd = -1;
        let mut args = CloneArgs {
            flags: CLONE_VM | CLONE_PIDFD | CLONE_CHILD_CLEARTID | CLONE_CLEAR_SIGHAND,
            pidfd: (&raw mut pidfd) as u64,
            child_tid: memory.child.here.as_ptr() as u64,
            exit_signal: libc::SIGCHLD as u64,
            stack: memory.stack.0 as u64,
            stack_size: STACK_BYTES as u64,
            ..CloneArgs::default()
        };
        if let Some(cgroup) = command.cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }

        // SAFETY: `args` describes a stack that nothing else uses, and `memory.child` holds pointers to arrays that end in
        // a null pointer. All of it is in allocations that `Launch` keeps until the child has left.
        let pid = unsafe { clone_child(&mut args, &raw const memory.child) };
        if pid < 0 {
            let errno = i32::try_from(-pid).unwrap_or(libc::EINVAL);
            memory.child.here.store(0, Ordering::Relaxed);
            self.recycle(Launch { memory: Some(memory) });
            return Err(SpawnError::System("clone3", io::Error::from_raw_os_error(errno)));
        }
        let launch = Launch { memory: Some(memory) };
        let pid = i32::try_from(pid).map_err(|_| SpawnError::System("clone3", Errno::OVERFLOW.into()))?;
        // SAFETY: the kernel stored a fresh descriptor that nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok((Spawned { pid, pidfd }, launch))
    }

    /// Takes back the memory of a launch. One whose child has not left keeps it.
    pub fn recycle(&mut self, mut launch: Launch) {
        if launch.has_left()
            && self.stacks.len() < SPARE_STACKS
            && let Some(memory) = launch.memory.take().and_then(Arc::into_inner)
        {
            self.stacks.push(memory.stack);
        }
    }
}

impl Launch {
    /// Returns what became of the child: `None` while it is on its way, `Ok` when it executes its program or was killed
    /// before that.
    pub fn outcome(&self) -> Option<Result<(), SpawnError>> {
        let child = self.memory.as_ref().map(|memory| &memory.child).filter(|_| self.has_left())?;
        let errno = child.errno.load(Ordering::Relaxed);
        let system = |what| Some(Err(SpawnError::System(what, io::Error::from_raw_os_error(errno))));
        match child.stage.load(Ordering::Relaxed) {
            STAGE_STDIO => system("dup2"),
            STAGE_TERMINAL => system("take the terminal"),
            STAGE_CWD => system("fchdir"),
            STAGE_EXEC => Some(Err(SpawnError::Exec(Errno::from_raw_os_error(errno)))),
            _ => Some(Ok(())),
        }
    }

    /// Waits until there is an [`outcome`](Self::outcome).
    pub fn wait(&self) {
        while let Some(memory) = self.memory.as_ref().filter(|_| !self.has_left()) {
            // Whatever ends the wait, the word says whether it was for good. The kernel wakes without PRIVATE.
            let _ = futex::wait(&memory.child.here, futex::Flags::empty(), 1, None);
        }
    }

    fn has_left(&self) -> bool {
        self.memory.as_ref().is_none_or(|memory| memory.child.here.load(Ordering::Acquire) == 0)
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        if !self.has_left() {
            std::mem::forget(self.memory.take());
        }
    }
}

const STACK_BYTES: usize = 64 * 1024;
const GUARD_BYTES: usize = 4096;

/// The memory a child runs on until it executes its program.
#[derive(Debug)]
struct Stack(*mut libc::c_void);

// SAFETY: it is plain memory, which only the child that was given it uses.
unsafe impl Send for Stack {}

impl Stack {
    fn new() -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address the kernel chooses; its lowest page, which nothing uses, becomes the guard.
        unsafe {
            let stack = mmap_anonymous(
                ptr::null_mut(),
                STACK_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::STACK,
            )?;
            mprotect(stack, GUARD_BYTES, MprotectFlags::empty())?;
            Ok(Self(stack))
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; whoever drops it knows that no child runs on it.
        let _ = unsafe { munmap(self.0, STACK_BYTES) };
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
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the child reads, and where it leaves the reason of a failure.
#[derive(Debug)]
struct Child {
    candidates: *const *const libc::c_char,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    cwd: RawFd,
    stdio: [RawFd; 3],
    on_terminal: bool,
    files: libc::rlimit,
    ignored: u32,
    /// 1 until the child has left the agent's memory; the kernel clears it.
    here: AtomicU32,
    /// Where it failed, and why.
    stage: AtomicI32,
    errno: AtomicI32,
}

// SAFETY: the pointers are into memory that goes with it and that nobody changes.
unsafe impl Send for Memory {}
// SAFETY: the same.
unsafe impl Sync for Memory {}

const STAGE_STDIO: i32 = 1;
const STAGE_TERMINAL: i32 = 2;
const STAGE_CWD: i32 = 3;
const STAGE_EXEC: i32 = 4;

/// Calls `clone3`; the child enters [`child_main`] on its new stack. Returns the pid, or a negative errno.
///
/// # Safety
/// `args` must name a stack for the child's sole use, and set CLONE_VM. That stack, `child` and what it points to must
/// live until the child has left.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_child(args: &mut CloneArgs, child: *const Child) -> isize {
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
            in("r13") child_main as unsafe extern "C" fn(*const Child) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Makes a system call. Returns what the kernel does: a negative errno when it failed.
///
/// # Safety
/// As the call's.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: libc::c_long, arguments: [usize; 4]) -> isize {
    let result: isize;
    let [first, second, third, fourth] = arguments;
    // SAFETY: the instruction changes the registers named and, by the caller's contract, only memory that it may.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// `struct sigaction` as the kernel has it, and a set of signals.
const SIGACTION_BYTES: usize = 32;
const SIGSET_BYTES: usize = 8;

/// The child, from its first instruction to `execve`.
///
/// # Safety
/// Runs in the agent's memory beside the agent. `child` must be what [`Spawner::start`] prepared.
unsafe extern "C" fn child_main(child: *const Child) -> ! {
    // SAFETY: by the contract above `child` and its arrays are valid and do not change but for what is atomic. The calls
    // read only them and what is on this stack.
    unsafe {
        let child = &*child;
        // Handlers are cleared by the kernel; what is ignored and blocked is not. SIGPIPE is ignored here, and a program
        // that was started in the background has SIGINT and SIGQUIT ignored by its shell.
        let default = [0_u8; SIGACTION_BYTES];
        let mut number = 1;
        while number < 32 {
            if child.ignored >> number & 1 == 1 {
                call(libc::SYS_rt_sigaction, [number, default.as_ptr() as usize, 0, SIGSET_BYTES]);
            }
            number += 1;
        }
        let none = 0_u64;
        let none = &raw const none as usize;
        call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, none, 0, SIGSET_BYTES]);
        call(libc::SYS_setsid, [0; 4]);
        call(libc::SYS_umask, [0o022, 0, 0, 0]);

        let [stdin, stdout, stderr] = child.stdio;
        for (fd, target) in [(stdin, 0), (stdout, 1), (stderr, 2)] {
            check(child, STAGE_STDIO, call(libc::SYS_dup2, [fd as usize, target, 0, 0]));
        }
        if child.on_terminal {
            check(child, STAGE_TERMINAL, call(libc::SYS_ioctl, [0, libc::TIOCSCTTY as usize, 0, 0]));
        }
        check(child, STAGE_CWD, call(libc::SYS_fchdir, [child.cwd as usize, 0, 0, 0]));
        let files = &raw const child.files as usize;
        call(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as usize, files, 0]);

        let mut reason = libc::ENOENT;
        let mut candidate = child.candidates;
        while !(*candidate).is_null() {
            let result = call(libc::SYS_execve, [*candidate as usize, child.argv as usize, child.envp as usize, 0]);
            match -result as i32 {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => reason = libc::EACCES,
                _ => check(child, STAGE_EXEC, result),
            }
            candidate = candidate.add(1);
        }
        check(child, STAGE_EXEC, -(reason as isize));
        // Not reached.
        std::process::abort()
    }
}

/// Leaves the reason for the agent and ends the child if `result` is a negative errno.
///
/// # Safety
/// As for [`child_main`].
unsafe fn check(child: &Child, stage: i32, result: isize) {
    if result >= 0 {
        return;
    }
    child.errno.store(-result as i32, Ordering::Relaxed);
    child.stage.store(stage, Ordering::Relaxed);
    loop {
        // SAFETY: ends this process alone.
        unsafe { call(libc::SYS_exit_group, [127, 0, 0, 0]) };
    }
}
