//! Whole guests on KVM: Debian's kernel, our agent, a real root file system.
//!
//! They need a KVM that passes the self-test and the files of an installed environment, which
//! `PYRO_TEST_KERNEL`, `PYRO_TEST_INITRAMFS` and `PYRO_TEST_ROOTFS` name, so they are run on
//! request, in the lab:
//!
//! ```text
//! cargo xtask lab -- env PYRO_TEST_KERNEL=... PYRO_TEST_INITRAMFS=... PYRO_TEST_ROOTFS=... \
//!     target/debug/deps/lab-... --ignored --test-threads 1
//! ```

#[path = "lab/guest.rs"]
mod guest;

use std::process::Command;
use std::time::Duration;

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
