//! The mounts and files that programs expect of a Linux system.

use std::os::fd::AsFd;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::fatal::{FatalError, log};
use crate::cgroup::enable_controllers;

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV);
const NO_CODE: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
const SHARED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

struct Mount {
    target: &'static str,
    fs_type: &'static str,
    flags: MountFlags,
    options: &'static str,
    needed: bool,
}

/// What the initramfs needs; moved along to the root file system.
const EARLY: &[Mount] = &[
    Mount { target: "/dev", fs_type: "devtmpfs", flags: NO_CODE, options: "mode=0755", needed: true },
    Mount { target: "/proc", fs_type: "proc", flags: SAFE, options: "", needed: true },
    Mount { target: "/sys", fs_type: "sysfs", flags: SAFE, options: "", needed: true },
];

const LATE: &[Mount] = &[
    Mount {
        target: "/dev/pts",
        fs_type: "devpts",
        flags: NO_CODE,
        options: "gid=5,mode=0620,ptmxmode=0666",
        needed: false,
    },
    Mount { target: "/dev/shm", fs_type: "tmpfs", flags: SHARED, options: "mode=1777", needed: false },
    Mount { target: "/run", fs_type: "tmpfs", flags: SHARED, options: "mode=0755", needed: true },
    Mount {
        target: "/sys/fs/cgroup",
        fs_type: "cgroup2",
        flags: SAFE,
        options: "nsdelegate,favordynmods",
        needed: false,
    },
];

/// Links that udev makes elsewhere.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts `/dev`, `/proc` and `/sys` in the initramfs.
///
/// # Errors
/// When one of them is refused.
pub fn mount_early() -> Result<(), FatalError> {
    mount_each(EARLY)
}

/// Mounts the rest in the root file system, lets cgroups use every controller, and makes the links of `/dev`.
///
/// # Errors
/// When a mount that commands cannot do without is refused.
pub fn mount_late() -> Result<(), FatalError> {
    mount_each(LATE)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let enabled = openat(CWD, "/sys/fs/cgroup", flags, Mode::empty())
        .map_err(Into::into)
        .and_then(|dir| enable_controllers(dir.as_fd(), &["cpu", "io", "memory", "pids"]));
    if let Err(error) = enabled {
        log(&format!("cannot enable cgroup controllers: {error}"));
    }
    for (target, link) in LINKS {
        match symlinkat(*target, CWD, *link) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => log(&format!("cannot make {link}: {errno}")),
        }
    }
    make_dir("/run/lock", 0o1777);
    // For values that only root may see and that no disk keeps.
    make_dir("/run/pyro-secrets", 0o700);
    Ok(())
}

/// Opens `/dev/null` as standard input, output and error where the kernel opened no console, so that no other file gets
/// these numbers.
///
/// # Errors
/// When `/dev/null` cannot be opened.
pub fn fill_stdio() -> Result<(), FatalError> {
    use std::os::fd::{AsRawFd, IntoRawFd};
    loop {
        let fd = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(FatalError::path("open", "/dev/null"))?;
        if fd.as_raw_fd() > 2 {
            return Ok(());
        }
        // Stays open for as long as the process lives.
        let _ = fd.into_raw_fd();
    }
}

/// Creates a directory if it is missing. A failure shows when the directory is used.
pub fn make_dir(path: &str, mode: u32) {
    let _ = mkdirat(CWD, path, Mode::from_raw_mode(mode));
}

fn mount_each(mounts: &[Mount]) -> Result<(), FatalError> {
    for entry in mounts {
        make_dir(entry.target, 0o755);
        let mut result = mount_one(entry, entry.options);
        if result == Err(Errno::INVAL) && entry.fs_type == "cgroup2" {
            // Kernels before 6.0 do not know `favordynmods`.
            result = mount_one(entry, "nsdelegate");
        }
        match result {
            // The kernel mounts /dev itself when it is configured to.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) if entry.needed => {
                return Err(FatalError::path("mount", entry.target)(errno));
            }
            Err(errno) => log(&format!("cannot mount {}: {errno}", entry.target)),
        }
    }
    Ok(())
}

fn mount_one(entry: &Mount, options: &str) -> Result<(), Errno> {
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    mount(entry.fs_type, entry.target, entry.fs_type, entry.flags, options.as_c_str())
}
