//! Running commands: what is run is shown, and a failure says what failed.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Returns the root of the repository.
pub fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .context("host/xtask is two levels below the root")
}

/// Says which step begins.
pub fn step(what: &str) {
    eprintln!("==> {what}");
}

/// A cargo command, run at the root of the repository.
pub fn cargo(root: &Path) -> Cmd {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Cmd::new(program).current_dir(root)
}

/// Returns the path of the built binary.
pub fn pyro(root: &Path) -> PathBuf {
    target_dir(root).join("release/pyro")
}

/// Returns cargo's target directory.
pub fn target_dir(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// A command under construction. A thin layer over [`Command`] that shows what
/// it runs and turns a failure into an error with the command line.
pub struct Cmd(Command);

impl Cmd {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self(Command::new(program))
    }

    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.0.current_dir(dir);
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.0.args(args);
        self
    }

    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.0.env(key, value);
        self
    }

    /// Runs the command with this process's streams.
    pub fn run(mut self) -> Result<()> {
        let line = self.line();
        eprintln!("    $ {line}");
        let status = self.0.status().with_context(|| format!("cannot run `{line}`"))?;
        if !status.success() {
            bail!("`{line}` failed: {status}");
        }
        Ok(())
    }

    /// Runs the command and returns what it wrote to stdout; stderr passes
    /// through.
    pub fn read(mut self) -> Result<String> {
        let line = self.line();
        let output = self
            .0
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run `{line}`"))?;
        if !output.status.success() {
            bail!("`{line}` failed: {}", output.status);
        }
        String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed something that is not UTF-8"))
    }

    /// Hands over the command, for a caller that needs its pipes.
    pub fn into_command(self) -> Command {
        self.0
    }

    fn line(&self) -> String {
        let mut line =
            Path::new(self.0.get_program()).file_name().unwrap_or(self.0.get_program()).to_string_lossy().into_owned();
        for arg in self.0.get_args() {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }
}
