//! Getting a root file system and a kernel package from a Debian mirror, through `mmdebstrap`.
//!
//! The root file system comes out of `mmdebstrap` as a tar on its standard output and goes straight into the ext4
//! image. The kernel package is fetched by a second, empty `mmdebstrap` at the same time: its hook runs `apt-get
//! download` with the very sources, keys and user that the first one has, whatever this host and user are.
//!
//! Deliberately absent: resolving, verifying and unpacking packages. apt and dpkg do that.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use super::{
    catalogue::Definition,
    error::EnvironmentError,
    image::{self, Extra, ImageError, ImageSpec, ImageStats},
    process::{self, Finished, RunError},
    sources::Source,
    stages::Stages,
};

/// The program that everything here stands on.
pub(crate) const PROGRAM: &str = "mmdebstrap";
/// Debian's name of the newest kernel of a suite for virtual machines.
pub(crate) const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Raised when the same definition would give another root file system.
pub(crate) const REVISION: u32 = 2;

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

/// Makes a login shell start no program of its own. Every command line runs in one, and Debian's profile asks `id` for the
/// user twice and lets `mesg` look for a terminal: together they take several times as long as the shell does. `-O /` says
/// the same as the first, because the root directory is root's.
const PLAIN_LOGIN: &str = "\
    set -eu; cd \"$1\"; \
    [ ! -f etc/profile ] || sed -i 's,\\[ \"$(id -u)\" -eq 0 \\],[ -O / ],' etc/profile; \
    [ ! -f root/.profile ] || sed -i '/^mesg n/d' root/.profile";

/// Says of a path of the tar what [`DPKG_CONFIG`] says.
fn is_left_out(path: &str) -> bool {
    let Some(path) = path.strip_prefix("/usr/share/") else {
        return false;
    };
    match path.split_once('/') {
        Some(("man" | "info" | "groff" | "lintian", _)) => true,
        Some(("locale", rest)) => rest != "locale.alias",
        // A package's directory comes with its copyright file; one that is a link to another's is not followed.
        Some(("doc", rest)) => !rest.ends_with("/copyright"),
        _ => false,
    }
}

const APT_OPTIONS: [&str; 3] =
    ["Acquire::Languages \"none\"", "Acquire::Retries \"3\"", "APT::Install-Recommends \"0\""];
/// Where Debian's mmdebstrap keeps the hook that merges `/usr` before the first package is unpacked.
const MERGED_USR_HOOK: &str = "/usr/share/mmdebstrap/hooks/merged-usr";

/// Runs a program (`$2`, with the rest as its arguments) with `$TMPDIR` in at most `$1` bytes of memory. apt and dpkg
/// wait for the disk hundreds of times, each time for everything that anyone on the host is writing; minutes on a busy
/// one. Where mounting is not allowed, the directory is what it was.
const IN_MEMORY: &str = r#"
size=$1; shift
if unshare --mount true 2>/dev/null; then
    exec unshare --mount sh -c 'mount -t tmpfs -o "mode=0755,size=$1" none "$TMPDIR" 2>/dev/null; shift; exec "$@"' sh "$size" "$@"
fi
exec "$@"
"#;

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

    /// The program and its first arguments. With `memory`, its temporary directory is a file system in memory of at
    /// most that many bytes, which only the program sees and which goes with it.
    fn command(&self, memory: Option<u64>) -> std::process::Command {
        let mut command = match memory {
            Some(bytes) => {
                let mut command = process::command("sh");
                command.args(["-c", IN_MEMORY, "sh", &bytes.to_string()]);
                command.arg(self.program);
                command
            }
            None => process::command(self.program),
        };
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

    /// Builds the root file system as an ext4 image at `image`. With `memory`, the chroot is kept in up to that many
    /// bytes of memory where this user may do that.
    pub(crate) fn rootfs(
        &self,
        image: &Path,
        memory: Option<u64>,
        report: Report<'_>,
        cancelled: Cancelled<'_>,
    ) -> Result<ImageStats, EnvironmentError> {
        let mut command = self.command(memory);
        command.args(["--variant=minbase", "--format=tar"]);
        command.arg("--dpkgopt=force-unsafe-io");
        command.arg(format!("--customize-hook={PLAIN_LOGIN}"));
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
            let made = writing
                .join()
                .unwrap_or_else(|_| Err(ImageError::Io(std::io::Error::other("the image writer panicked"))));
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
            // What a shell says of a program that it does not find.
            (Ok(done), _) if memory.is_some() && done.status.code() == Some(127) => {
                Err(RunError::NotFound.at(PROGRAM, self.name()))
            }
            (Ok(done), _) => Err(self.failed("installing packages", &done)),
            (Err(error), _) => Err(error.at(PROGRAM, self.name())),
        }
    }

    /// Fetches the suite's kernel package for virtual machines into `into` and returns its path.
    pub(crate) fn kernel_package(&self, into: &Path, cancelled: Cancelled<'_>) -> Result<PathBuf, EnvironmentError> {
        let mut command = self.command(None);
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
        let quoted = into.to_str().filter(|text| !text.contains(['\'', '\n'])).ok_or_else(|| EnvironmentError::Io {
            action: "pass on the path",
            path: into.to_owned(),
            source: std::io::ErrorKind::InvalidFilename.into(),
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
        (
            Some("check this host's network and its apt sources, or name a `mirror` in the user's environments.toml"),
            true,
        )
    } else if said(&["Unable to locate package", "has no installation candidate", "Couldn't find any package"]) {
        (Some("the suite has no such package; correct `packages` in environments.toml"), false)
    } else if said(&["NO_PUBKEY", "is not signed", "couldn't be verified", "keyring"]) {
        (Some("`apt-get install debian-archive-keyring` brings Debian's keys"), false)
    } else if said(&["newuidmap", "newgidmap", "/etc/subuid", "/etc/subgid", "user namespace", "unshare"]) {
        (
            Some("`apt-get install uidmap`, and give this user a range in /etc/subuid and /etc/subgid; or run as root"),
            false,
        )
    } else {
        (None, false)
    };
    EnvironmentError::Build {
        environment: environment.to_owned(),
        message: format!("{doing} ended with {how}"),
        // mmdebstrap goes on to tell how it cleans up.
        tail: tail.iter().filter(|line| !line.starts_with("I: ")).cloned().collect(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(tail: &[&str]) -> EnvironmentError {
        let tail: Vec<_> = tail.iter().map(|line| (*line).to_owned()).collect();
        explain("debian:12", "installing packages", "exit code 25".to_owned(), &tail, Path::new("/tmp"))
    }

    #[test]
    fn failures_are_told_apart_by_what_was_said() {
        let network =
            explained(&["Err:1 http://m.example bookworm InRelease", "  Temporary failure resolving 'm.example'"]);
        assert!(network.retryable() && network.hint().unwrap().contains("network"));
        let text = network.to_string();
        assert!(text.starts_with("building `debian:12` failed: installing packages ended with exit code 25"), "{text}");
        assert!(text.ends_with("Temporary failure resolving 'm.example'"), "{text}");
        let package = explained(&["E: Unable to locate package gti", "I: removing tempdir /x"]);
        assert!(package.to_string().ends_with("package gti"), "{package}");
        assert!(!package.retryable() && package.hint().unwrap().contains("packages"));
        assert!(explained(&["W: GPG error: NO_PUBKEY 6ED0E7B8"]).hint().unwrap().contains("keyring"));
        assert!(explained(&["E: newuidmap failed"]).hint().unwrap().contains("uidmap"));
        assert_eq!(explained(&["dpkg: error: No space left on device"]).code().as_str(), "disk_full");
        assert_eq!(explained(&["E: strange"]).hint(), None);
    }

    #[test]
    fn a_login_shell_starts_no_program() {
        let root = tempfile::tempdir().unwrap();
        let profile = root.path().join("etc/profile");
        let dot_profile = root.path().join("root/.profile");
        std::fs::create_dir_all(profile.parent().unwrap()).unwrap();
        std::fs::create_dir_all(dot_profile.parent().unwrap()).unwrap();
        // The lines of Debian's files that matter here.
        std::fs::write(
            &profile,
            "if [ \"$(id -u)\" -eq 0 ]; then\n  A=root\nelse\n  A=user\nfi\n\
             if [ x ]; then\n    if [ \"$(id -u)\" -eq 0 ]; then\n      PS1='# '\n    fi\nfi\n",
        )
        .unwrap();
        std::fs::write(&dot_profile, "B=1\nmesg n 2> /dev/null || true\n").unwrap();
        let ran = std::process::Command::new("sh").args(["-c", PLAIN_LOGIN, "sh"]).arg(root.path()).status().unwrap();
        assert!(ran.success());
        let (profile, dot_profile) = (std::fs::read_to_string(profile), std::fs::read_to_string(dot_profile));
        let (profile, dot_profile) = (profile.unwrap(), dot_profile.unwrap());
        assert!(!profile.contains("id -u") && profile.matches("[ -O / ]").count() == 2, "{profile}");
        assert_eq!(dot_profile, "B=1\n");
        let said = std::process::Command::new("sh").args(["-c", &format!("{profile}\necho $A")]).output().unwrap();
        let expected = if rustix::process::geteuid().is_root() { "root\n" } else { "user\n" };
        assert_eq!(String::from_utf8_lossy(&said.stdout), expected);
        // A root that lacks the files is left as it is.
        let bare = tempfile::tempdir().unwrap();
        let ran = std::process::Command::new("sh").args(["-c", PLAIN_LOGIN, "sh"]).arg(bare.path()).status().unwrap();
        assert!(ran.success());
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
}
