//! The whole path with a stand-in for `mmdebstrap`: everything but Debian itself is real.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::*;
use crate::{ErrorCode, NoProgress};

const LIMIT: Duration = Duration::from_secs(60);

/// What the tests run in another process find their directory by.
const DIR_VAR: &str = "PYRO_TEST_ENVIRONMENTS_DIR";

/// Says what it does in `calls`, and behaves as the file `mode` says.
const STAND_IN: &str = r#"#!/bin/sh
set -e
here=$(dirname "$0")
mode=$(cat "$here/mode" 2>/dev/null || true)
case "$*" in
*--variant=custom*)
    echo kernel >> "$here/calls"
    for argument; do
        case "$argument" in
        "--customize-hook=copy-out "*)
            into=$(echo "$argument" | sed "s/.*'\(.*\)'.*/\1/")
            mkdir "$into/pyro-kernel" && cp "$here"/*.deb "$into/pyro-kernel/" ;;
        esac
    done ;;
*)
    echo rootfs >> "$here/calls"
    mkdir -p "$TMPDIR/mmdebstrap.x/usr"
    echo "I: running apt-get update..." >&2
    case "$mode" in
    hang) echo $$ > "$here/pid"; while ! [ -e "$here/go" ]; do sleep 0.05; done ;;
    slow) sleep 1 ;;
    offline) echo "W: Failed to fetch x  Temporary failure resolving 'x'" >&2; echo "E: apt-get update failed" >&2; exit 25 ;;
    memory) if grep -q " $TMPDIR tmpfs" /proc/mounts; then echo "E: No space left on device" >&2; exit 1; fi ;;
    cut) head -c 5000 "$here/root.tar"; echo "E: it broke" >&2; exit 1 ;;
    esac
    cat "$here/root.tar"
    rm -r "$TMPDIR/mmdebstrap.x" ;;
esac
"#;

/// A directory with the stand-in and what it serves.
struct Lab {
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Lab {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let lab = Self { dir: temporary.path().to_owned(), _temporary: Some(temporary) };
        fs::write(lab.dir.join("stand-in"), STAND_IN).unwrap();
        fs::set_permissions(lab.dir.join("stand-in"), fs::Permissions::from_mode(0o755)).unwrap();
        // Copied by another process: a child that a test next to this one is just starting would hold a file that this
        // process has open for writing, and such a file cannot be executed.
        let copy = Command::new("cp").arg(lab.dir.join("stand-in")).arg(lab.dir.join("mmdebstrap")).status().unwrap();
        assert!(copy.success());
        let mut tar = tar::Builder::new(Vec::new());
        let mut put = |path: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, data).unwrap();
        };
        put("./etc/hostname", b"the-builder");
        put("./var/lib/dpkg/status", b"Package: git\nStatus: install ok installed\nVersion: 2.39\n");
        put("./usr/big", &vec![3; 2 << 20]);
        fs::write(lab.dir.join("root.tar"), tar.into_inner().unwrap()).unwrap();
        kernel_package::tests::kernel_deb(&lab.dir, &kernel::tests::elf(100_000));
        lab
    }

    /// The directory of the process that started this one.
    fn inherited() -> Self {
        Self { dir: std::env::var_os(DIR_VAR).unwrap().into(), _temporary: None }
    }

    fn environments(&self) -> Environments {
        self.environments_with(b"agent", self.dir.join("mmdebstrap"))
    }

    fn environments_with(&self, agent: &'static [u8], program: PathBuf) -> Environments {
        let paths = Paths::below(&self.dir.join("home"));
        Environments {
            inner: Arc::new(Inner {
                store: Store { root: paths.cache.clone() },
                user_catalogue: paths.config.join(USER_CATALOGUE),
                agent: AgentSource(agent),
                agent_sha256: OnceLock::new(),
                apt_dir: self.dir.join("no-apt"),
                program,
                check_space: false,
                kernel: None,
            }),
        }
    }

    fn mode(&self, mode: &str) {
        fs::write(self.dir.join("mode"), mode).unwrap();
    }

    /// What was built, in any order of the two that run at once.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        let mut calls: Vec<_> = text.lines().map(str::to_owned).collect();
        calls.sort();
        calls
    }

    fn wait_for(&self, name: &str) -> String {
        let began = Instant::now();
        loop {
            match fs::read_to_string(self.dir.join(name)) {
                Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
                _ => assert!(began.elapsed() < LIMIT, "no `{name}`"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn cache(&self) -> PathBuf {
        self.dir.join("home/cache")
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.cache().join("staging")).map_or(0, Iterator::count)
    }

    /// Directories of builds, of every kind.
    fn builds(&self) -> usize {
        [ENVIRONMENTS, KERNELS, INITRAMFSES].map(|kind| self.builds_of(kind)).iter().sum()
    }

    fn builds_of(&self, kind: &str) -> usize {
        fs::read_dir(self.cache().join(kind))
            .into_iter()
            .flatten()
            .flatten()
            .flat_map(|slot| fs::read_dir(slot.path()).into_iter().flatten().flatten())
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .count()
    }

    /// Runs the test `name` of this file in a process of its own.
    fn spawn(&self, name: &str) -> Child {
        self.command(name).spawn().unwrap()
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "--nocapture", &format!("environments::tests::{name}")])
            .env(DIR_VAR, &self.dir)
            .stdout(Stdio::null());
        command
    }
}

/// Remembers messages; gives up when told.
#[derive(Default)]
struct Watch {
    messages: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Progress for Watch {
    fn report(&self, message: &str, _done: f64, _total: Option<f64>) {
        self.messages.lock().unwrap().push(message.to_owned());
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Watch {
    fn saw(&self, part: &str) -> bool {
        self.messages.lock().unwrap().iter().any(|message| message.contains(part))
    }
}

/// Other tests start processes, and between fork and exec those hold this one's locks too.
fn eventually(mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn write_over(path: &Path, at: u64, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_pull_installs_and_the_next_use_builds_nothing() {
    let lab = Lab::new();
    let environments = lab.environments();
    assert!(!environments.list().unwrap()[0].installed);
    let watch = Watch::default();
    let installed = environments.ensure("debian:12", &watch).unwrap();
    assert!(installed.built && watch.saw("is ready"));
    for file in [&installed.rootfs, &installed.kernel, &installed.initramfs] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o444);
    }
    assert_eq!(fs::read(&installed.kernel).unwrap(), kernel::tests::elf(100_000));
    let mut image = arcbox_ext4::Reader::new(&installed.rootfs).unwrap();
    assert_eq!(image.read_file("/etc/hostname", 0, None).unwrap(), b"pyro\n");
    assert!(image.exists("/workspace") && image.exists("/usr/big"));
    assert_eq!(lab.staged(), 0);

    let again = environments.ensure("debian:12", &Watch::default()).unwrap();
    assert!(!again.built && again.rootfs == installed.rootfs);
    assert!(!environments.pull("debian:12", PullOptions::default(), &NoProgress).unwrap().built);
    assert_eq!(lab.calls(), ["kernel", "rootfs"]);

    let listed = &environments.list().unwrap()[0];
    assert!(listed.installed && !listed.outdated && listed.disk_bytes.unwrap() > 2 << 20);
    let report = environments.inspect("debian:12").unwrap();
    let details = report.details.unwrap();
    assert!(details.sound);
    assert_eq!(details.installed_packages, ["git 2.39"]);
    assert_eq!(details.kernel.unwrap().release.unwrap(), "1-test");
}

#[test]
fn another_environment_of_the_suite_shares_the_kernel_and_another_agent_everything_but_the_initramfs() {
    let lab = Lab::new();
    let first = lab.environments().ensure("debian:12", &NoProgress).unwrap();
    let second = lab.environments().ensure("debian:12-base", &NoProgress).unwrap();
    assert_eq!(first.kernel, second.kernel);
    assert_eq!(first.initramfs, second.initramfs);
    assert_eq!(lab.calls(), ["kernel", "rootfs", "rootfs"]);
    let other = lab.environments_with(b"newer agent", lab.dir.join("mmdebstrap"));
    let third = other.ensure("debian:12", &NoProgress).unwrap();
    assert_eq!(third.rootfs, first.rootfs);
    assert_ne!(third.initramfs_sha256, first.initramfs_sha256);
    assert_eq!(lab.calls().len(), 3);
}

#[test]
fn two_threads_build_once_and_the_second_says_that_it_waits() {
    let lab = Lab::new();
    lab.mode("hang");
    let environments = lab.environments();
    let (first, second) = (Watch::default(), Watch::default());
    std::thread::scope(|scope| {
        let one = scope.spawn(|| environments.pull("debian:12", PullOptions::default(), &first).unwrap());
        lab.wait_for("pid");
        let two = scope.spawn(|| environments.pull("debian:12", PullOptions::default(), &second).unwrap());
        eventually(|| second.saw("is being built by someone else"));
        fs::write(lab.dir.join("go"), "").unwrap();
        let (one, two) = (one.join().unwrap(), two.join().unwrap());
        assert_eq!(one.rootfs, two.rootfs);
    });
    assert_eq!(lab.calls(), ["kernel", "rootfs"]);
}

#[test]
#[ignore = "run by `two_processes_build_once` in processes of their own"]
fn pull_in_a_process() {
    Lab::inherited().environments().pull("debian:12", PullOptions::default(), &NoProgress).unwrap();
}

#[test]
fn two_processes_build_once() {
    let lab = Lab::new();
    lab.mode("slow");
    let mut children: Vec<_> = (0..2).map(|_| lab.spawn("pull_in_a_process")).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(lab.calls(), ["kernel", "rootfs"]);
    eventually(|| (lab.staged(), lab.builds()) == (0, 3));
}

#[test]
fn a_killed_pull_leaves_nothing_behind_and_a_live_one_is_left_alone() {
    let lab = Lab::new();
    lab.mode("hang");
    let mut child = lab.spawn("pull_in_a_process");
    let pid = lab.wait_for("pid");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually(|| fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z ")));
    assert!(lab.staged() > 0);

    // A pull of something else sweeps it, and not the one that is still at work.
    fs::remove_file(lab.dir.join("pid")).unwrap();
    let mut live = lab.spawn("pull_in_a_process");
    lab.wait_for("pid");
    lab.mode("");
    lab.environments().pull("debian:12-base", PullOptions::default(), &NoProgress).unwrap();
    assert_eq!(lab.staged(), 1);
    fs::write(lab.dir.join("go"), "").unwrap();
    assert!(live.wait().unwrap().success());
    assert_eq!(lab.staged(), 0);
    assert!(!lab.environments().ensure("debian:12", &NoProgress).unwrap().built);
}

#[test]
fn cancelling_undoes_everything_at_once() {
    let lab = Lab::new();
    lab.mode("hang");
    let watch = Watch::default();
    let environments = lab.environments();
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| environments.pull("debian:12", PullOptions::default(), &watch));
        let pid = lab.wait_for("pid");
        watch.stop.store(true, Ordering::Relaxed);
        let began = Instant::now();
        assert_eq!(pull.join().unwrap().unwrap_err().code(), ErrorCode::Cancelled);
        assert!(began.elapsed() < Duration::from_secs(8));
        eventually(|| !Path::new(&format!("/proc/{pid}")).exists());
    });
    assert_eq!(lab.staged(), 0);
    assert!(!environments.list().unwrap()[0].installed);
}

#[test]
fn a_failure_says_what_mmdebstrap_said_and_leaves_nothing() {
    let lab = Lab::new();
    lab.mode("offline");
    let error = lab.environments().pull("debian:12", PullOptions::default(), &NoProgress).unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentBuildFailed);
    assert!(error.retryable() && error.hint().unwrap().contains("network"), "{error}");
    assert!(error.to_string().ends_with("E: apt-get update failed"), "{error}");
    lab.mode("cut");
    let error = lab.environments().pull("debian:12", PullOptions::default(), &NoProgress).unwrap_err();
    assert!(error.to_string().contains("ended with exit code 1") && error.to_string().contains("it broke"), "{error}");
    assert_eq!(lab.staged(), 0);
    // The kernel that was fetched meanwhile may stay: it is whole.
    assert!(fs::read_dir(lab.cache().join(ENVIRONMENTS)).map_or(0, Iterator::count) == 0);
    lab.mode("");
    lab.environments().pull("debian:12", PullOptions::default(), &NoProgress).unwrap();
}

#[test]
fn a_build_that_does_not_fit_into_memory_goes_on_on_the_disk() {
    let lab = Lab::new();
    lab.mode("memory");
    let watch = Watch::default();
    lab.environments().ensure("debian:12", &watch).unwrap();
    // Where nothing could be mounted, the first try was on the disk already.
    let tries = lab.calls().iter().filter(|call| *call == "rootfs").count();
    assert_eq!(tries == 2, watch.saw("memory is not enough"));
    assert!(fs::read_to_string("/proc/mounts").unwrap().lines().all(|line| !line.contains("staging")));
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let lab = Lab::new();
    let error = lab.environments_with(b"agent", lab.dir.join("missing")).ensure("debian:12", &NoProgress).unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentBuildFailed);
    assert!(error.hint().unwrap().contains("apt-get install mmdebstrap"), "{error}");
}

#[test]
fn what_is_damaged_is_noticed_and_built_again() {
    let lab = Lab::new();
    let environments = lab.environments();
    let ensure = || environments.ensure("debian:12", &NoProgress).unwrap();
    let whole = ensure();
    let digests = (whole.kernel_sha256.clone(), whole.initramfs_sha256.clone());

    // Every use sees a file that was written to, is shorter, or is gone. Only what is damaged is built again.
    write_over(&whole.rootfs, 3 << 20, b"damage");
    let again = ensure();
    assert!(again.built);
    assert_eq!(lab.calls(), ["kernel", "rootfs", "rootfs"]);
    fs::remove_file(&again.kernel).unwrap();
    let again = ensure();
    assert_eq!(lab.calls(), ["kernel", "kernel", "rootfs", "rootfs"]);
    fs::set_permissions(&again.initramfs, fs::Permissions::from_mode(0o644)).unwrap();
    fs::File::options().write(true).open(&again.initramfs).unwrap().set_len(10).unwrap();
    let again = ensure();
    assert_eq!(lab.calls().len(), 4);
    assert_eq!((again.kernel_sha256.clone(), again.initramfs_sha256.clone()), digests);

    // Damage that keeps size and time is beyond a quick look; a pull and an inspection find it.
    let times = fs::metadata(&again.rootfs).unwrap().modified().unwrap();
    write_over(&again.rootfs, 3 << 20, b"damage");
    fs::File::options().write(true).open(&again.rootfs).unwrap().set_modified(times).unwrap();
    assert!(!ensure().built);
    assert!(!environments.inspect("debian:12").unwrap().details.unwrap().sound);
    assert!(environments.pull("debian:12", PullOptions::default(), &NoProgress).unwrap().built);
    assert!(environments.inspect("debian:12").unwrap().details.unwrap().sound);
}

#[test]
fn a_broken_manifest_or_link_is_as_good_as_nothing() {
    let lab = Lab::new();
    let environments = lab.environments();
    let installed = environments.ensure("debian:12", &NoProgress).unwrap();
    fs::write(installed.rootfs.with_file_name("manifest.json"), b"{\"format\": 1, \"files\": ").unwrap();
    assert!(environments.ensure("debian:12", &NoProgress).unwrap().built);
    let link = lab.cache().join("kernels/debian-bookworm-amd64/current");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("../../../..", &link).unwrap();
    assert!(environments.ensure("debian:12", &NoProgress).unwrap().built);
    assert!(!environments.ensure("debian:12", &NoProgress).unwrap().built);
}

#[test]
fn a_copied_cache_is_recognised_by_its_digests() {
    let lab = Lab::new();
    lab.environments().ensure("debian:12", &NoProgress).unwrap();
    let home = lab.dir.join("home");
    let copied = Command::new("cp").arg("-r").arg(&home).arg(lab.dir.join("copy")).status().unwrap();
    assert!(copied.success());
    fs::remove_dir_all(&home).unwrap();
    fs::rename(lab.dir.join("copy"), &home).unwrap();
    assert!(!lab.environments().ensure("debian:12", &NoProgress).unwrap().built);
    assert_eq!(lab.calls().len(), 2);
}

#[test]
fn a_changed_definition_is_outdated_and_built_again() {
    let lab = Lab::new();
    let environments = lab.environments();
    let old = environments.ensure("debian:12", &NoProgress).unwrap();
    let catalogue = lab.dir.join("home").join(USER_CATALOGUE);
    let text = "[environments.\"debian:12\"]\ndescription = \"mine\"\nversion = \"2\"\ndistribution = \"debian\"\nsuite \
                = \"bookworm\"\npackages = [\"jq\"]\n";
    fs::write(&catalogue, text).unwrap();
    let listed = environments.list().unwrap();
    assert!(listed[0].outdated && !listed[0].installed);
    let new = environments.ensure("debian:12", &NoProgress).unwrap();
    assert!(new.built && new.version == "2" && new.rootfs != old.rootfs);
    // The old one is in use, and stays until it is not.
    assert!(old.rootfs.exists());
    let path = old.rootfs.clone();
    drop(old);
    eventually(|| environments.prune(false).is_ok() && !path.exists());
    assert!(new.rootfs.exists());
}

#[test]
fn a_refresh_builds_again_and_keeps_what_is_in_use() {
    let lab = Lab::new();
    let environments = lab.environments();
    let old = environments.ensure("debian:12", &NoProgress).unwrap();
    let new = environments.pull("debian:12", PullOptions { refresh: true }, &NoProgress).unwrap();
    assert_ne!(old.rootfs, new.rootfs);
    assert!(old.rootfs.exists() && old.kernel.exists());
    assert_eq!(lab.calls(), ["kernel", "kernel", "rootfs", "rootfs"]);
    assert_eq!(environments.ensure("debian:12", &NoProgress).unwrap().rootfs, new.rootfs);
}

#[test]
fn pruning_spares_what_is_needed_and_what_is_used() {
    let lab = Lab::new();
    let environments = lab.environments();
    let installed = environments.ensure("debian:12", &NoProgress).unwrap();
    assert_eq!(environments.prune(false).unwrap(), PruneReport::default());

    // Another process would hold it like this.
    let held = hold(&installed.lease_paths()).unwrap();
    drop(installed);
    let report = environments.prune(true).unwrap();
    assert_eq!(report.in_use.len(), 3);
    assert_eq!(lab.builds(), 3);
    drop(held);
    let mut freed = 0;
    eventually(|| {
        freed += environments.prune(true).unwrap().freed_bytes;
        lab.builds() == 0
    });
    assert!(freed > 2 << 20, "{freed}");
    assert!(!environments.list().unwrap()[0].installed);
}

#[test]
fn a_kernel_of_the_users_own() {
    let lab = Lab::new();
    let environments = lab.environments();
    let kernel = lab.dir.join("home/my-kernel");
    fs::create_dir_all(kernel.parent().unwrap()).unwrap();
    fs::write(&kernel, kernel::tests::elf(5000)).unwrap();
    let text = "[environments.\"my:1\"]\ndescription = \"mine\"\nversion = \"1\"\ndistribution = \"debian\"\nsuite = \
                \"bookworm\"\nkernel = \"my-kernel\"\n";
    fs::write(lab.dir.join("home").join(USER_CATALOGUE), text).unwrap();
    let installed = environments.ensure("my:1", &NoProgress).unwrap();
    assert_eq!(fs::read(&installed.kernel).unwrap(), kernel::tests::elf(5000));
    assert_eq!(lab.calls(), ["rootfs"]);
    // A changed file is another kernel.
    fs::write(&kernel, kernel::tests::elf(6000)).unwrap();
    let installed = environments.ensure("my:1", &NoProgress).unwrap();
    assert_eq!(fs::metadata(&installed.kernel).unwrap().len(), 6000);
    fs::write(&kernel, b"not a kernel").unwrap();
    let error = environments.ensure("my:1", &NoProgress).unwrap_err();
    assert!(error.to_string().contains("neither a bzImage nor"), "{error}");
    assert_eq!(error.code(), ErrorCode::EnvironmentBuildFailed);
    fs::remove_file(&kernel).unwrap();
    assert_eq!(environments.ensure("my:1", &NoProgress).unwrap_err().code(), ErrorCode::Io);
}

#[test]
fn a_kernel_for_this_time_has_the_modules_of_its_release() {
    let lab = Lab::new();
    let own = lab.environments().ensure("debian:12", &NoProgress).unwrap();
    let kernel = lab.dir.join("my-kernel");
    let with = || lab.environments().with_kernel(kernel.clone()).ensure("debian:12", &NoProgress).unwrap();
    fs::write(&kernel, kernel::tests::elf(5000)).unwrap();
    let other = with();
    assert_eq!((fs::metadata(&other.kernel).unwrap().len(), &other.rootfs), (5000, &own.rootfs));
    assert_ne!(other.initramfs_sha256, own.initramfs_sha256);
    // The stand-in's package is of this release.
    let mut same = kernel::tests::elf(5000);
    same.extend(b"Linux version 1-test (somebody)");
    fs::write(&kernel, kernel::tests::bzimage(&kernel::tests::lz4(&same))).unwrap();
    let same = with();
    assert_eq!(same.initramfs_sha256, own.initramfs_sha256);
    assert_ne!(same.kernel_sha256, own.kernel_sha256);
    // Without the wish nothing has changed.
    assert!(!lab.environments().ensure("debian:12", &NoProgress).unwrap().built);
}

#[test]
fn the_copy_of_a_machine_is_its_own() {
    let lab = Lab::new();
    let installed = lab.environments().ensure("debian:12", &NoProgress).unwrap();
    let copy = lab.dir.join("disk");
    installed.clone_rootfs(&copy, 0).unwrap();
    let (base, disk) = (fs::metadata(&installed.rootfs).unwrap(), fs::metadata(&copy).unwrap());
    assert_eq!(disk.len(), base.len());
    assert_eq!(disk.permissions().mode() & 0o777, 0o600);
    assert!(disk.blocks() <= base.blocks() + 64);
    fs::File::options().write(true).open(&copy).unwrap().write_all_at(b"mine", 0).unwrap();
    assert!(!lab.environments().ensure("debian:12", &NoProgress).unwrap().built);
}

#[test]
#[ignore = "run by `a_full_disk_is_told_and_leaves_nothing` on a small file system"]
fn pull_on_a_small_file_system() {
    let lab = Lab::inherited();
    let home = lab.dir.join("home");
    assert!(
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&home).status().unwrap().success()
    );
    let error = lab.environments().pull("debian:12", PullOptions::default(), &NoProgress).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DiskFull, "{error}");
    assert!(error.to_string().contains("MiB free"), "{error}");
    // The kernel is built beside the root file system, and one that was ready before the disk was full is a whole build.
    assert_eq!((lab.staged(), lab.builds_of(ENVIRONMENTS)), (0, 0));
    // With the check in front it does not even begin.
    let calls = lab.calls().len();
    let mut inner = Arc::into_inner(lab.environments().inner).unwrap();
    inner.check_space = true;
    let checking = Environments { inner: Arc::new(inner) };
    let error = checking.pull("debian:12", PullOptions::default(), &NoProgress).unwrap_err();
    assert!(matches!(error, EnvironmentError::DiskFull { needed: Some(_), free: Some(_), .. }), "{error}");
    assert_eq!(lab.calls().len(), calls);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let lab = Lab::new();
    fs::create_dir(lab.dir.join("home")).unwrap();
    // A mount namespace of its own lets any user mount a small tmpfs.
    let inner = lab.command("pull_on_a_small_file_system");
    let out = Command::new("unshare")
        .args(["--map-root-user", "--mount"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .env(DIR_VAR, &lab.dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let said = format!("{text}{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains("1 passed"), "{said}");
}
