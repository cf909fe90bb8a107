//! The system calls that `rustix` does not offer safely.
//!
//! Every other module of the agent but [`crate::spawn`] is free of `unsafe`.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// The context id that always means the host.
pub const HOST_CID: u32 = libc::VMADDR_CID_HOST;

/// Returns a vsock socket that listens on `port` of every context id.
///
/// # Errors
/// The error of the first call that failed; `EAFNOSUPPORT` when the vsock modules are not loaded.
pub fn vsock_listen(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the pointer and the length describe `address`, which lives across the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), SOCKADDR_VM_LEN) })?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// Starts a connection to `port` of the host and returns its non-blocking socket, which may not be connected yet.
///
/// # Errors
/// The error of the first call that failed.
pub fn vsock_connect(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(HOST_CID, port);
    // SAFETY: the pointer and the length describe `address`, which lives across the call.
    match check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), SOCKADDR_VM_LEN) }) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
        Ok(_) => Ok(socket),
    }
}

const SOCKADDR_VM_LEN: libc::socklen_t = mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn vsock_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?)
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: `sockaddr_vm` is plain integers, for which all zeroes is a value.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// Blocks `SIGCHLD` and returns a descriptor that becomes readable when a child has ended.
///
/// # Errors
/// The error of the call that failed.
pub fn child_signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: `sigset_t` is plain integers; sigemptyset and sigaddset initialise and change only `set`, and the other
    // calls only read it. The descriptor is fresh and owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Makes writes to a closed pipe fail with `EPIPE` instead of ending the process.
pub fn ignore_broken_pipes() {
    // SAFETY: installs no handler, only the constant SIG_IGN.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildEnd {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Makes the agent wait its turn when a command runs on its processor, rather than take it at once: each of two switches
/// costs a software processor what it has learned of the code. Its children and later threads are as always.
///
/// # Errors
/// The error of the call.
pub fn do_not_preempt() -> io::Result<()> {
    // The kernel's structure; the C library's call of this name does nothing.
    let priority = 0_i32;
    // SAFETY: the kernel reads one `int` through the pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK,
            &raw const priority,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the pid of some child that has ended, without reaping it. `None` when there is none.
///
/// # Errors
/// Never for a missing child, only for an error of the call itself.
pub fn peek_ended_child() -> io::Result<Option<i32>> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    match wait_child(libc::P_ALL, 0, options) {
        Ok(found) => Ok(found.map(|(pid, _)| pid)),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reaps child `pid` and returns how it ended, or `None` when it still runs.
///
/// # Errors
/// `ECHILD` when it is not a child, or was reaped before.
pub fn reap_child(pid: i32) -> io::Result<Option<ChildEnd>> {
    let id = libc::id_t::try_from(pid).map_err(|_| Errno::INVAL)?;
    Ok(wait_child(libc::P_PID, id, libc::WEXITED | libc::WNOHANG)?.map(|(_, end)| end))
}

fn wait_child(kind: libc::idtype_t, id: libc::id_t, options: i32) -> io::Result<Option<(i32, ChildEnd)>> {
    // SAFETY: `siginfo_t` is plain data that waitid fills; a zero si_pid afterwards means that nothing was found, and a
    // non-zero one that the SIGCHLD members are set.
    unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        check(libc::waitid(kind, id, &raw mut info, options))?;
        let pid = info.si_pid();
        if pid == 0 {
            return Ok(None);
        }
        let status = info.si_status();
        let end = if info.si_code == libc::CLD_EXITED { ChildEnd::Code(status) } else { ChildEnd::Signal(status) };
        Ok(Some((pid, end)))
    }
}

/// Sends signal `number` to process group `group`.
///
/// # Errors
/// `ESRCH` when the group has no process, `EINVAL` for an unknown signal or a group below 2.
pub fn signal_group(group: i32, number: i32) -> io::Result<()> {
    if group < 2 {
        // 0, 1 and -1 mean "mine", "init" and "everybody" to kill(2).
        return Err(Errno::INVAL.into());
    }
    // SAFETY: takes no pointers.
    check(unsafe { libc::kill(-group, number) }).map(drop)
}

/// Sends signal `number` to process `pid`.
///
/// # Errors
/// `ESRCH` when it is gone, `EINVAL` for an unknown signal or a process below 2.
pub fn signal_process(pid: i32, number: i32) -> io::Result<()> {
    if pid < 2 {
        return Err(Errno::INVAL.into());
    }
    // SAFETY: takes no pointers.
    check(unsafe { libc::kill(pid, number) }).map(drop)
}

/// Sends signal `number` to every process but the caller. Only PID 1 of a guest may call it.
pub fn signal_everybody(number: i32) {
    if rustix::process::getpid().is_init() {
        // SAFETY: takes no pointers.
        unsafe { libc::kill(-1, number) };
    }
}

/// Gives `bytes` to the kernel's random generator, credited as full entropy, and makes it reseed at once.
///
/// # Errors
/// The error of the call that failed.
pub fn add_entropy(random: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    /// `struct rand_pool_info` of linux/random.h, with its buffer.
    #[repr(C)]
    struct RandPoolInfo {
        entropy_count: i32,
        buf_size: i32,
        buf: [u8; crate::facts::MAX_SEED_BYTES],
    }
    /// `RNDADDENTROPY` and `RNDRESEEDCRNG` of linux/random.h.
    const RNDADDENTROPY: u32 = 0x4008_5203;
    const RNDRESEEDCRNG: u32 = 0x5207;

    let mut info = RandPoolInfo { entropy_count: 0, buf_size: 0, buf: [0; crate::facts::MAX_SEED_BYTES] };
    for (to, from) in info.buf.iter_mut().zip(bytes) {
        *to = *from;
        info.buf_size += 1;
        info.entropy_count += 8;
    }
    // SAFETY: the first call reads `buf_size` bytes of `buf`, which holds that many; the second takes no argument.
    unsafe {
        check(libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const info))?;
        check(libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _, 0))?;
    }
    Ok(())
}

/// Brings the loopback interface up.
///
/// # Errors
/// The error of the call that failed.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `ifreq` is plain data. The name is shorter than the member and ends in the zero that was there, the union
    // member written is the one SIOCSIFFLAGS reads, and the structure lives across the call.
    unsafe {
        let mut request: libc::ifreq = mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request))?;
    }
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
