//! The `pyro` binary with a home directory of its own.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A home directory that shares the prepared environments with all other tests
/// and nothing else. Dropping it checks that no process of it is left.
pub struct Home {
    dir: TempDir,
    /// What every command begins with.
    prefix: Vec<String>,
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote to stdout.
    pub stdout: Vec<u8>,
    /// All it wrote to stderr, lossily decoded.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
}

/// A command that was started in the background; killed when dropped.
pub struct Running {
    /// The process, with the pipes that were asked for.
    pub child: Child,
}

/// Returns the binary under test.
///
/// # Panics
///
/// When there is none: `cargo xtask test` builds it and says where it is.
fn pyro_binary() -> PathBuf {
    let path = env::var_os("PYRO_BIN").map_or_else(
        || {
            let test = env::current_exe().expect("a test knows its path");
            test.ancestors().nth(2).expect("tests are in target/<profile>/deps").join("pyro")
        },
        PathBuf::from,
    );
    assert!(path.is_file(), "{} does not exist; run the tests with `cargo xtask test`", path.display());
    path
}

/// Returns the home with the prepared environments.
///
/// # Panics
///
/// When it is not there: `cargo xtask test` prepares it.
fn shared_home() -> PathBuf {
    let home = env::var_os("PYRO_TEST_HOME").map_or_else(
        || {
            let test = env::current_exe().expect("a test knows its path");
            test.ancestors().nth(3).expect("tests are in target/<profile>/deps").join("pyro-home")
        },
        PathBuf::from,
    );
    assert!(home.join("cache").is_dir(), "{} has no cache; run the tests with `cargo xtask test`", home.display());
    home
}

impl Home {
    /// A home with the environments prepared.
    #[must_use]
    pub fn new() -> Self {
        let home = Self::empty();
        symlink(shared_home().join("cache"), home.path().join("cache")).expect("the home is new");
        home
    }

    /// A home with nothing in it.
    #[must_use]
    pub fn empty() -> Self {
        // Short, because socket paths are limited to 107 bytes.
        let dir = tempfile::Builder::new().prefix("pyro-e2e-").tempdir_in("/tmp").expect("/tmp is writable");
        Self { dir, prefix: Vec::new() }
    }

    /// The same home, all of whose commands ask for this engine.
    #[must_use]
    pub fn on_engine(mut self, engine: &str) -> Self {
        self.prefix = vec!["--engine".to_owned(), engine.to_owned()];
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The binary with this home and otherwise a bare environment.
    #[must_use]
    pub fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(pyro_binary());
        command
            .args(&self.prefix)
            .args(args)
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("PYRO_HOME", self.path())
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the binary to its end.
    #[must_use]
    pub fn run(&self, args: &[impl AsRef<OsStr>]) -> Finished {
        self.run_with_input(args, None)
    }

    /// Runs the binary to its end, with `input` on stdin.
    #[must_use]
    pub fn run_with_input(&self, args: &[impl AsRef<OsStr>], input: Option<&[u8]>) -> Finished {
        let begin = Instant::now();
        let mut command = self.command(args);
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().expect("the binary runs");
        let writer = input.map(|bytes| {
            let mut stdin = child.stdin.take().expect("the pipe was asked for");
            let bytes = bytes.to_owned();
            // The command may end without reading it all.
            thread::spawn(move || drop(stdin.write_all(&bytes)))
        });
        let output = child.wait_with_output().expect("the binary can be waited for");
        if let Some(writer) = writer {
            writer.join().expect("writing does not panic");
        }
        Finished {
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            elapsed: begin.elapsed(),
        }
    }

    /// Starts the binary in the background.
    #[must_use]
    pub fn start(&self, args: &[impl AsRef<OsStr>]) -> Running {
        Running { child: self.command(args).spawn().expect("the binary runs") }
    }

    /// The processes that belong to this home: those with its path in their
    /// command line, other than `except`.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        let needle = self.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&needle) {
                found.push((pid, line));
            }
        }
        found
    }

    /// Waits until no process and no run directory is left, for at most `limit`.
    ///
    /// # Panics
    ///
    /// When something is left after that.
    pub fn expect_clean_within(&self, limit: Duration) {
        let begin = Instant::now();
        loop {
            let processes = self.processes();
            let runs: Vec<PathBuf> = fs::read_dir(self.path().join("run"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_dir())
                .collect();
            if processes.is_empty() && runs.is_empty() {
                return;
            }
            assert!(
                begin.elapsed() < limit,
                "left behind after {limit:?}: processes {processes:?}, run directories {runs:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A failed test must not leave a machine running.
        for (pid, _) in self.processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Finished {
    /// Stdout as text.
    ///
    /// # Panics
    ///
    /// When it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is UTF-8")
    }

    /// Stdout as JSON.
    ///
    /// # Panics
    ///
    /// When it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not JSON: {error}: {:?}; stderr: {}", self.text(), self.stderr))
    }

    /// The exit code, `None` after a signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails the test unless the command ended with `code`.
    ///
    /// # Panics
    ///
    /// When it did not.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(
            self.code(),
            Some(code),
            "stdout: {}\nstderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }
}

impl Running {
    /// Sends a signal to the process.
    ///
    /// # Panics
    ///
    /// When it has ended already.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a valid pid");
        rustix::process::kill_process(pid, signal).expect("the process is running");
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it has not ended within `limit`.
    pub fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the process can be waited for") {
                return status;
            }
            assert!(begin.elapsed() < limit, "still running after {limit:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended, which is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
