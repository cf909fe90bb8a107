//! Getting a root file system and a kernel package from a Debian mirror, through `mmdebstrap`.
//!
//! The root file system comes out of `mmdebstrap` as a tar on its standard output and goes straight into the ext4
//! image. The kernel package is fetched by a second, empty `mmdebstrap` at the same time: its hook runs `apt-get
//! download` with the very sources, keys and user that the first one has, whatever this host and user are.
//!
//! Deliberately absent: resolving, verifying and unpacking packages. apt and dpkg do that.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use super::{
    catalogue::Definition,
    error::EnvironmentError,
    image::{self, Extra, ImageError, ImageSpec, ImageStats},
    process::{self, Finished},
    sources::Source,
};

/// The program that everything here stands on.
pub(crate) const PROGRAM: &str = "mmdebstrap";
/// Debian's name of the newest kernel of a suite for virtual machines.
pub(crate) const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Raised when the same definition would give another root file system.
pub(crate) const REVISION: u32 = 1;

/// Silence is broken after this long.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// What dpkg leaves out and does inside the image, as its configuration says it. Documentation and translations are
/// half of a small Debian; the copyright files stay, as their licences ask.
///
/// mmdebstrap is not told: it would run a Python program for each essential package, which takes most of a minute. The
/// image leaves the same files out, see [`is_left_out`].
const DPKG_CONFIG: &str = "\
# Written with the image.
force-unsafe-io
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/groff/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
";

/// Says of a path of the tar what [`DPKG_CONFIG`] says.
fn is_left_out(path: &str) -> bool {
    let Some(path) = path.strip_prefix("/usr/share/") else { return false };
    match path.split_once('/') {
        Some(("man" | "info" | "groff" | "lintian", _)) => true,
        Some(("locale", rest)) => rest != "locale.alias",
        // A package's directory comes with its copyright file; one that is a link to another's is not followed.
        Some(("doc", rest)) => !rest.ends_with("/copyright"),
        _ => false,
    }
}

const APT_OPTIONS: [&str; 3] = ["Acquire::Languages \"none\"", "Acquire::Retries \"3\"", "APT::Install-Recommends \"0\""];
/// Where Debian's mmdebstrap keeps the hook that merges `/usr` before the first package is unpacked.
const MERGED_USR_HOOK: &str = "/usr/share/mmdebstrap/hooks/merged-usr";

/// Directories that the image has empty.
const EMPTIED: [&str; 9] = [
    "/dev",
    "/etc/apt/sources.list.d",
    "/proc",
    "/run",
    "/sys",
    "/tmp",
    "/var/cache/apt/archives",
    "/var/lib/apt/lists",
    "/var/log",
];

/// One build: what, from where, and where it may keep files.
pub(crate) struct Bootstrap<'a> {
    pub(crate) definition: &'a Definition,
    pub(crate) sources: &'a [Source],
    /// An existing directory for temporary files.
    pub(crate) work: &'a Path,
    /// [`PROGRAM`], or the path of what stands for it.
    pub(crate) program: &'a Path,
}

/// Called with a message and the fraction done, 0 to 1.
pub(crate) type Report<'a> = &'a (dyn Fn(&str, f64) + Sync);
/// Asked whether to stop.
pub(crate) type Cancelled<'a> = &'a (dyn Fn() -> bool + Sync);

impl Bootstrap<'_> {
    fn name(&self) -> &str {
        &self.definition.name
    }

    fn command(&self) -> std::process::Command {
        let mut command = process::command(self.program);
        command.env("TMPDIR", self.work).current_dir("/");
        command.args(["--verbose", "--components=main", "--architectures=amd64"]);
        for option in APT_OPTIONS {
            command.arg(format!("--aptopt={option}"));
        }
        command
    }

    /// Suite, target and where packages come from: the last arguments.
    fn finish(&self, command: &mut std::process::Command, target: &str) {
        command.args([&self.definition.suite, target]);
        if let Some(mirror) = &self.definition.mirror {
            command.arg(mirror);
        } else {
            command.args(self.sources.iter().map(Source::line));
        }
    }

    /// Builds the root file system as an ext4 image at `image`.
    pub(crate) fn rootfs(
        &self,
        image: &Path,
        report: Report<'_>,
        cancelled: Cancelled<'_>,
    ) -> Result<ImageStats, EnvironmentError> {
        let mut command = self.command();
        command.args(["--variant=minbase", "--format=tar"]);
        command.arg("--dpkgopt=force-unsafe-io");
        let mut packages: Vec<&str> = self.definition.packages.iter().map(String::as_str).collect();
        // Without this Debian 12 installs a package that merges /usr afterwards, and all of Perl for it.
        if self.definition.suite == "bookworm" && Path::new(MERGED_USR_HOOK).is_dir() {
            command.arg(format!("--hook-dir={MERGED_USR_HOOK}"));
            packages.push("usr-is-merged");
        }
        if !packages.is_empty() {
            command.arg(format!("--include={}", packages.join(",")));
        }
        self.finish(&mut command, "-");

        let (tar, writer) = std::io::pipe().map_err(|e| EnvironmentError::io("open a pipe for", PROGRAM, e))?;
        command.stdout(Stdio::from(writer));
        let extras = extras(self);
        let spec = ImageSpec {
            size: self.definition.disk_mib << 20,
            extras: &extras,
            emptied: EMPTIED.as_slice(),
            left_out: is_left_out,
        };
        let state = std::sync::Mutex::new(Stages::default());
        let lock = || state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let stopped = std::sync::atomic::AtomicBool::new(false);
        let (made, ran) = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut advance = |bytes| {
                    lock().image_bytes = bytes;
                    !cancelled()
                };
                let made = image::write_image(tar, image, &spec, &mut advance);
                // A broken tar is mmdebstrap's own failure, and it is about to say why.
                let ours = matches!(&made, Err(error) if !matches!(error, ImageError::Tar(_)));
                stopped.store(ours, std::sync::atomic::Ordering::Relaxed);
                made
            });
            let ran = process::run_with_stdout(
                command,
                &|| cancelled() || stopped.load(std::sync::atomic::Ordering::Relaxed),
                |line| lock().line(line, report),
                || lock().tick(report),
            );
            let made = writing.join().unwrap_or_else(|_| {
                Err(ImageError::Io(std::io::Error::other("the image writer panicked")))
            });
            (made, ran)
        });
        if cancelled() {
            return Err(EnvironmentError::Cancelled(format!("building `{}`", self.name())));
        }
        let unwritable = |error: ImageError| EnvironmentError::Build {
            environment: self.name().to_owned(),
            message: format!("the image could not be written: {error}"),
            tail: Vec::new(),
            hint: None,
            retryable: false,
        };
        match (ran, made) {
            // The writer's reason stands behind everything that mmdebstrap says about a closed pipe.
            (_, Err(ImageError::Io(error))) => Err(EnvironmentError::io("write", image, error)),
            (_, Err(error)) if !matches!(error, ImageError::Tar(_)) => Err(unwritable(error)),
            (Ok(done), made) if done.status.success() => made.map_err(unwritable),
            (Ok(done), _) => Err(self.failed("installing packages", &done)),
            (Err(error), _) => Err(error.at(PROGRAM, self.name())),
        }
    }

    /// Fetches the suite's kernel package for virtual machines into `into` and returns its path.
    pub(crate) fn kernel_package(
        &self,
        into: &Path,
        cancelled: Cancelled<'_>,
    ) -> Result<PathBuf, EnvironmentError> {
        let mut command = self.command();
        command.args(["--variant=custom", "--format=null"]);
        // `$1` is the chroot. The dependency package names the kernel of the day.
        command.arg(format!(
            "--customize-hook=set -eu; mkdir \"$1/pyro-kernel\"; cd \"$1/pyro-kernel\"; \
             export APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\"; \
             package=$(apt-cache depends --no-recommends --no-suggests {KERNEL_PACKAGE} \
             | sed -n 's/^ *Depends: *\\(linux-image-[^ ]*\\)$/\\1/p' | head -n 1); \
             [ -n \"$package\" ] || {{ echo 'E: {KERNEL_PACKAGE} names no kernel' >&2; exit 1; }}; \
             apt-get download \"$package\""
        ));
        let quoted = into.to_str().filter(|text| !text.contains(['\'', '\n'])).ok_or_else(|| {
            EnvironmentError::Io {
                action: "pass on the path",
                path: into.to_owned(),
                source: std::io::ErrorKind::InvalidFilename.into(),
            }
        })?;
        command.arg(format!("--customize-hook=copy-out /pyro-kernel '{quoted}'"));
        self.finish(&mut command, "/dev/null");
        let done = process::run(command, cancelled, |_| {}, || {}).map_err(|e| e.at(PROGRAM, self.name()))?;
        if !done.status.success() {
            return Err(self.failed("fetching the kernel package", &done));
        }
        let dir = into.join("pyro-kernel");
        std::fs::read_dir(&dir)
            .map_err(|e| EnvironmentError::io("read", &dir, e))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| self.failed("fetching the kernel package", &done))
    }

    fn failed(&self, doing: &str, done: &Finished) -> EnvironmentError {
        explain(self.name(), doing, done.how(), &done.tail, self.work)
    }
}

/// Makes an error of what a failed mmdebstrap said last.
fn explain(environment: &str, doing: &str, how: String, tail: &[String], work: &Path) -> EnvironmentError {
    let said = |needles: &[&str]| tail.iter().any(|line| needles.iter().any(|needle| line.contains(needle)));
    if said(&["No space left on device", "Disk quota exceeded"]) {
        return EnvironmentError::DiskFull {
            path: work.to_owned(),
            needed: None,
            free: super::space::free_bytes(work).ok(),
        };
    }
    let (hint, retryable) = if said(&[
        "Temporary failure resolving",
        "Could not resolve",
        "Could not connect",
        "Connection failed",
        "connection timed out",
        "Unable to connect",
        "Failed to fetch",
        "Network is unreachable",
    ]) {
        (Some("check this host's network and its apt sources, or name a `mirror` in the user's environments.toml"), true)
    } else if said(&["Unable to locate package", "has no installation candidate", "Couldn't find any package"]) {
        (Some("the suite has no such package; correct `packages` in environments.toml"), false)
    } else if said(&["NO_PUBKEY", "is not signed", "couldn't be verified", "keyring"]) {
        (Some("`apt-get install debian-archive-keyring` brings Debian's keys"), false)
    } else if said(&["newuidmap", "newgidmap", "/etc/subuid", "/etc/subgid", "user namespace", "unshare"]) {
        (Some("`apt-get install uidmap`, and give this user a range in /etc/subuid and /etc/subgid; or run as root"), false)
    } else {
        (None, false)
    };
    EnvironmentError::Build {
        environment: environment.to_owned(),
        message: format!("{doing} ended with {how}"),
        tail: tail.to_vec(),
        hint: hint.map(str::to_owned),
        retryable,
    }
}

fn extras(build: &Bootstrap<'_>) -> Vec<Extra> {
    let sources = match &build.definition.mirror {
        Some(mirror) => {
            vec![Source { suite: build.definition.suite.clone(), uri: mirror.clone(), signed_by: None }]
        }
        None => build.sources.to_vec(),
    };
    let mut out = vec![
        Extra::File("/etc/hostname", 0o644, "pyro\n".to_owned()),
        Extra::File(
            "/etc/hosts",
            0o644,
            "127.0.0.1 localhost pyro\n::1 localhost ip6-localhost ip6-loopback\n".to_owned(),
        ),
        // Empty: there is no network, and the host's resolvers are the host's business.
        Extra::File("/etc/resolv.conf", 0o644, String::new()),
        // Empty: filled at boot, or every machine would be the same one.
        Extra::File("/etc/machine-id", 0o444, String::new()),
        Extra::File("/etc/dpkg/dpkg.cfg.d/99mmdebstrap", 0o644, DPKG_CONFIG.to_owned()),
        Extra::Dir("/root", 0o700),
        Extra::Dir("/workspace", 0o755),
        Extra::Dir("/tmp", 0o1777),
        Extra::Dir("/var/cache/apt/archives/partial", 0o755),
        Extra::Dir("/var/lib/apt/lists/partial", 0o755),
        Extra::Dir("/var/log/apt", 0o755),
        // Some packages' scripts put links there although the pages themselves are left out.
        Extra::Dir("/usr/share/man/man1", 0o755),
        Extra::Dir("/usr/share/man/man7", 0o755),
        Extra::Dir("/usr/share/man/man8", 0o755),
    ];
    if !sources.is_empty() {
        let text = sources.iter().map(|source| format!("{}\n", source.public_line())).collect();
        out.push(Extra::File("/etc/apt/sources.list", 0o644, text));
    }
    out
}

/// How far mmdebstrap is, read from what it, apt and dpkg print.
#[derive(Debug)]
struct Stages {
    /// Where the current stage begins and ends, as fractions of the whole.
    from: f64,
    to: f64,
    message: String,
    /// Packages of the current stage; each is unpacked and set up.
    packages: f64,
    steps: f64,
    /// What apt said the packages take, over both of its runs.
    installed_bytes: f64,
    image_bytes: u64,
    imaging: bool,
    done: f64,
    began: Instant,
    reported: Option<Instant>,
}

impl Default for Stages {
    fn default() -> Self {
        Self {
            from: 0.0,
            to: 0.02,
            message: "starting mmdebstrap".to_owned(),
            packages: 0.0,
            steps: 0.0,
            installed_bytes: 0.0,
            image_bytes: 0,
            imaging: false,
            done: 0.0,
            began: Instant::now(),
            reported: None,
        }
    }
}

/// mmdebstrap's own lines that begin a stage, the share of the time that is over when it ends, and the words for it.
/// Shares were measured with `debian:12`.
const STAGES: [(&str, f64, &str); 8] = [
    ("I: running apt-get update", 0.10, "fetching package lists"),
    ("I: downloading packages with apt", 0.18, "downloading essential packages"),
    ("I: extracting archives", 0.24, "extracting essential packages"),
    ("I: installing essential packages", 0.50, "installing essential packages"),
    ("I: installing remaining packages", 0.88, "installing packages"),
    ("I: cleaning package lists", 0.90, "cleaning up"),
    ("I: creating tarball", 0.99, "writing the disk image"),
    ("I: removing tempdir", 1.0, "removing temporary files"),
];

impl Stages {
    fn line(&mut self, line: &str, report: Report<'_>) {
        if let Some((_, to, words)) = STAGES.iter().find(|(start, ..)| line.starts_with(start)) {
            self.from = self.to.max(self.done);
            self.to = to.max(self.from);
            self.message = (*words).to_owned();
            self.steps = 0.0;
            self.imaging = line.starts_with("I: creating tarball");
            self.report(report);
        } else if let Some(count) = newly_installed(line) {
            self.packages = count;
            self.steps = 0.0;
        } else if let Some(bytes) = disk_space(line) {
            self.installed_bytes += bytes;
        } else if let Some(rest) = line.strip_prefix("Get:") {
            if let Some(package) = rest.split_whitespace().nth(4) {
                self.advance(0.3, format!("downloading {package}"), report);
            }
        } else if let Some(rest) = line.strip_prefix("Unpacking ") {
            self.advance(0.5, format!("unpacking {}", first_word(rest)), report);
        } else if let Some(rest) = line.strip_prefix("Setting up ") {
            self.advance(0.5, format!("setting up {}", first_word(rest)), report);
        }
    }

    fn advance(&mut self, step: f64, message: String, report: Report<'_>) {
        self.steps += step;
        self.message = message;
        // Hundreds of packages a second would be noise.
        if self.reported.is_none_or(|at| at.elapsed() >= Duration::from_millis(200)) {
            self.report(report);
        }
    }

    fn tick(&mut self, report: Report<'_>) {
        if self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            self.report(report);
        }
    }

    fn report(&mut self, report: Report<'_>) {
        let within = if self.imaging {
            #[expect(clippy::cast_precision_loss, reason = "a share of progress")]
            let bytes = self.image_bytes as f64;
            if self.installed_bytes > 0.0 { bytes / self.installed_bytes } else { 0.0 }
        } else if self.packages > 0.0 {
            self.steps / self.packages
        } else {
            0.0
        };
        self.done = self.done.max(self.from + (self.to - self.from) * within.clamp(0.0, 1.0)).min(1.0);
        self.reported = Some(Instant::now());
        report(&format!("{} ({} s)", self.message, self.began.elapsed().as_secs()), self.done);
    }
}

fn first_word(text: &str) -> &str {
    text.split([' ', ':']).next().unwrap_or(text)
}

/// `0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.`
fn newly_installed(line: &str) -> Option<f64> {
    let words: VecDeque<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "newly")?;
    (words.get(at + 1)?.starts_with("installed")).then(|| words.get(at.checked_sub(1)?)?.parse().ok())?
}

/// `After this operation, 139 MB of additional disk space will be used.`
fn disk_space(line: &str) -> Option<f64> {
    let mut words = line.strip_prefix("After this operation, ")?.split_whitespace();
    let number: f64 = words.next()?.replace(',', "").parse().ok()?;
    let unit = match words.next()? {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    Some(number * unit)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn explained(tail: &[&str]) -> EnvironmentError {
        let tail: Vec<_> = tail.iter().map(|line| (*line).to_owned()).collect();
        explain("debian:12", "installing packages", "exit code 25".to_owned(), &tail, Path::new("/tmp"))
    }

    #[test]
    fn failures_are_told_apart_by_what_was_said() {
        let network = explained(&["Err:1 http://m.example bookworm InRelease", "  Temporary failure resolving 'm.example'"]);
        assert!(network.retryable() && network.hint().unwrap().contains("network"));
        let text = network.to_string();
        assert!(text.starts_with("building `debian:12` failed: installing packages ended with exit code 25"), "{text}");
        assert!(text.ends_with("Temporary failure resolving 'm.example'"), "{text}");
        let package = explained(&["E: Unable to locate package gti"]);
        assert!(!package.retryable() && package.hint().unwrap().contains("packages"));
        assert!(explained(&["W: GPG error: NO_PUBKEY 6ED0E7B8"]).hint().unwrap().contains("keyring"));
        assert!(explained(&["E: newuidmap failed"]).hint().unwrap().contains("uidmap"));
        assert_eq!(explained(&["dpkg: error: No space left on device"]).code().as_str(), "disk_full");
        assert_eq!(explained(&["E: strange"]).hint(), None);
    }

    #[test]
    fn progress_rises_to_the_end_and_says_what_happens() {
        let seen = Mutex::new(Vec::new());
        let report = |message: &str, done: f64| seen.lock().unwrap().push((message.to_owned(), done));
        let mut stages = Stages::default();
        for line in [
            "I: running apt-get update...",
            "Get:1 http://m.example bookworm InRelease [151 kB]",
            "I: downloading packages with apt...",
            "0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.",
            "After this operation, 139 MB of additional disk space will be used.",
            "Get:1 http://m.example bookworm/main amd64 libc6 amd64 2.36 [2759 kB]",
            "I: extracting archives...",
            "I: installing essential packages...",
            "Unpacking libc6:amd64 (2.36-9) ...",
            "Setting up libc6:amd64 (2.36-9) ...",
            "I: installing remaining packages inside the chroot...",
            "0 upgraded, 52 newly installed, 0 to remove and 0 not upgraded.",
            "I: cleaning package lists and apt cache...",
            "I: creating tarball...",
        ] {
            stages.line(line, &report);
            stages.reported = None;
        }
        assert_eq!(stages.packages, 52.0);
        stages.image_bytes = 70_000_000;
        stages.tick(&report);
        stages.line("I: removing tempdir /x...", &report);
        let seen = seen.into_inner().unwrap();
        assert!(seen.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{seen:?}");
        assert!(seen.iter().any(|(message, _)| message.starts_with("unpacking libc6 ")), "{seen:?}");
        assert!(seen.iter().any(|(message, _)| message.starts_with("downloading libc6 ")), "{seen:?}");
        assert!(seen.last().unwrap().1 > 0.98);
    }

    #[test]
    fn a_silent_program_is_reported_every_few_seconds() {
        let count = Mutex::new(0);
        let report = |_: &str, _: f64| *count.lock().unwrap() += 1;
        let mut stages = Stages::default();
        stages.tick(&report);
        stages.tick(&report);
        assert_eq!(*count.lock().unwrap(), 1);
        stages.reported = Instant::now().checked_sub(REPORT_EVERY);
        stages.tick(&report);
        assert_eq!(*count.lock().unwrap(), 2);
    }

    #[test]
    fn documentation_is_left_out_and_licences_stay() {
        for path in [
            "/usr/share/man/man1",
            "/usr/share/man/man1/ls.1.gz",
            "/usr/share/doc/git",
            "/usr/share/doc/git/README",
            "/usr/share/locale/de/LC_MESSAGES/git.mo",
            "/usr/share/info/dir",
        ] {
            assert!(is_left_out(path), "{path}");
        }
        for path in [
            "/usr/share/man",
            "/usr/share/doc",
            "/usr/share/doc/git/copyright",
            "/usr/share/locale/locale.alias",
            "/usr/share/python3/x",
            "/usr/share/manual/x",
            "/home/usr/share/man/x",
            "/usr/bin/man",
        ] {
            assert!(!is_left_out(path), "{path}");
        }
    }

    #[test]
    fn figures_of_apt() {
        assert_eq!(newly_installed("1 upgraded, 12 newly installed, 0 to remove"), Some(12.0));
        assert_eq!(newly_installed("newly installed"), None);
        assert_eq!(disk_space("After this operation, 1,024 kB of additional disk space will be used."), Some(1_024_000.0));
        assert_eq!(disk_space("After this operation, x"), None);
    }
}
