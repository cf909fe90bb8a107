//! The software engine: QEMU's `microvm` machine on its software CPU, as a child process.
//!
//! The guest's memory is a shared memfd, and its vsock device is ours, served over vhost-user. Everything else the
//! guest can reach in QEMU is one disk, one random number device and one serial port. QEMU runs with its seccomp filter
//! on, in the run directory, with a clean environment, and dies with this process.
//!
//! The options below were chosen by measuring. Those that matter most: `rtc=on`, because without a clock chip the
//! kernel waits for one for 1.5 s, twice; the rate of the time stamp counter on the command line, because a guest on a
//! busy host can fail to measure it and then hangs.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            net::UnixListener,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
};

use pyro_vmm::{
    vhost_user::{self, VhostUserVsock},
    vsock::{VsockConfig, VsockHandle},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::{
    backend::{Backend, VmExit},
    config::MachineConfig,
    console::{Console, plain_tail},
    tsc,
};
use crate::{
    error::{EngineError, ErrorCode},
    qcow2,
    spec::Statistics,
};

/// Name of the program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// Files in the run directory, which is QEMU's current directory: relative names keep socket names short.
const DISK: &str = "disk.qcow2";
const VSOCK: &str = "vsock.sock";
/// The guest's context id. Every machine has its own device, so they may all have the same.
const GUEST_CID: u64 = 3;
/// All the software CPU can do, but for fast string instructions: the kernel would clear and copy with single bytes then,
/// each of which is a step here.
const CPU: &str = "max,-erms,-fsrm";
/// What is kept of QEMU's own complaints, in bytes.
const COMPLAINTS: usize = 4096;

/// A machine in a QEMU child.
pub(crate) struct QemuVm {
    child: Child,
    /// Becomes readable when the child ends.
    alive: OwnedFd,
    console: Option<ChildStdout>,
    complaints_from: Option<ChildStderr>,
    complaints: Vec<u8>,
    exit: Option<ExitStatus>,
    // Dropped after the child is reaped, so that the device sees QEMU hang up rather than the other way round.
    vsock: VhostUserVsock,
}

impl QemuVm {
    /// Makes the disk: a copy-on-write overlay, whose size does not depend on the image's.
    pub(crate) fn make_disk(config: &MachineConfig) -> Result<(), EngineError> {
        qcow2::create_overlay(Path::new(DISK), &config.rootfs)
    }

    /// Starts the child.
    pub(crate) fn boot(config: &MachineConfig, dir: &Path) -> Result<Self, EngineError> {
        let program = find_program(std::env::var_os("PATH")).ok_or_else(|| {
            EngineError::new(ErrorCode::EngineUnavailable, format!("`{PROGRAM}` is not installed"))
                .with_hint("install it: apt-get install qemu-system-x86; `pyro doctor` checks everything")
        })?;
        let listener = UnixListener::bind(VSOCK).map_err(|e| EngineError::io("listen for QEMU", &e))?;
        let vsock = vhost_user::serve(listener, VsockConfig::new(GUEST_CID))
            .map_err(|e| EngineError::new(ErrorCode::BootFailed, format!("no vsock device: {e}")))?;
        let mut command = Command::new(&program);
        command
            .args(arguments(config, tsc::host_khz()))
            .current_dir(dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let parent = rustix::process::getpid();
        // SAFETY: the closure runs between fork and exec and makes only system calls, on values copied before.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The parent may have died before that call.
                if rustix::process::getppid() != Some(parent) {
                    return Err(io::Error::from(rustix::io::Errno::SRCH));
                }
                unblock_signals()
            });
        }
        let mut child = command
            .spawn()
            .map_err(|e| EngineError::new(ErrorCode::BootFailed, format!("start `{}`: {e}", program.display())))?;
        let console = child.stdout.take();
        let complaints_from = child.stderr.take();
        let ready =
            pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(io::Error::from).and_then(|alive| {
                for fd in [console.as_ref().map(AsFd::as_fd), complaints_from.as_ref().map(AsFd::as_fd)] {
                    rustix::io::ioctl_fionbio(fd.ok_or(io::ErrorKind::BrokenPipe)?, true)?;
                }
                Ok(alive)
            });
        match ready {
            Ok(alive) => Ok(Self { child, alive, console, complaints_from, complaints: Vec::new(), exit: None, vsock }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(EngineError::io("watch QEMU", &e))
            }
        }
    }

    /// Reads what QEMU wrote. `everything` reads to the end of the pipes, which is safe once the child is gone.
    fn drain(&mut self, console: &mut Console, everything: bool) {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            match read_some(&mut self.console, &mut bytes) {
                0 => break,
                count => console.push(bytes.get(..count).unwrap_or_default()),
            }
            // A guest that floods its console must not keep the loop from its other work.
            if !everything {
                break;
            }
        }
        loop {
            match read_some(&mut self.complaints_from, &mut bytes) {
                0 => break,
                count => {
                    self.complaints.extend_from_slice(bytes.get(..count).unwrap_or_default());
                    let excess = self.complaints.len().saturating_sub(COMPLAINTS);
                    self.complaints.drain(..excess);
                }
            }
            if !everything {
                break;
            }
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), EngineError> {
        if self.exit.is_some() {
            return Ok(());
        }
        // The child is not reaped yet, so its id is still its own.
        rustix::process::pidfd_send_signal(&self.alive, signal).map_err(|e| EngineError::io("signal QEMU", &e.into()))
    }

    fn describe(&self, status: ExitStatus) -> VmExit {
        let complaints = plain_tail(&self.complaints);
        let complaints = if complaints.is_empty() { String::new() } else { format!(": {complaints}") };
        match (status.code(), status.signal()) {
            (Some(0), _) => VmExit { orderly: true, how: "the guest powered off or restarted".to_owned() },
            (Some(code), _) => VmExit { orderly: false, how: format!("QEMU exited with code {code}{complaints}") },
            (None, Some(signal)) => {
                VmExit { orderly: false, how: format!("QEMU was killed by signal {signal}{complaints}") }
            }
            (None, None) => VmExit { orderly: false, how: format!("QEMU ended{complaints}") },
        }
    }
}

impl Backend for QemuVm {
    fn vsock(&self) -> VsockHandle {
        self.vsock.handle()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let pipes = [self.console.as_ref().map(AsFd::as_fd), self.complaints_from.as_ref().map(AsFd::as_fd)];
        pipes.into_iter().flatten().chain([self.alive.as_fd()]).collect()
    }

    fn turn(&mut self, console: &mut Console) -> Option<VmExit> {
        self.drain(console, false);
        if self.exit.is_none() {
            self.exit = self.child.try_wait().unwrap_or_default();
        }
        let status = self.exit?;
        // Its last words are still in the pipes.
        self.drain(console, true);
        Some(self.describe(status))
    }

    /// Stops the whole process: the guest's clock goes on, as it does for a machine whose host is busy.
    fn pause(&mut self) -> Result<(), EngineError> {
        self.signal(Signal::STOP)
    }

    fn resume(&mut self) -> Result<(), EngineError> {
        self.signal(Signal::CONT)
    }

    fn kill(&mut self, console: &mut Console) {
        if self.exit.is_none() {
            let _ = self.child.kill();
            self.exit = self.child.wait().ok();
        }
        self.drain(console, true);
    }

    fn statistics(&self) -> Statistics {
        let (resident_bytes, cpu_ms) = if self.exit.is_some() { (0, 0) } else { process_costs(self.child.id()) };
        let vsock = self.vsock.handle().stats();
        let connections = vsock.connections_opened.saturating_sub(vsock.connections_closed);
        Statistics { resident_bytes, cpu_ms, connections, kvm: None, cgroup: None }
    }
}

impl Drop for QemuVm {
    fn drop(&mut self) {
        if self.exit.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Finds the program in the directories of a `PATH`.
pub(crate) fn find_program(path: Option<OsString>) -> Option<PathBuf> {
    // A service's PATH may be missing or lack the usual places.
    let usual = OsString::from_vec(b"/usr/local/bin:/usr/bin:/bin".to_vec());
    [path, Some(usual)]
        .into_iter()
        .flatten()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|dir| dir.join(PROGRAM))
        .find(|candidate| candidate.is_absolute() && candidate.is_file())
}

/// Returns QEMU's arguments.
fn arguments(config: &MachineConfig, tsc_khz: Option<u64>) -> Vec<OsString> {
    let mem = config.spec.mem_mib;
    let mut arguments: Vec<OsString> = [
        "-name",
        &format!("pyro-{}", config.id),
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine",
        "microvm,accel=tcg,memory-backend=ram,pit=off,pic=off,rtc=on,isa-serial=on,acpi=on,usb=off",
        "-cpu",
        CPU,
        "-smp",
        &config.spec.vcpu_count.to_string(),
        "-m",
        &format!("{mem}M"),
        "-object",
        &format!("memory-backend-memfd,id=ram,size={mem}M,share=on"),
        "-global",
        "virtio-mmio.force-legacy=false",
        "-chardev",
        "stdio,id=console,signal=off",
        "-serial",
        "chardev:console",
        "-device",
        "virtio-blk-device,drive=root",
        "-chardev",
        &format!("socket,id=vsock,path={VSOCK}"),
        "-device",
        "vhost-user-vsock-device,chardev=vsock",
        "-device",
        "virtio-rng-device",
        "-append",
        &kernel_arguments(config, tsc_khz),
    ]
    .map(OsString::from)
    .into();
    arguments.extend(["-drive".into(), drive(config)]);
    arguments.extend(["-kernel".into(), config.kernel.clone().into_os_string()]);
    arguments.extend(["-initrd".into(), config.initramfs.clone().into_os_string()]);
    arguments
}

/// Returns the root disk's options.
fn drive(config: &MachineConfig) -> OsString {
    /// A guest is told when the host's disk is full; otherwise QEMU would halt it for good.
    const FULL: &str = "werror=report";

    let Some(disk) = &config.disk else {
        // The disk dies with the machine, so nothing is ever written through to it.
        return format!("if=none,id=root,file={DISK},format=qcow2,cache=unsafe,discard=unmap,{FULL}").into();
    };
    let mut options = format!("if=none,id=root,format=raw,cache=writeback,discard=unmap,{FULL},file=").into_bytes();
    for &byte in disk.as_os_str().as_bytes() {
        // A comma ends a value unless there are two.
        options.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(options)
}

/// Returns the kernel's command line.
fn kernel_arguments(config: &MachineConfig, tsc_khz: Option<u64>) -> String {
    let mut line = String::from("console=ttyS0");
    line.push_str(if config.verbose_console { " ignore_loglevel" } else { " quiet" });
    if let Some(khz) = tsc_khz {
        line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable no_timer_check"));
    }
    // A guest that gives up ends at once, and a triple fault is the reset that every machine has.
    line.push_str(" panic=-1 reboot=t");
    // Work that a machine of seconds does not need, and defences of real processors that a software CPU is not.
    line.push_str(" cryptomgr.notests nokaslr mitigations=off random.trust_cpu=on rcupdate.rcu_expedited=1");
    line.push_str(" i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd 8250.nr_uarts=1");
    line.push_str(" init_on_alloc=0 lsm=landlock,yama audit=0 nowatchdog initcall_blacklist=init_kprobe_trace");
    // Accounting of stalls and of the kernel's own memory is a tenth of what starting a program costs.
    line.push_str(" psi=0 cgroup.memory=nokmem,nosocket");
    // The software CPU translates code anew for every address it is found at, and forgets much with every large page:
    // with programs at fixed addresses and small pages, starting one takes a fifth of the time. What keeps a guest in is
    // the machine, not its own address randomisation.
    line.push_str(" norandmaps transparent_hugepage=never");
    line
}

/// Reads once; the end of the pipe closes it, and then 0 bytes come.
fn read_some(from: &mut Option<impl Read>, bytes: &mut [u8]) -> usize {
    let Some(pipe) = from else { return 0 };
    loop {
        match pipe.read(bytes) {
            Ok(0) => {
                *from = None;
                return 0;
            }
            Ok(count) => return count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return 0,
            Err(_) => {
                *from = None;
                return 0;
            }
        }
    }
}

/// The loop of this process reads its signals from a descriptor and so has blocked them; a child must not inherit that.
fn unblock_signals() -> io::Result<()> {
    // SAFETY: an all-zero signal set is a valid value, and sigemptyset and sigprocmask only touch it.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Returns the resident bytes and the CPU milliseconds of a process.
fn process_costs(pid: u32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is a name in parentheses, which may itself hold spaces.
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    let page = rustix::param::page_size() as u64;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    (field(24) * page, (field(14) + field(15)) * 1000 / ticks)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::{ExecutionMode, MachineSpec};

    fn config() -> MachineConfig {
        MachineConfig {
            id: "0123456789ab".to_owned(),
            spec: MachineSpec { vcpu_count: 2, mem_mib: 512, ..MachineSpec::default() },
            environment_version: "1".to_owned(),
            execution_mode: ExecutionMode::MicrovmQemuTcg,
            cpu: pyro_vmm::config::CpuConfig::default(),
            kernel: "/cache/odd, name/vmlinux".into(),
            initramfs: "/cache/initramfs".into(),
            rootfs: "/cache/rootfs".into(),
            disk: None,
            leases: Vec::new(),
            boot_limit: Duration::from_secs(30),
            created_at: 0.0,
            expires_at: 600.0,
            spawned_at_ns: 0,
            verbose_console: false,
            verdict_dir: None,
        }
    }

    fn value_of<'a>(arguments: &'a [OsString], option: &str) -> &'a str {
        let at = arguments.iter().position(|a| a == option).unwrap();
        arguments[at + 1].to_str().unwrap()
    }

    #[test]
    fn the_machine_is_what_was_asked_for() {
        let arguments = arguments(&config(), Some(2_596_135));
        assert_eq!(value_of(&arguments, "-smp"), "2");
        assert_eq!(value_of(&arguments, "-m"), "512M");
        assert_eq!(value_of(&arguments, "-kernel"), "/cache/odd, name/vmlinux");
        let object = value_of(&arguments, "-object");
        assert_eq!(object, "memory-backend-memfd,id=ram,size=512M,share=on");
        assert!(value_of(&arguments, "-append").contains("tsc_early_khz=2596135 tsc=reliable no_timer_check"));
        // What keeps the guest inside.
        assert!(value_of(&arguments, "-sandbox").starts_with("on,"));
        for absent in ["-netdev", "-nic", "-monitor", "-qmp", "-virtfs"] {
            assert!(!arguments.iter().any(|a| a == absent), "{absent}");
        }
    }

    #[test]
    fn a_disk_that_is_kept_is_written_for_good() {
        assert!(drive(&config()).to_str().unwrap().contains("file=disk.qcow2,format=qcow2,cache=unsafe"));
        let kept = MachineConfig { disk: Some("/state/a,b/disk.1".into()), ..config() };
        let drive = drive(&kept);
        let drive = drive.to_str().unwrap();
        assert!(drive.contains("format=raw,cache=writeback"), "{drive}");
        assert!(drive.ends_with("file=/state/a,,b/disk.1"), "{drive}");
    }

    #[test]
    fn an_unknown_counter_rate_is_left_out() {
        assert!(!kernel_arguments(&config(), None).contains("tsc"));
    }

    #[test]
    fn own_costs_can_be_read() {
        let (resident, _) = process_costs(std::process::id());
        assert!(resident > 100_000, "{resident}");
        assert_eq!(process_costs(u32::MAX), (0, 0));
    }

    #[test]
    fn only_absolute_places_are_searched() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PROGRAM), "").unwrap();
        assert_eq!(find_program(Some(dir.path().into())), Some(dir.path().join(PROGRAM)));
        assert_ne!(find_program(Some(".".into())), Some(PathBuf::from(".").join(PROGRAM)));
    }
}
