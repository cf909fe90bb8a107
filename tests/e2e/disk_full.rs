//! Disks that are full: a typed error with the next step, and nothing half-made.
//!
//! The host's disk is a small tmpfs in a mount namespace of the test's own, which needs root.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pyro_tests::Home;
use serde_json::Value;

const CLEAN: Duration = Duration::from_secs(10);
const MIB: usize = 1 << 20;

/// A directory of a home on a file system of its own, seen only by the commands that are run here. Gone with the shell that
/// holds the namespace.
struct SmallDisk<'h> {
    home: &'h Home,
    shell: Child,
    /// The directory, as this process can reach it.
    inside: PathBuf,
}

impl<'h> SmallDisk<'h> {
    fn new(home: &'h Home, directory: &str, mib: usize) -> Self {
        let path = home.path().join(directory);
        fs::create_dir_all(&path).expect("the home is writable");
        let script =
            format!("mount -t tmpfs -o mode=700,size={mib}m tmpfs '{}' && echo up && exec cat", path.display());
        let mut shell = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there");
        let mut line = String::new();
        let stdout = shell.stdout.as_mut().expect("it was asked for");
        BufReader::new(stdout).read_line(&mut line).expect("it is read");
        assert_eq!(line, "up\n", "these tests mount a file system: run them as root");
        let inside = PathBuf::from(format!("/proc/{}/root{}", shell.id(), path.display()));
        Self { home, shell, inside }
    }

    fn command(&self, args: &[&str]) -> Command {
        let plain = self.home.command(args);
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.shell.id()))
            .arg(format!("--wd={}", self.home.path().display()))
            .arg(plain.get_program())
            .args(plain.get_args())
            .env_clear()
            .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {text}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs what must fail for want of room.
    #[track_caller]
    fn full(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        let output = self.command(&all).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{args:?}: {text}"));
        let error = answer["error"].clone();
        assert_eq!(error["code"], "disk_full", "{args:?}: {text}");
        assert!(text.contains("\nhint: ") && error["hint"].is_string(), "{args:?}: {text}");
        error
    }

    fn resize(&self, mib: usize) {
        let at = self.inside.strip_prefix(format!("/proc/{}/root", self.shell.id())).expect("it is below");
        let done = Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", self.shell.id()))
            .args(["mount", "-o", &format!("remount,size={mib}m")])
            .arg(Path::new("/").join(at))
            .status();
        assert!(done.expect("nsenter is there").success());
    }

    /// Takes all room but the last `left` bytes.
    fn fill(&self, left: usize) {
        let path = self.inside.join("filler");
        let mut file = fs::File::create(&path).expect("there is room for a name");
        let mut written = 0;
        while let Ok(count @ 1..) = file.write(&vec![7; MIB]) {
            written += count;
        }
        file.set_len(written.saturating_sub(left) as u64).expect("it becomes shorter");
    }

    fn free(&self) {
        fs::remove_file(self.inside.join("filler")).expect("it is there");
    }

    /// Files of the records, with their sizes.
    fn records(&self) -> Vec<String> {
        let mut names = Vec::new();
        for record in fs::read_dir(self.inside.join("records")).into_iter().flatten().flatten() {
            for file in fs::read_dir(record.path()).into_iter().flatten().flatten() {
                names.push(file.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        names
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

#[test]
fn a_full_disk_of_the_host_leaves_nothing_half_made() {
    let home = Home::new();
    let disk = SmallDisk::new(&home, "state", 64);
    disk.full(&["workspace", "create", "debian:12"]);
    assert_eq!(disk.records(), [""; 0]);
    home.expect_clean_within(CLEAN);

    disk.resize(600);
    let id = disk.ok(&["workspace", "create", "debian:12", "--id-only"]);
    let id = id.trim();
    disk.ok(&["workspace", "exec", id, "--", "head -c 4000000 /dev/urandom > big; echo kept > note; sync"]);
    let before = disk.records();
    disk.fill(MIB);
    disk.full(&["workspace", "snapshot", "create", id, "s"]);
    disk.full(&["workspace", "export", id, "big", "--output", "state/out"]);
    assert!(!disk.inside.join("out").exists());
    disk.full(&["workspace", "reset", id]);
    assert_eq!(disk.records(), before);
    let left: Vec<_> = fs::read_dir(&disk.inside).expect("it is there").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains(".pyro")), "{left:?}");
    // It is what it was, and goes on once there is room.
    let status: Value = serde_json::from_str(&disk.ok(&["workspace", "status", id, "--json"])).expect("JSON");
    assert_eq!((&status["state"], &status["reset_count"]), (&"started".into(), &0.into()), "{status}");
    assert_eq!(disk.ok(&["workspace", "file", "read", id, "note", "--content-only"]), "kept\n");
    disk.free();
    disk.ok(&["workspace", "snapshot", "create", id, "s"]);
    disk.ok(&["workspace", "export", id, "big", "--output", "state/out"]);

    // A guest that cannot write through to it is told, and does not stand still.
    disk.fill(MIB);
    let written = disk
        .command(&[
            "workspace",
            "exec",
            id,
            "--timeout-seconds",
            "60",
            "--",
            "head -c 64000000 /dev/urandom > huge; sync -d huge",
        ])
        .output()
        .expect("it runs");
    assert_eq!(written.status.code(), Some(1), "{}", String::from_utf8_lossy(&written.stderr));
    disk.free();
    disk.ok(&["workspace", "stop", id]);
    disk.ok(&["workspace", "start", id]);
    assert_eq!(disk.ok(&["workspace", "file", "read", id, "note", "--content-only"]), "kept\n");
    disk.ok(&["workspace", "delete", id]);
    // Without room for its lock even the list cannot be read once what is kept for that is gone, and that is said too.
    disk.fill(0);
    disk.ok(&["workspace", "list"]);
    // A process that ends while something of it still runs does not take it again.
    let _ = fs::remove_file(disk.inside.join("reserve"));
    disk.fill(0);
    let error = disk.full(&["workspace", "list"]);
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("delete a workspace")), "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("state.db")), "{error}");
    disk.free();
    home.expect_clean_within(CLEAN);
}

#[test]
fn a_full_disk_is_made_free_by_deleting_what_fills_it() {
    let home = Home::new();
    let disk = SmallDisk::new(&home, "state", 600);
    let make = || disk.ok(&["workspace", "create", "debian:12", "--id-only"]).trim().to_owned();
    let ids = [make(), make()];
    disk.ok(&["workspace", "stop", &ids[1]]);
    let free = || {
        let stat = rustix::fs::statvfs(&disk.inside).expect("it is there");
        stat.f_bavail * stat.f_frsize
    };
    let before = free();
    disk.fill(0);
    assert_eq!(free(), 0);
    for id in &ids {
        disk.ok(&["workspace", "status", id]);
    }
    // Nobody waits with the room that one call gave up until the next one comes.
    let mut rest = fs::File::create(disk.inside.join("rest")).expect("there is room for a name");
    while let Ok(1..) = rest.write(&[7; 512]) {}
    disk.ok(&["workspace", "stop", &ids[0]]);
    disk.ok(&["workspace", "delete", &ids[1]]);
    disk.ok(&["workspace", "delete", &ids[0]]);
    assert_eq!(disk.records(), [""; 0]);
    disk.free();
    drop(rest);
    fs::remove_file(disk.inside.join("rest")).expect("it is there");
    assert!(free() > before, "{} and {before}", free());
    let kept = fs::metadata(disk.inside.join("reserve")).expect("it was made again");
    assert_eq!(kept.len(), 256 << 10);
    home.expect_clean_within(CLEAN);
}

#[test]
fn a_pull_that_has_no_room_leaves_nothing() {
    let home = Home::empty();
    let disk = SmallDisk::new(&home, "cache", 16);
    let error = disk.full(&["env", "pull", "debian:12"]);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("cache")), "{error}");
    let listed: Value = serde_json::from_str(&disk.ok(&["env", "list", "--json"])).expect("JSON");
    assert!(listed.as_array().is_some_and(|list| list.iter().all(|item| item["installed"] == false)), "{listed}");
    let used = Command::new("du").arg("-sk").arg(&disk.inside).output().expect("du is there").stdout;
    let used = String::from_utf8_lossy(&used);
    let used: u32 = used.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number");
    assert!(used < 64, "{used} KiB are left");
}

#[test]
fn a_full_disk_of_the_guest_is_told_by_every_tool_that_writes() {
    let home = Home::new();
    let id = home.run(&["workspace", "create", "debian:12", "--id-only"]);
    id.expect_code(0);
    let id = id.text().trim();
    let full = |args: &[&str]| {
        let run = home.run(args);
        run.expect_code(1);
        assert!(run.stderr.contains("hint: remove something in the guest"), "{args:?}: {}", run.stderr);
        let error = run.json()["error"].clone();
        assert_eq!(error["code"], "disk_full", "{args:?}: {error}");
    };
    home.run(&["workspace", "file", "write", id, "note", "--text", "one\n"]).expect_code(0);
    fs::create_dir(home.path().join("tree")).expect("the home is writable");
    fs::write(home.path().join("tree/large"), "x".repeat(900_000)).expect("the home is writable");
    let fill = "fallocate -l $(df --output=avail -B1 / | tail -1) /fill; head -c 100000000 /dev/zero > /rest; df / >&2; exit 0";
    home.run(&["workspace", "exec", id, "--", fill]).expect_code(0);
    let large = "x".repeat(900_000);
    fs::write(home.path().join("large"), &large).expect("the home is writable");
    full(&["workspace", "file", "write", id, "note", "--text-file", "large", "--json"]);
    full(&["workspace", "sync", "push", id, "tree", "--dest", "/workspace/in", "--json"]);
    assert_eq!(home.run(&["workspace", "file", "read", id, "note", "--content-only"]).text(), "one\n");
    let listed = home.run(&["workspace", "exec", id, "--", "ls -A"]);
    assert_eq!(listed.text(), "note\n");
    home.run(&["workspace", "exec", id, "--", "rm /fill /rest"]).expect_code(0);
    home.run(&["workspace", "file", "write", id, "note", "--text-file", "large"]).expect_code(0);
    home.run(&["workspace", "delete", id]).expect_code(0);
    home.expect_clean_within(CLEAN);
}
