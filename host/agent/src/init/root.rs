//! The root file system.

use std::ffi::CString;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, unlinkat};
use rustix::mount::{MountFlags, mount_move};
use rustix::process::{chdir, chroot};

use super::cmdline::Cmdline;
use super::fatal::FatalError;
use super::mounts::make_dir;

/// Where the root is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";
/// How long the root device may take. Drivers create it while their module loads, so it is there at the first look
/// unless a driver probes in the background.
const DEVICE_WAIT: Duration = Duration::from_secs(10);

/// Waits for the root device and mounts it.
///
/// # Errors
/// When the device does not appear or the mount is refused.
pub fn mount(cmdline: &Cmdline) -> Result<(), FatalError> {
    wait_for(&cmdline.root)?;
    make_dir(NEW_ROOT, 0o755);
    let mut flags = MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, cmdline.read_only);
    let options = CString::new(cmdline.root_flags.as_str()).unwrap_or_default();
    rustix::mount::mount(cmdline.root.as_str(), NEW_ROOT, cmdline.root_fs_type.as_str(), flags, options.as_c_str())
        .map_err(FatalError::path("mount root device", &cmdline.root))
}

/// Makes the mounted file system the root, with `/dev`, `/proc` and `/sys` in it. The initramfs's memory is given back;
/// this program's own pages live as long as it does.
///
/// # Errors
/// When a step is refused.
pub fn switch() -> Result<(), FatalError> {
    for dir in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{dir}");
        make_dir(&target, 0o755);
        mount_move(dir, target.as_str()).map_err(FatalError::path("move mount", dir))?;
    }
    remove_initramfs();
    chdir(NEW_ROOT).map_err(FatalError::step("enter the root"))?;
    mount_move(".", "/").map_err(FatalError::step("move the root"))?;
    chroot(".").map_err(FatalError::step("change the root"))?;
    chdir("/").map_err(FatalError::step("enter the root"))
}

fn wait_for(device: &str) -> Result<(), FatalError> {
    let started = Instant::now();
    let mut pause = Duration::from_micros(500);
    while !Path::new(device).exists() {
        if started.elapsed() > DEVICE_WAIT {
            let waited_ms = started.elapsed().as_millis();
            return Err(FatalError::NoRootDevice { path: device.to_owned(), waited_ms });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// Removes what the initramfs is known to hold. Other files stay, and cost only memory.
fn remove_initramfs() {
    if let Ok(entries) = std::fs::read_dir("/modules") {
        for entry in entries.filter_map(Result::ok) {
            let _ = unlinkat(CWD, entry.path(), AtFlags::empty());
        }
    }
    let _ = unlinkat(CWD, "/init", AtFlags::empty());
}
