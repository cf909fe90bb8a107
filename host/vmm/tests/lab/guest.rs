//! A booted guest and a small client of its agent.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyro_agent_protocol::{
    AGENT_PORT, ExecRequest, FrameDecoder, GuestFrame, HostFrame, Op, Open, Program, READY_PORT, ShutdownMode,
    ShutdownRequest,
};
use pyro_vmm::config::{BASE_CMDLINE, ConsoleConfig, CpuConfig, DriveConfig, JailConfig, KernelConfig, VsockConfig};
use pyro_vmm::{ExitReason, Vmm, VmmConfig, VmmHandle};

/// Time for a boot: in a software CPU on a busy host it takes tens of seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// The files of an installed environment.
pub struct Files {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// The root file system, never written.
    pub rootfs: PathBuf,
}

impl Files {
    /// Returns the files that the environment names.
    pub fn from_env() -> Option<Files> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        Some(Files {
            kernel: path("PYRO_TEST_KERNEL")?,
            initramfs: path("PYRO_TEST_INITRAMFS")?,
            rootfs: path("PYRO_TEST_ROOTFS")?,
        })
    }
}

/// A guest whose agent has answered.
pub struct Guest {
    /// Steers it.
    pub handle: VmmHandle,
    run: JoinHandle<ExitReason>,
    _disk: tempfile::NamedTempFile,
}

/// What a command did.
pub struct Done {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
}

impl Done {
    /// Returns both outputs as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&[self.stdout.as_slice(), &self.stderr].concat()).into_owned()
    }
}

impl Guest {
    /// Boots from a fresh overlay on the root file system.
    pub fn boot(files: &Files, change: impl FnOnce(&mut VmmConfig)) -> Guest {
        let overlay = tempfile::NamedTempFile::new().expect("a file for the overlay");
        let path = overlay.path().to_owned();
        let mut guest = Guest::boot_on(files, path, Some(files.rootfs.clone()), false, change);
        guest._disk = overlay;
        guest
    }

    /// Boots from this disk.
    pub fn boot_on(
        files: &Files,
        path: PathBuf,
        base: Option<PathBuf>,
        durable: bool,
        change: impl FnOnce(&mut VmmConfig),
    ) -> Guest {
        let mut config = VmmConfig {
            vcpu_count: 1,
            mem_mib: 256,
            kernel: KernelConfig { path: files.kernel.clone(), immutable: true },
            initramfs: Some(files.initramfs.clone()),
            cmdline: format!("console=ttyS0 quiet {BASE_CMDLINE} cryptomgr.notests"),
            drives: vec![DriveConfig { path, base, read_only: false, durable, serial: "root".to_owned() }],
            vsock: Some(VsockConfig { guest_cid: 3 }),
            rng: true,
            console: ConsoleConfig::default(),
            cpu: CpuConfig::default(),
            jail: JailConfig::default(),
        };
        change(&mut config);
        let vmm = Vmm::build(&config).expect("a VM");
        let handle = vmm.handle();
        let (sender, ready) = mpsc::channel();
        handle.vsock().expect("a vsock device").listen(READY_PORT, move |stream| {
            let _ = sender.send(stream);
        });
        let run = std::thread::spawn(move || vmm.run());
        let started = Instant::now();
        while ready.recv_timeout(Duration::from_millis(100)).is_err() {
            let ended = handle.exit_reason();
            assert!(
                ended.is_none() && started.elapsed() < BOOT_LIMIT,
                "no boot: {ended:?}\n{}\n{:?}",
                handle.console_tail(),
                handle.stats()
            );
        }
        Guest { handle, run, _disk: tempfile::NamedTempFile::new().expect("a file") }
    }

    /// Runs a shell command.
    pub fn run(&self, script: &str) -> Done {
        self.exec(Program::Shell(script.to_owned()))
    }

    /// Runs a program.
    pub fn argv(&self, argv: &[&str]) -> Done {
        self.exec(Program::Argv(argv.iter().map(|word| (*word).to_owned()).collect()))
    }

    /// Starts a shell command and does not wait for its end. It ends with the guest.
    pub fn start(&self, script: &str) {
        let mut request = ExecRequest::new(Program::Shell(script.to_owned()));
        request.cwd = Some("/".to_owned());
        let stream = self.open(Op::Exec(request));
        // Keeps the connection, and so the command, alive.
        std::mem::forget(stream);
    }

    fn exec(&self, program: Program) -> Done {
        let mut request = ExecRequest::new(program);
        request.cwd = Some("/".to_owned());
        let mut stream = self.open(Op::Exec(request));
        let mut decoder = FrameDecoder::new();
        let mut done = Done { code: None, stdout: Vec::new(), stderr: Vec::new() };
        let mut bytes = vec![0; 64 * 1024];
        loop {
            while let Some(frame) = decoder.next_guest().expect("a frame") {
                match frame {
                    GuestFrame::Stdout(bytes) => done.stdout.extend_from_slice(&bytes),
                    GuestFrame::Stderr(bytes) => done.stderr.extend_from_slice(&bytes),
                    GuestFrame::Exited(exited) => {
                        done.code = exited.exit_code;
                        return done;
                    }
                    GuestFrame::Error(error) => panic!("{error:?}"),
                    _ => {}
                }
            }
            let count = stream.read(&mut bytes).expect("the agent's bytes");
            assert!(count > 0, "the agent hung up");
            decoder.push(&bytes[..count]);
        }
    }

    fn open(&self, op: Op) -> std::os::unix::net::UnixStream {
        let vsock = self.handle.vsock().expect("a vsock device");
        let mut stream = vsock.connect_wait(AGENT_PORT).expect("the agent");
        let mut bytes = Vec::new();
        HostFrame::Open(Open::new(op)).encode(&mut bytes).expect("a frame");
        stream.write_all(&bytes).expect("a listening agent");
        stream
    }

    /// Has the agent switch the guest off.
    pub fn power_off(self) -> ExitReason {
        self.shut_down(ShutdownMode::PowerOff)
    }

    /// Has the agent reset the guest.
    pub fn reboot(self) -> ExitReason {
        self.shut_down(ShutdownMode::Reboot)
    }

    fn shut_down(self, mode: ShutdownMode) -> ExitReason {
        let mut stream = self.open(Op::Shutdown(ShutdownRequest { mode }));
        let mut rest = Vec::new();
        // Ends when the guest does, if not before.
        let _ = stream.read_to_end(&mut rest);
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(self) -> ExitReason {
        self.run.join().expect("the VM's thread")
    }
}

/// Returns the SHA-256 of `bytes` in hexadecimal, by the program that the guest uses too.
pub fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    child.stdin.take().expect("its input").write_all(bytes).expect("a reading program");
    let output = child.wait_with_output().expect("its output");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}
