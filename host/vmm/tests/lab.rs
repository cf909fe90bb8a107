//! Whole guests on KVM: Debian's kernel, our agent, a real root file system.
//!
//! They need a KVM that passes the self-test and the files of an installed environment, which `PYRO_TEST_KERNEL`,
//! `PYRO_TEST_INITRAMFS` and `PYRO_TEST_ROOTFS` name. `cargo xtask test` runs them in the lab.

#[path = "lab/agent.rs"]
mod agent;
#[path = "lab/guest.rs"]
mod guest;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use guest::{Files, Guest};
use pyro_vmm::ExitReason;

/// Returns the files of the environment, after making sure that KVM can be used.
fn lab() -> Files {
    let files = Files::from_env().expect("PYRO_TEST_KERNEL, PYRO_TEST_INITRAMFS and PYRO_TEST_ROOTFS name files");
    let verdict = pyro_vmm::selftest::run();
    assert!(verdict.usable, "KVM cannot be used: {}", verdict.reason);
    files
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn one_vcpu_and_four_boot_and_see_their_memory() {
    let files = lab();
    for (vcpus, mem_mib) in [(1, 256), (4, 512), (1, 5120)] {
        let guest = Guest::boot(&files, |config| {
            config.vcpu_count = vcpus;
            config.mem_mib = mem_mib;
        });
        let cpus = guest.run("nproc").text();
        assert_eq!(cpus.trim(), vcpus.to_string());
        let text = guest.run("cat /proc/meminfo").text();
        let kib: u32 = text.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("MemTotal");
        let mib = kib / 1024;
        assert!(mib < mem_mib && mib > mem_mib * 8 / 10, "{mib} of {mem_mib} MiB");
        assert_eq!(guest.power_off(), ExitReason::PowerOff);
    }
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn five_hundred_commands_in_a_row() {
    let files = lab();
    let guest = Guest::boot(&files, |_| {});
    for index in 0..500 {
        let done = guest.argv(&["/bin/echo", &index.to_string()]);
        assert_eq!((done.code, done.text().trim()), (Some(0), index.to_string().as_str()));
    }
    let stats = guest.handle.stats();
    assert_eq!(guest.power_off(), ExitReason::PowerOff);
    assert!(stats.uptime_ms > 0 && stats.entropy_bytes > 0, "{stats:?}");
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn megabytes_arrive_whole_on_many_connections_at_once() {
    let files = lab();
    let guest = Guest::boot(&files, |config| config.vcpu_count = 2);
    std::thread::scope(|scope| {
        for index in 0..4 {
            let guest = &guest;
            scope.spawn(move || {
                let script = format!(
                    "head -c 3000000 /dev/urandom > /tmp/{index}; sha256sum < /tmp/{index} >&2; cat /tmp/{index}"
                );
                let done = guest.run(&script);
                assert_eq!(done.stdout.len(), 3_000_000);
                let expected = String::from_utf8_lossy(&done.stderr).into_owned();
                assert_eq!(guest::sha256(&done.stdout), expected.split(' ').next().unwrap_or_default());
            });
        }
    });
    guest.handle.stop();
    assert_eq!(guest.wait(), ExitReason::Stopped);
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn a_disk_survives_concurrent_writers_and_a_shutdown() {
    let files = lab();
    let directory = tempfile::tempdir().expect("a directory for the disk");
    let disk = directory.path().join("disk.raw");
    let copy = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&files.rootfs).arg(&disk).status();
    assert!(copy.expect("cp").success());
    let status = Command::new("chmod").arg("u+w").arg(&disk).status();
    assert!(status.expect("chmod").success());
    let guest = Guest::boot_on(&files, disk.clone(), None, true, |config| config.vcpu_count = 2);
    let writers = "mkdir -p /var/w && cd /var/w && for i in 1 2 3 4; do (head -c 4000000 /dev/urandom > f$i; \
         for j in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=f$i bs=1000 seek=$((j*431)) count=9 conv=notrunc; \
         done; cp f$i g$i; rm f$i) 2>/dev/null & done; wait; sha256sum g* > sums; sync";
    assert_eq!(guest.run(writers).code, Some(0));
    assert_eq!(guest.power_off(), ExitReason::PowerOff);
    let check = Command::new("e2fsck").arg("-fn").arg(&disk).output().expect("e2fsck");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let guest = Guest::boot_on(&files, disk, None, true, |_| {});
    let again = guest.run("cd /var/w && sha256sum -c sums");
    assert_eq!(again.code, Some(0), "{}", again.text());
    assert_eq!(guest.power_off(), ExitReason::PowerOff);
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn every_end_has_its_reason() {
    let files = lab();
    assert_eq!(Guest::boot(&files, |_| {}).reboot(), ExitReason::Reset);
    let guest = Guest::boot(&files, |_| {});
    guest.start("echo c > /proc/sysrq-trigger");
    match guest.wait() {
        ExitReason::GuestPanic { message } => assert!(message.contains("sysrq"), "{message}"),
        other => panic!("not a panic: {other}"),
    }
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn a_paused_guest_stands_still_and_goes_on() {
    let files = lab();
    let guest = Guest::boot(&files, |config| config.vcpu_count = 2);
    let counter = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done";
    guest.start(counter);
    for _ in 0..5 {
        guest.handle.pause();
        assert!(guest.handle.is_paused());
        let state = guest.handle.save().expect("the state of a paused VM");
        assert_eq!(state.vcpus.len(), 2);
        let exits = guest.handle.stats().mmio_write_exits;
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(guest.handle.stats().mmio_write_exits, exits);
        guest.handle.resume();
        assert_eq!(guest.run("true").code, Some(0));
    }
    guest.handle.stop();
    assert_eq!(guest.wait(), ExitReason::Stopped);
}

/// The body of the process that the next test kills.
#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn a_guest_that_waits_to_be_killed() {
    // Only the next test asks for it.
    let Some(mark) = std::env::var_os("PYRO_TEST_READY") else { return };
    let files = lab();
    let guest = Guest::boot(&files, |_| {});
    std::fs::write(mark, b"ready").expect("the mark");
    guest.wait();
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn nothing_is_left_of_a_killed_vmm() {
    let files = lab();
    let directory = tempfile::tempdir().expect("a directory");
    let mark = directory.path().join("ready");
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_guest_that_waits_to_be_killed", "--ignored"])
        .env("PYRO_TEST_READY", &mark)
        // Its lines are no results of this program's.
        .stdout(Stdio::null())
        .spawn()
        .expect("a VMM process");
    for _ in 0..1200 {
        if mark.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(mark.exists(), "the guest did not boot");
    child.kill().expect("a running process");
    child.wait().expect("the end of the process");
    // The same files are free for the next one.
    assert_eq!(Guest::boot(&files, |_| {}).power_off(), ExitReason::PowerOff);
}

/// Listens on a hundred ports and sends back what each connection brought once its sender is done.
const ECHO: &str = r#"
import selectors, socket
select = selectors.DefaultSelector()
for port in range(2000, 2100):
    server = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    server.bind((socket.VMADDR_CID_ANY, port))
    server.listen(64)
    select.register(server, selectors.EVENT_READ)
print("listening", flush=True)
held = {}
while True:
    for key, _ in select.select():
        peer = key.fileobj
        if peer not in held:
            peer, _ = peer.accept()
            held[peer] = []
            select.register(peer, selectors.EVENT_READ)
            continue
        data = peer.recv(65536)
        if data:
            held[peer].append(data)
            continue
        select.unregister(peer)
        try:
            peer.sendall(b"".join(held.pop(peer)))
        except OSError:
            pass
        peer.close()
"#;

/// Knocks at the host: at a port that listens, and at many that do not.
const KNOCK: &str = r#"
import socket
refused = 0
for turn in range(150):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as door:
        door.connect((2, 3000))
        door.sendall(b"%d" % turn)
        door.shutdown(socket.SHUT_WR)
        assert door.recv(9) == b"ok"
for port in range(4000, 4100):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as door:
        try:
            door.connect((2, port))
        except ConnectionResetError:
            refused += 1
print(refused)
"#;

fn python(program: &str) -> Vec<&str> {
    vec!["/usr/bin/python3", "-c", program]
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn storms_of_connections_leave_no_trace_and_half_a_close_is_half_a_close() {
    let files = lab();
    let guest = Guest::boot(&files, |config| config.vcpu_count = 2);
    let vsock = guest.handle.vsock().expect("a vsock device");
    guest.start_until(&python(ECHO), "listening");
    // The first reply may come late, never the wrong one: every port echoes what only it was sent.
    std::thread::scope(|scope| {
        for worker in 0..4u32 {
            let vsock = &vsock;
            scope.spawn(move || {
                for turn in 0..50 {
                    let port = 2000 + (worker * 50 + turn) % 100;
                    let sent = format!("{worker} {turn} ").repeat(if turn % 10 == 0 { 20_000 } else { 3 });
                    let mut stream = vsock.connect_wait(port).expect("an echo");
                    if turn % 7 == 3 {
                        // Leaves in the middle of it.
                        let _ = stream.write_all(sent.as_bytes());
                        continue;
                    }
                    stream.write_all(sent.as_bytes()).expect("a reader");
                    stream.shutdown(Shutdown::Write).expect("half a close");
                    let mut back = String::new();
                    stream.read_to_string(&mut back).expect("the echo");
                    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for port in 5000..5150 {
                    assert!(vsock.connect_wait(port).is_err(), "nobody listens on {port}");
                }
            });
        }
    });
    let (tell, told) = mpsc::channel();
    vsock.listen(3000, move |stream| {
        let _ = tell.send(stream);
    });
    let answerer = std::thread::spawn(move || {
        for turn in 0..150 {
            let mut stream = told.recv_timeout(Duration::from_secs(60)).expect("a knock");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("its words");
            assert_eq!(text, turn.to_string());
            stream.write_all(b"ok").expect("a listener");
        }
    });
    let knocked = guest.argv(&python(KNOCK));
    assert_eq!((knocked.code, knocked.text().trim()), (Some(0), "100"), "{}", knocked.text());
    answerer.join().expect("every knock is answered");
    // What has ended is forgotten; only the command that listens is still there.
    let begun = Instant::now();
    loop {
        let stats = vsock.stats();
        let open = stats.connections_opened - stats.connections_closed;
        if open <= 2 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{open} connections are left: {stats:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(guest.run("echo fine").text(), "fine\n");
    assert_eq!(guest.power_off(), ExitReason::PowerOff);
}

/// Writes anything anywhere in the windows of the devices and of the IOAPIC, as only a hostile kernel would: registers in
/// any order, rings over any memory, which then holds descriptors and vsock headers that nobody meant.
const ABUSE: &str = r#"
import mmap, os, random, struct, sys
memory = os.open("/dev/mem", os.O_RDWR | os.O_SYNC)
windows = [mmap.mmap(memory, 4096, offset=0xc0000000 + device * 4096) for device in DEVICES]
windows.append(mmap.mmap(memory, 4096, offset=0xfec00000))
random.seed(SEED)
REGISTERS = [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xfc, 0x100]
def put(window, register, value):
    window[register:register + 4] = struct.pack("<I", value & 0xffffffff)
def start(window, size):
    for status in (0, 1, 3):
        put(window, 0x70, status)
    for select in (0, 1):
        put(window, 0x14, select)
        put(window, 0x24, select)
        put(window, 0x20, struct.unpack("<I", window[0x10:0x14])[0])
    put(window, 0x70, 11)
    for queue in range(3):
        put(window, 0x30, queue)
        put(window, 0x38, size)
        for register in (0x80, 0x90, 0xa0):
            put(window, register, random.randrange(0x1000000, 0xc000000) & ~0xfff)
        put(window, 0x44, 1)
    put(window, 0x70, 15)
print("begun", flush=True)
for turn in range(TURNS):
    window = random.choice(windows)
    if turn % 8 == 0:
        start(random.choice(windows[:-1]), random.choice([8, 64, 128, 256]))
    for _ in range(8):
        put(window, random.choice(REGISTERS), random.choice([0, 1, 2, 8, 255, random.getrandbits(32)]))
    for queue in range(3):
        put(window, 0x50, queue)
    window[random.choice(REGISTERS):][:4]
"#;

#[test]
#[ignore = "needs a KVM that runs stock kernels: run it in the lab"]
fn a_guest_that_abuses_its_devices_harms_only_itself() {
    let files = lab();
    // The entropy source alone first: the guest lives on and can count its turns. Then all of them.
    for (devices, turns) in [("[2]", 300), ("[0, 1, 2]", 1000)] {
        let guest = Guest::boot(&files, |config| config.cmdline.push_str(" iomem=relaxed"));
        let program = ABUSE.replace("DEVICES", devices).replace("SEED", "7").replace("TURNS", &turns.to_string());
        guest.start_until(&python(&program), "begun");
        let before = guest.handle.stats();
        let begun = Instant::now();
        // A guest that wrote over its own memory may be gone before it has done all.
        while guest.handle.exit_reason().is_none() && begun.elapsed() < Duration::from_secs(15) {
            guest.handle.pause();
            guest.handle.save().expect("the state of a paused VM");
            guest.handle.resume();
            std::thread::sleep(Duration::from_millis(200));
        }
        let after = guest.handle.stats();
        assert!(after.mmio_write_exits > before.mmio_write_exits + 50, "{before:?} {after:?}");
        if devices == "[2]" {
            assert_eq!(guest.run("echo fine").text(), "fine\n");
        }
        guest.handle.stop();
        let reason = guest.wait();
        assert!(!matches!(reason, ExitReason::Failed { .. }) && !reason.blames_host(), "{reason}");
    }
    // The host is as good as before.
    assert_eq!(Guest::boot(&files, |_| {}).power_off(), ExitReason::PowerOff);
}
