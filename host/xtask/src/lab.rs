//! The lab: a software CPU with nested SVM in which KVM code runs for real on any x86-64 host.
//!
//! `cargo xtask lab -- COMMAND` boots `qemu-system-x86_64 -accel tcg -cpu max,+svm,+npt` with
//! Debian's cloud kernel and its `kvm_amd`, and runs COMMAND inside, as root, with:
//!
//! - the host's root file system as it is, read-only below a RAM overlay (virtiofs): every
//!   path, program, build directory and environment cache of the host is there, and whatever
//!   the command writes is gone at the end;
//! - `$PYRO_LAB_RESULTS`, a directory shared read-write with the host;
//! - a working `/dev/kvm`, and no network.
//!
//! The first read of a file by the inner machine is slow (a round trip to the host per 128 KiB):
//! what is measured should be copied to `/dev/shm` first.
//!
//! The command's output is streamed, and its exit code becomes the lab's. The kernel log is
//! kept in `lab/console.log` of the cache directory. A lab that cannot start is an error.
//!
//! The lab's init sends a line every few seconds. When none comes for a minute, the software CPU has lost its own timers and
//! nothing in the lab goes on, whatever runs there; that end has a name of its own ([`LabEnd::StoodStill`]).
//!
//! The kernel comes from Debian's own package (`apt-get download`, unpacked once). The
//! initramfs is written here: busybox, the modules, and a script.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// What the lab machine looks like and what it runs.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Memory of the lab machine in MiB; the overlay and every inner guest live in it.
    pub mem_mib: u32,
    /// Number of (software) CPUs.
    pub cpus: u32,
    /// The machine is killed after this long.
    pub timeout: Duration,
    /// Directory for the kernel, the initramfs and the logs.
    pub cache: PathBuf,
    /// Directory shared read-write as `$PYRO_LAB_RESULTS`.
    pub results: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables that the command gets beside those of ours that are passed on.
    pub variables: Vec<(&'static str, String)>,
}

impl LabOptions {
    /// Options for `command`, with the caches under `target`.
    pub fn new(target: &Path, command: Vec<String>) -> LabOptions {
        LabOptions {
            mem_mib: 6144,
            // One is fastest: QEMU runs all of them in turns on one host thread.
            cpus: 1,
            timeout: Duration::from_secs(540),
            cache: target.join("lab"),
            results: target.join("lab/results"),
            command,
            variables: Vec::new(),
        }
    }
}

/// How a lab ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabEnd {
    /// The command did, with this exit code.
    Exited(i32),
    /// The time was over while the lab was alive.
    TimedOut,
    /// The software CPU did not even serve its own timers any more: what ran there is not to blame.
    StoodStill,
}

/// Modules in the order in which the lab loads them.
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_console",
    "fuse",
    "virtiofs",
    "overlay",
    "irqbypass",
    "ccp",
    "kvm",
    "kvm-amd",
    "loop",
    // What QEMU's vsock device is made of, to compare with.
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vhost_iotlb",
    "vhost",
    "vhost_vsock",
];

/// The software CPU. Without fast string operations its kernels clear and copy memory eight bytes at a time rather than
/// one: every store to a page that code was translated from is slow here, and memory of a guest that has ended is full of
/// such pages.
///
/// Without the virtual interrupt flag and the virtual `VMLOAD`: with them the lab stood still now and then, its own timers
/// included, at the fifth, eleventh and twentieth guest of three benchmarks; without them 44 of 44 guests ended. What QEMU 7.2
/// loses there is not known.
const CPU: &str = "max,+svm,+npt,-vgif,-v-vmsave-vmload,-erms,-fsrm";

/// A lab that sends no line for this long stands still. A busy one is late by a second or two.
const STILL: Duration = Duration::from_secs(60);

/// Exit code when the lab was stopped, as `timeout(1)` has it.
const EXIT_STOPPED: i32 = 124;

/// Parses `[--mem MIB] [--cpus N] [--timeout SECONDS] [--results DIR] [--] COMMAND...` and runs
/// the lab.
///
/// The command finds the build's programs, and the environments in `home` unless the caller names another.
///
/// Returns the command's exit code, or 124 when the lab was stopped.
pub fn run(target: &Path, home: &Path, args: &[String]) -> Result<i32> {
    let mut options = LabOptions::new(target, Vec::new());
    let path = std::env::var("PATH").unwrap_or_default();
    options.variables.push(("PATH", format!("{}:{path}", target.join("release").display())));
    if std::env::var_os("PYRO_HOME").is_none() {
        options.variables.push(("PYRO_HOME", home.display().to_string()));
    }
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("`{arg}` needs a value"));
        match arg.as_str() {
            "--mem" => options.mem_mib = value()?.parse().context("--mem is a number of MiB")?,
            "--cpus" => options.cpus = value()?.parse().context("--cpus is a number")?,
            "--timeout" => {
                options.timeout = Duration::from_secs(value()?.parse().context("--timeout is in seconds")?);
            }
            "--results" => options.results = PathBuf::from(value()?),
            "--" => {
                options.command = rest.cloned().collect();
                break;
            }
            flag if flag.starts_with("--") => bail!("unknown lab option `{flag}`"),
            program => {
                options.command.push(program.to_owned());
                options.command.extend(rest.cloned());
                break;
            }
        }
    }
    Ok(match run_with(&options, std::io::stdout())? {
        LabEnd::Exited(code) => code,
        LabEnd::TimedOut | LabEnd::StoodStill => EXIT_STOPPED,
    })
}

/// Boots the lab and runs the command with its standard output going to `stdout`. Why a lab was stopped is told on standard
/// error too.
pub fn run_with(options: &LabOptions, stdout: impl Write + Send + 'static) -> Result<LabEnd> {
    ensure!(!options.command.is_empty(), "the lab needs a command: cargo xtask lab -- COMMAND");
    let qemu = find_program("qemu-system-x86_64", &["/usr/bin/qemu-system-x86_64"], "qemu-system-x86")?;
    let virtiofsd =
        find_program("virtiofsd", &["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"], "qemu-system-common")?;
    fs::create_dir_all(&options.cache)?;
    fs::create_dir_all(&options.results)?;
    let results = fs::canonicalize(&options.results)?;
    let kernel = prepare_kernel(&options.cache)?;
    let initramfs = write_initramfs(&options.cache, &kernel)?;
    let exit_file = results.join(".exit-code");
    if exit_file.exists() {
        fs::remove_file(&exit_file)?;
    }
    write_command(&results, options)?;

    let sockets = tempfile::Builder::new().prefix("pyro-lab-").tempdir()?;
    let console = options.cache.join("console.log");
    // Ports on sockets, not on QEMU's own stdio: a chardev whose input has ended counts as
    // unplugged, and the guest's writes to it block for ever.
    let out_socket = sockets.path().join("stdout.sock");
    let err_socket = sockets.path().join("stderr.sock");
    let beat_socket = sockets.path().join("beat.sock");
    let heard = Arc::new(Mutex::new(Instant::now()));
    let copiers = [
        (stream_from(&out_socket, stdout)?, &out_socket),
        (stream_from(&err_socket, std::io::stderr())?, &err_socket),
        (stream_from(&beat_socket, Beat(Arc::clone(&heard)))?, &beat_socket),
    ];

    let mut helpers = Helpers(Vec::new());
    for (name, source) in [("root", Path::new("/")), ("results", results.as_path())] {
        let socket = sockets.path().join(format!("{name}.sock"));
        let log = fs::File::create(options.cache.join(format!("virtiofsd-{name}.log")))?;
        let child = Command::new(&virtiofsd)
            .arg(format!("--socket-path={}", socket.display()))
            .args(["-f", "-o", &format!("source={}", source.display())])
            .args(["-o", if name == "root" { "cache=always" } else { "cache=auto" }])
            .args(["-o", "sandbox=chroot"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", virtiofsd.display()))?;
        helpers.0.push(child);
        wait_for(&socket)?;
    }

    let fs_device = |name: &str| -> [String; 4] {
        [
            "-chardev".into(),
            format!("socket,id={name},path={}", sockets.path().join(format!("{name}.sock")).display()),
            "-device".into(),
            format!("vhost-user-fs-pci,chardev={name},tag={name},queue-size=1024"),
        ]
    };
    let child = Command::new(&qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-M", "q35,memory-backend=ram", "-accel", "tcg,thread=single,tb-size=256"])
        .args(["-cpu", CPU, "-smp", &options.cpus.to_string()])
        .args(["-m", &format!("{}M", options.mem_mib)])
        .args(["-object", &format!("memory-backend-memfd,id=ram,share=on,size={}M", options.mem_mib)])
        .arg("-kernel")
        .arg(kernel.vmlinuz())
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", &kernel_cmdline()])
        .args(["-chardev", &format!("file,id=log,path={}", console.display()), "-serial", "chardev:log"])
        .args(fs_device("root"))
        .args(fs_device("results"))
        .args(["-device", "virtio-serial-pci"])
        .args(["-chardev", &format!("socket,id=out,path={}", out_socket.display())])
        .args(["-device", "virtserialport,chardev=out,name=out"])
        .args(["-chardev", &format!("socket,id=err,path={}", err_socket.display())])
        .args(["-device", "virtserialport,chardev=err,name=err"])
        .args(["-chardev", &format!("socket,id=beat,path={}", beat_socket.display())])
        .args(["-device", "virtserialport,chardev=beat,name=beat"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", qemu.display()))?;
    helpers.0.push(child);

    let deadline = Instant::now() + options.timeout;
    let stopped = loop {
        let machine = helpers.0.last_mut().context("the lab machine is missing")?;
        if machine.try_wait()?.is_some() {
            break None;
        }
        if heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= STILL {
            break Some(LabEnd::StoodStill);
        }
        if Instant::now() >= deadline {
            break Some(LabEnd::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    drop(helpers);
    for (copier, socket) in copiers {
        // A machine that never came up has not connected: end the wait for it.
        let _ = UnixStream::connect(socket);
        let _ = copier.join();
    }

    if let Ok(text) = fs::read_to_string(&exit_file) {
        let code = text.trim().parse().with_context(|| format!("bad exit code `{}`", text.trim()))?;
        return Ok(LabEnd::Exited(code));
    }
    if let Some(end) = stopped {
        let why = match end {
            LabEnd::StoodStill => format!("the lab stood still for {} s: its software CPU is stuck", STILL.as_secs()),
            _ => format!("the lab was stopped after {} s", options.timeout.as_secs()),
        };
        writeln!(std::io::stderr().lock(), "{why}; last kernel lines:\n{}", tail(&console, 5))?;
        return Ok(end);
    }
    bail!(
        "the lab machine ended without running the command; last kernel lines ({}):\n{}",
        console.display(),
        tail(&console, 20)
    );
}

/// Kills and reaps the lab's processes, the machine first.
struct Helpers(Vec<Child>);

impl Drop for Helpers {
    fn drop(&mut self) {
        for child in self.0.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Keeps when the lab was last heard of.
struct Beat(Arc<Mutex<Instant>>);

impl Write for Beat {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An unpacked Debian kernel package.
struct LabKernel {
    root: PathBuf,
    release: String,
}

impl LabKernel {
    fn vmlinuz(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

/// Downloads and unpacks the cloud kernel once; later calls use what is there.
fn prepare_kernel(cache: &Path) -> Result<LabKernel> {
    let root = cache.join("kernel");
    if !root.join("boot").is_dir() {
        let staging = cache.join("kernel.new");
        if staging.exists() {
            fs::remove_dir_all(&staging)?;
        }
        fs::create_dir_all(&staging)?;
        let depends = output(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .context("linux-image-cloud-amd64 is not in the package lists; run apt-get update")?;
        output(Command::new("apt-get").args(["download", package]).current_dir(&staging))?;
        let deb = fs::read_dir(&staging)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
            .with_context(|| format!("apt-get download {package} left no package"))?;
        output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&staging))?;
        fs::remove_file(deb)?;
        fs::rename(&staging, &root)?;
    }
    let release = fs::read_dir(root.join("lib/modules"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .next()
        .context("the kernel package holds no modules")?;
    Ok(LabKernel { root, release })
}

/// The lab's kernel command line: the flags keep a loaded host from hanging TSC calibration, and memory from being cleared
/// twice.
fn kernel_cmdline() -> String {
    let mut cmdline = "console=ttyS0 panic=-1 mitigations=off init_on_alloc=0 no_timer_check tsc=reliable".to_owned();
    if let Some(khz) = host_tsc_khz() {
        cmdline.push_str(&format!(" tsc_early_khz={khz}"));
    }
    cmdline
}

/// The host's CPU frequency as `/proc/cpuinfo` has it: what QEMU's software TSC runs at on most
/// hosts.
fn host_tsc_khz() -> Option<u64> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpuinfo.lines().find(|line| line.starts_with("cpu MHz"))?;
    let mhz: f64 = line.split(':').nth(1)?.trim().parse().ok()?;
    Some((mhz * 1000.0) as u64)
}

/// Writes the command as a shell script next to the results.
fn write_command(results: &Path, options: &LabOptions) -> Result<()> {
    let quoted: Vec<String> = options.command.iter().map(|word| shell_quote(word)).collect();
    let cwd = std::env::current_dir()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let mut script = format!(
        "cd {}\nexport PATH={} HOME={} PYRO_LAB=1 PYRO_LAB_RESULTS=/run/pyro-lab-results\n",
        shell_quote(&cwd.to_string_lossy()),
        shell_quote(&path),
        shell_quote(&home),
    );
    for (name, value) in std::env::vars() {
        let wanted = (name.starts_with("PYRO_") && !name.starts_with("PYRO_LAB"))
            || ["RUST_LOG", "RUST_BACKTRACE", "CARGO_TARGET_DIR"].contains(&name.as_str());
        if wanted {
            script.push_str(&format!("export {name}={}\n", shell_quote(&value)));
        }
    }
    for (name, value) in &options.variables {
        script.push_str(&format!("export {name}={}\n", shell_quote(value)));
    }
    script.push_str(&format!("exec {}\n", quoted.join(" ")));
    fs::write(results.join(".command"), script)?;
    Ok(())
}

fn shell_quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What runs as PID 1 of the lab machine.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /lower /results /ram /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
for m in $(/bin/busybox cat /modules.list); do /bin/busybox insmod /modules/$m.ko; done
die() { echo "pyro-lab: $1" > /dev/ttyS0; /bin/busybox poweroff -f; }
/bin/busybox mount -t virtiofs -o ro root /lower || die "cannot mount the host's file system"
/bin/busybox mount -t virtiofs results /results || die "cannot mount the results directory"
/bin/busybox mount -t tmpfs -o size=90% tmpfs /ram
/bin/busybox mkdir -p /ram/upper /ram/work /ram/new
/bin/busybox mount -t overlay -o lowerdir=/lower,upperdir=/ram/upper,workdir=/ram/work overlay /ram/new || die "cannot mount the overlay"
new=/ram/new
for d in proc sys dev; do /bin/busybox mount --move /$d $new/$d; done
/bin/busybox mount -t tmpfs tmpfs $new/run
/bin/busybox mkdir -p $new/run/pyro-lab-results $new/dev/shm $new/dev/pts
/bin/busybox mount -t tmpfs tmpfs $new/dev/shm
/bin/busybox mount -t devpts devpts $new/dev/pts
/bin/busybox mount --move /results $new/run/pyro-lab-results
/bin/busybox mount -t cgroup2 cgroup2 $new/sys/fs/cgroup
/bin/busybox ip link set lo up
out=/dev/null; err=/dev/null; beat=/dev/null
for p in $new/sys/class/virtio-ports/*; do
  case $(/bin/busybox cat $p/name) in
    out) out=$new/dev/${p##*/};;
    err) err=$new/dev/${p##*/};;
    beat) beat=$new/dev/${p##*/};;
  esac
done
# A shell opens /dev/null for what it leaves in the background.
/bin/busybox mount -t devtmpfs devtmpfs /dev
(while :; do echo; /bin/busybox sleep 3; done) > $beat 2> /dev/null &
/bin/busybox chroot $new /bin/sh /run/pyro-lab-results/.command > $out 2> $err < $new/dev/null
echo $? > $new/run/pyro-lab-results/.exit-code
/bin/busybox sync
/bin/busybox poweroff -f
"#;

/// Writes the lab's initramfs and returns its path.
fn write_initramfs(cache: &Path, kernel: &LabKernel) -> Result<PathBuf> {
    let busybox = find_program("busybox", &["/bin/busybox", "/usr/bin/busybox"], "busybox-static")?;
    let mut archive = Newc::default();
    for directory in ["bin", "modules", "dev"] {
        archive.directory(directory);
    }
    archive.char_device("dev/console", 5, 1);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("bin/busybox", 0o755, &fs::read(&busybox)?);
    let mut list = String::new();
    for module in MODULES {
        // Built in or absent in some releases (`ccp` is only needed by newer ones).
        if let Some(path) = find_file(&kernel.modules(), &format!("{module}.ko")) {
            archive.file(&format!("modules/{module}.ko"), 0o644, &fs::read(path)?);
            list.push_str(module);
            list.push('\n');
        }
    }
    archive.file("modules.list", 0o644, list.as_bytes());
    let path = cache.join("initramfs.cpio");
    fs::write(&path, archive.finish())?;
    Ok(path)
}

/// A cpio archive in the `newc` format (`Documentation/driver-api/early-userspace/buffer-format`
/// of the kernel).
#[derive(Default)]
struct Newc {
    bytes: Vec<u8>,
    inode: u32,
}

impl Newc {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, (0, 0), &[]);
    }

    fn char_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, 0o020_600, (major, minor), &[]);
    }

    fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, 0o100_000 | mode, (0, 0), data);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.inode += 1;
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            self.inode,
            0,
            0,
            1,
            0,
            data.len(),
            0,
            0,
            device.0,
            device.1,
            name.len() + 1,
            0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

fn find_file(root: &Path, name: &str) -> Option<PathBuf> {
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).ok()?.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path);
            } else if path.file_name().is_some_and(|file| file == name) {
                return Some(path);
            }
        }
    }
    None
}

fn find_program(name: &str, places: &[&str], package: &str) -> Result<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&on_path)
        .map(|directory| directory.join(name))
        .chain(places.iter().map(PathBuf::from))
        .find(|path| path.is_file())
        .with_context(|| format!("`{name}` is missing; install it with: apt-get install {package}"))
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let result =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        result.status.success(),
        "{} failed: {}",
        program.display(),
        String::from_utf8_lossy(&result.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

fn wait_for(socket: &Path) -> Result<()> {
    for _ in 0..250 {
        if socket.exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("virtiofsd did not create {}; its log is in the lab's cache directory", socket.display());
}

/// Copies what the one client of a new socket sends to `to`, in a thread.
fn stream_from(socket: &Path, mut to: impl Write + Send + 'static) -> Result<JoinHandle<()>> {
    let listener = UnixListener::bind(socket)?;
    Ok(std::thread::spawn(move || {
        if let Ok((mut stream, _)) = listener.accept() {
            let _ = copy_until_end(&mut stream, &mut to);
        }
    }))
}

fn copy_until_end(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = [0; 16384];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newc_entries_are_aligned_and_end_with_a_trailer() {
        let mut archive = Newc::default();
        archive.file("a", 0o644, b"xyz");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert!(bytes.len().is_multiple_of(4));
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn shell_words_survive_quotes() {
        assert_eq!(shell_quote("it's"), r"'it'\''s'");
    }
}
