//! The three VMMs: how each is started with the same guest, and how its guest is reached.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use pyro_agent_protocol::{AGENT_PORT, Program, READY_PORT};
use pyro_vmm::config::{BASE_CMDLINE, LEAN_CMDLINE};
use serde_json::json;

use crate::agent::{self, Done};

/// Guest memory, for all of them.
pub const MEM_MIB: u32 = 256;
/// The guest's context id.
const CID: u32 = 3;
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest may live: several times what the measurements of one take.
const LIFE_LIMIT: Duration = Duration::from_secs(90);

/// What Firecracker's own documentation tells the kernel.
const DOCUMENTED: &str = "console=ttyS0 reboot=k panic=1 pci=off";
/// What the agent is told: the root is read only.
const AGENT: &str = "pyro.ro";

/// A VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Pyro,
    /// The reference.
    Firecracker,
    /// The reference with our kernel arguments in place of those of its documentation.
    FirecrackerOurArguments,
    /// The general one.
    Qemu,
}

/// All of them.
pub const KINDS: [Kind; 4] = [Kind::Pyro, Kind::Firecracker, Kind::FirecrackerOurArguments, Kind::Qemu];

impl Kind {
    /// Returns what the kernel is told. QEMU documents nothing of the kind and gets ours.
    fn cmdline(self) -> String {
        match self {
            Kind::Firecracker => format!("{DOCUMENTED} {AGENT}"),
            _ => format!("console=ttyS0 quiet {BASE_CMDLINE} {LEAN_CMDLINE} {AGENT}"),
        }
    }
}

/// The files of a run.
pub struct Files {
    /// The kernel, an ELF.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// The root file system, read only.
    pub rootfs: PathBuf,
    /// A disk to write to.
    pub scratch: PathBuf,
    /// The program of our VMM.
    pub microvm: PathBuf,
    /// Firecracker.
    pub firecracker: PathBuf,
}

/// A guest whose agent has answered. It ends when this is dropped.
pub struct Guest {
    kind: Kind,
    child: Child,
    dir: tempfile::TempDir,
    /// From the start of the process.
    pub ready: Duration,
    /// Dropped when the guest is to be left alone.
    watched: Option<Sender<()>>,
}

impl Guest {
    /// Boots.
    pub fn boot(kind: Kind, files: &Files, vcpus: u8) -> Guest {
        let dir = tempfile::tempdir().expect("a directory");
        let ready = Ready::listen(kind, dir.path());
        let mut command = match kind {
            Kind::Pyro => pyro(files, dir.path(), vcpus),
            Kind::Firecracker | Kind::FirecrackerOurArguments => firecracker(kind, files, dir.path(), vcpus),
            Kind::Qemu => qemu(files, vcpus),
        };
        let log = File::create(dir.path().join("log")).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let begun = Instant::now();
        let mut child = command.spawn().expect("the VMM");
        let waited = ready.wait(&mut child);
        let took = begun.elapsed();
        let watched = Some(end_after(LIFE_LIMIT, &child));
        let guest = Guest { kind, child, dir, ready: took, watched };
        assert!(waited, "{kind:?}: no word from the agent:\n{}", guest.log());
        guest
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Returns the process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Opens a stream to a port of the guest.
    pub fn connect(&self, port: u32) -> File {
        if self.kind == Kind::Qemu {
            return vsock_connect(port);
        }
        let mut stream = UnixStream::connect(self.dir.path().join("vsock")).expect("the VMM's socket");
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).expect("the VMM");
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).expect("the guest's port");
        }
        File::from(OwnedFd::from(stream))
    }

    /// Runs a program in the guest.
    pub fn exec(&self, argv: &[&str]) -> Done {
        agent::exec(self.connect(AGENT_PORT), program(argv))
    }

    /// Starts a program in the guest and returns when it has said `line`. It ends with what is returned.
    pub fn start_until(&self, argv: &[&str], line: &str) -> File {
        let mut stream = self.connect(AGENT_PORT);
        agent::start_until(&mut stream, program(argv), line);
        stream
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.watched = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends a process that lives too long, so that whoever waits for its guest does not wait for ever.
fn end_after(limit: Duration, child: &Child) -> Sender<()> {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("the VMM");
    let (watched, end) = channel();
    std::thread::spawn(move || {
        if end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    });
    watched
}

fn program(argv: &[&str]) -> Program {
    Program::Argv(argv.iter().map(|word| (*word).to_owned()).collect())
}

fn pyro(files: &Files, dir: &Path, vcpus: u8) -> Command {
    let drive = |path: &Path, read_only| json!({ "path": path, "read_only": read_only, "durable": false });
    let config = json!({
        "vcpu_count": vcpus,
        "mem_mib": MEM_MIB,
        "kernel": { "path": files.kernel },
        "initramfs": files.initramfs,
        "cmdline": Kind::Pyro.cmdline(),
        "drives": [drive(&files.rootfs, true), drive(&files.scratch, false)],
        "vsock": { "guest_cid": CID },
        "console": { "path": dir.join("log") },
    });
    let path = dir.join("config.json");
    fs::write(&path, config.to_string()).expect("a configuration");
    let mut command = Command::new(&files.microvm);
    command.arg(path).arg(dir.join("vsock"));
    command
}

fn firecracker(kind: Kind, files: &Files, dir: &Path, vcpus: u8) -> Command {
    let drive = |id: &str, path: &Path, read_only| {
        json!({
            "drive_id": id,
            "path_on_host": path,
            "is_root_device": false,
            "is_read_only": read_only,
            "cache_type": "Unsafe",
        })
    };
    let config = json!({
        "boot-source": {
            "kernel_image_path": files.kernel,
            "initrd_path": files.initramfs,
            "boot_args": kind.cmdline(),
        },
        "drives": [drive("root", &files.rootfs, true), drive("scratch", &files.scratch, false)],
        "machine-config": { "vcpu_count": vcpus, "mem_size_mib": MEM_MIB },
        "vsock": { "guest_cid": CID, "uds_path": dir.join("vsock") },
        "entropy": {},
    });
    let path = dir.join("config.json");
    fs::write(&path, config.to_string()).expect("a configuration");
    let mut command = Command::new(&files.firecracker);
    // Its filters do not know the C library of the lab's calls; ours stay on.
    command.args(["--no-seccomp", "--no-api", "--config-file"]).arg(path);
    command
}

fn qemu(files: &Files, vcpus: u8) -> Command {
    let drive = |id: &str, path: &Path, read_only: bool| {
        let read_only = if read_only { "on" } else { "off" };
        format!("if=none,id={id},file={},format=raw,cache=unsafe,read-only={read_only}", path.display())
    };
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-cpu", "host"])
        .args(["-M", "microvm,accel=kvm,memory-backend=ram,pit=off,pic=off,rtc=off,isa-serial=on,acpi=on,usb=off"])
        .args(["-smp", &vcpus.to_string(), "-m", &format!("{MEM_MIB}M")])
        // Named, so that the guest's memory can be told from QEMU's own.
        .args(["-object", &format!("memory-backend-memfd,id=ram,size={MEM_MIB}M")])
        .args(["-global", "virtio-mmio.force-legacy=false", "-serial", "stdio"])
        .args(["-drive", &drive("root", &files.rootfs, true), "-drive", &drive("scratch", &files.scratch, false)])
        .args(["-device", "virtio-blk-device,drive=root", "-device", "virtio-blk-device,drive=scratch"])
        .args(["-device", &format!("vhost-vsock-device,guest-cid={CID}"), "-device", "virtio-rng-device"])
        .arg("-kernel")
        .arg(&files.kernel)
        .arg("-initrd")
        .arg(&files.initramfs)
        .args(["-append", &Kind::Qemu.cmdline()]);
    command
}

/// Where the agent says that it is ready.
enum Ready {
    Unix(UnixListener),
    Vsock(OwnedFd),
}

impl Ready {
    fn listen(kind: Kind, dir: &Path) -> Ready {
        match kind {
            Kind::Qemu => Ready::Vsock(vsock_listen(READY_PORT)),
            _ => Ready::Unix(UnixListener::bind(dir.join(format!("vsock_{READY_PORT}"))).expect("a socket")),
        }
    }

    /// Returns whether the word came before the process or the time ended.
    fn wait(&self, child: &mut Child) -> bool {
        let fd = match self {
            Ready::Unix(listener) => listener.as_raw_fd(),
            Ready::Vsock(listener) => listener.as_raw_fd(),
        };
        let begun = Instant::now();
        while begun.elapsed() < BOOT_LIMIT {
            let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid entry that outlives the call.
            if unsafe { libc::poll(&mut poll, 1, 1000) } == 1 {
                return true;
            }
            if child.try_wait().expect("a child").is_some() {
                return false;
            }
        }
        false
    }
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: plain integers, for which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn vsock_socket() -> OwnedFd {
    // SAFETY: no pointers are passed, and the descriptor is new.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "vsock: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

fn vsock_listen(port: u32) -> OwnedFd {
    let (socket, address) = (vsock_socket(), vsock_address(libc::VMADDR_CID_ANY, port));
    // SAFETY: the address is of the length that is said.
    let failed = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) < 0
            || libc::listen(socket.as_raw_fd(), 8) < 0
    };
    assert!(!failed, "listen on vsock: {}", std::io::Error::last_os_error());
    socket
}

fn vsock_connect(port: u32) -> File {
    let (socket, address) = (vsock_socket(), vsock_address(CID, port));
    // SAFETY: the address is of the length that is said.
    let result = unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    assert!(result == 0, "connect to the guest: {}", std::io::Error::last_os_error());
    File::from(socket)
}
