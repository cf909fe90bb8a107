//! A booted guest.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyro_agent_protocol::{AGENT_PORT, Op, Program, READY_PORT, ShutdownMode, ShutdownRequest};
use pyro_vmm::config::{BASE_CMDLINE, ConsoleConfig, CpuConfig, DriveConfig, JailConfig, KernelConfig, VsockConfig};
use pyro_vmm::{ExitReason, Vmm, VmmConfig, VmmHandle};

use crate::agent::{self, Done};

/// Time for a boot: in a software CPU on a busy host it takes tens of seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Time for a whole test: the longest takes a minute on an idle host.
const TEST_LIMIT: Duration = Duration::from_secs(300);

/// The files of an installed environment.
pub struct Files {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// The root file system, never written.
    pub rootfs: PathBuf,
    _limit: Limit,
}

impl Files {
    /// Returns the files that the environment names, for one test.
    pub fn from_env() -> Option<Files> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        Some(Files {
            kernel: path("PYRO_TEST_KERNEL")?,
            initramfs: path("PYRO_TEST_INITRAMFS")?,
            rootfs: path("PYRO_TEST_ROOTFS")?,
            _limit: Limit::new(TEST_LIMIT),
        })
    }
}

/// Ends this process if the test that holds it takes too long, after telling what each thread waits for: a test that
/// hangs would say nothing.
struct Limit(#[expect(dead_code, reason = "its end is the message")] mpsc::Sender<()>);

impl Limit {
    fn new(limit: Duration) -> Limit {
        let (held, ended) = mpsc::channel();
        std::thread::spawn(move || {
            if ended.recv_timeout(limit) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
            let mut text = format!("no end after {} s\n", limit.as_secs());
            for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
                for file in ["comm", "syscall", "stack"] {
                    text += &std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
                }
            }
            // Past the capture of the test runner, which ends with the process.
            let _ = std::io::stderr().write_all(text.as_bytes());
            std::process::abort();
        });
        Limit(held)
    }
}

/// A guest whose agent has answered.
pub struct Guest {
    /// Steers it.
    pub handle: VmmHandle,
    run: JoinHandle<ExitReason>,
    _disk: tempfile::NamedTempFile,
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
            kernel: KernelConfig { path: files.kernel.clone() },
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
        agent::exec(self.connect(), Program::Shell(script.to_owned()))
    }

    /// Runs a program.
    pub fn argv(&self, argv: &[&str]) -> Done {
        agent::exec(self.connect(), program(argv))
    }

    /// Starts a shell command and does not wait for its end. It ends with the guest.
    pub fn start(&self, script: &str) {
        let mut stream = self.connect();
        agent::open(&mut stream, agent::exec_op(Program::Shell(script.to_owned())));
        // Keeps the connection, and so the command, alive.
        std::mem::forget(stream);
    }

    /// Starts a program that does not end, and returns when it has printed a line.
    pub fn start_until(&self, argv: &[&str], line: &str) {
        let mut stream = self.connect();
        agent::start_until(&mut stream, program(argv), line);
        std::mem::forget(stream);
    }

    fn connect(&self) -> UnixStream {
        self.handle.vsock().expect("a vsock device").connect_wait(AGENT_PORT).expect("the agent")
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
        let mut stream = self.connect();
        agent::open(&mut stream, Op::Shutdown(ShutdownRequest { mode }));
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

fn program(argv: &[&str]) -> Program {
    Program::Argv(argv.iter().map(|word| (*word).to_owned()).collect())
}

/// Returns the SHA-256 of `bytes` in hexadecimal, by the program that the guest uses too.
pub fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    child.stdin.take().expect("its input").write_all(bytes).expect("a reading program");
    let output = child.wait_with_output().expect("its output");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}
