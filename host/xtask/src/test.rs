//! All tests: what is needed is installed and built, the environment for the
//! end-to-end tests is prepared, and the runner's summaries are added up at the
//! end.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{self, LabOptions};
use crate::shell::{self, Cmd};
use crate::{WHOLE_WORKSPACE, bench, build, examples, fuzz, setup};

/// How long each fuzz target runs: enough to go through what is kept of inputs and a little further.
const FUZZ_SECONDS: u32 = 20;

#[derive(clap::Args)]
pub struct Options {
    /// Run only the tests whose name contains this
    filter: Option<String>,
}

/// Returns the home the tests keep environments in: inside the target directory,
/// so that a test never touches the user's own.
pub fn home(root: &Path) -> PathBuf {
    shell::target_dir(root).join("pyro-home")
}

/// Runs every test of the workspace. Fails when one fails, and when none ran.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    setup::run(root)?;
    build(root)?;
    let home = home(root);
    shell::step("prepare the environment of the end-to-end tests");
    Cmd::new(shell::pyro(root)).args(["env", "pull", "debian:12"]).env("PYRO_HOME", &home).run()?;

    let mut totals = Totals::default();
    let whole = [&["--release"], WHOLE_WORKSPACE].concat();
    shell::step("run all tests");
    let mut sound = cargo_test(root, &home, &whole, &["--no-fail-fast"], options.filter.as_deref(), &[], &mut totals)?;
    shell::step("run the engine's tests on real machines");
    // They wait for each other's processes, so they run one after the other and apart from the rest. `the_killed_process`
    // is what tests kill.
    sound &= cargo_test(
        root,
        &home,
        &whole,
        &[
            "--no-fail-fast",
            "--test",
            "machine",
            "--test",
            "guest",
            "--test",
            "workspaces",
            "--test",
            "kill",
            "--test",
            "it",
        ],
        options.filter.as_deref(),
        &["--ignored", "--test-threads=1", "--skip=the_killed_process"],
        &mut totals,
    )?;
    if options.filter.is_none() {
        // Where a change can be killed between any two of its steps: a build with debug assertions has these points. The
        // example is the tests' VM process.
        shell::cargo(root).args(["build", "--locked", "--package", "pyro-engine", "--example", "machine"]).run()?;
        sound &= cargo_test(
            root,
            &home,
            &["--package", "pyro-engine"],
            &["--test", "kill"],
            Some("that_dies"),
            &["--ignored", "--test-threads=1"],
            &mut totals,
        )?;
    }
    sound &= lab_tests(root, &home, options.filter.as_deref(), &mut totals)?;
    if options.filter.is_none() {
        fuzz::all(root, FUZZ_SECONDS)?;
        if let Some((passed, failed)) = examples::run(root, &home)? {
            totals.passed += passed;
            totals.failed += failed;
        }
    }
    show(&format!("{} passed, {} failed", totals.passed, totals.failed));
    if !sound || totals.failed > 0 {
        bail!("{} tests failed", totals.failed);
    }
    if totals.passed == 0 {
        bail!("no test ran\nhint: `cargo xtask test` without a filter runs all");
    }
    Ok(())
}

/// Runs the tests that need a working KVM in the lab; returns whether they succeeded. A lab that cannot start is an error.
fn lab_tests(root: &Path, home: &Path, filter: Option<&str>, totals: &mut Totals) -> Result<bool> {
    let mut wanted = Vec::new();
    for binary in test_binaries(root, &["lab", "e2e"])? {
        // The lab is not started for a filter that none of its tests has in its name.
        if Cmd::new(&binary).args(["--list", "--ignored"]).args(filter).read()?.contains(": test") {
            wanted.push(binary);
        }
    }
    if wanted.is_empty() {
        return Ok(true);
    }
    shell::step("run the tests of the KVM engine in the lab");
    let [kernel, initramfs, rootfs] = bench::boot_files(root, home)?;
    // What is read often is copied into the lab's memory first.
    let copy = |from: &Path, to: &str| format!("cat '{}' > {to} && chmod 755 {to}\n", from.display());
    let mut script = "set -e\nmkdir /dev/shm/tests\ncd /dev/shm/tests\nexport TMPDIR=/dev/shm\nsound=0\n".to_owned();
    script += &copy(&kernel, "kernel");
    script += &copy(&initramfs, "initramfs");
    script += &copy(&shell::pyro(root), "pyro");
    script += "export PYRO_BIN=$PWD/pyro PYRO_TEST_KERNEL=$PWD/kernel PYRO_TEST_INITRAMFS=$PWD/initramfs\n";
    script += &format!("export PYRO_TEST_ROOTFS='{}' PYRO_TEST_HOME='{}'\n", rootfs.display(), home.display());
    let only = filter.map(|filter| format!("'{filter}'")).unwrap_or_default();
    for (index, binary) in wanted.iter().enumerate() {
        script += &copy(binary, &format!("test-{index}"));
        script += &format!("./test-{index} --ignored --test-threads=1 {only} || sound=1\n");
    }
    script += "exit $sound\n";
    let mut options = LabOptions::new(&shell::target_dir(root), ["sh", "-c", &script].map(str::to_owned).into());
    // Seven minutes on an idle host; a busy one can take three times as long.
    options.timeout = Duration::from_secs(1500);
    let seen = Arc::new(Mutex::new(Totals::default()));
    let code = lab::run_with(&options, Lines { line: Vec::new(), totals: Arc::clone(&seen) })?;
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    totals.passed += seen.passed;
    totals.failed += seen.failed;
    Ok(code == 0)
}

/// Shows lines and adds up the summaries among them.
struct Lines {
    line: Vec<u8>,
    totals: Arc<Mutex<Totals>>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
            self.totals.lock().unwrap_or_else(PoisonError::into_inner).add(&line);
            show(&line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Builds the test programs of these names and returns where they are.
fn test_binaries(root: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let text = shell::cargo(root)
        .args(["test", "--release", "--locked", "--no-run", "--message-format=json"])
        .args(WHOLE_WORKSPACE)
        .args(names.iter().flat_map(|name| ["--test", name]))
        .read()?;
    let mut found = Vec::new();
    for name in names {
        let path = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            let executable = message["executable"].as_str()?.to_owned();
            (message["target"]["name"] == **name && message["target"]["kind"][0] == "test").then_some(executable)
        });
        found.push(PathBuf::from(path.with_context(|| format!("cargo built no test called {name}"))?));
    }
    Ok(found)
}

/// Runs `cargo test`, shows what it prints and adds up its summaries; returns whether it succeeded.
fn cargo_test(
    root: &Path,
    home: &Path,
    crates: &[&str],
    what: &[&str],
    filter: Option<&str>,
    how: &[&str],
    totals: &mut Totals,
) -> Result<bool> {
    let mut command = shell::cargo(root)
        .args(["test", "--locked"])
        .args(crates)
        .args(what)
        .args(filter)
        .arg("--")
        .args(how)
        .env("PYRO_BIN", shell::pyro(root))
        .env("PYRO_VMM", shell::pyro(root))
        .env("PYRO_TEST_HOME", home)
        .env("PYRO_AGENT", shell::target_dir(root).join("embed/x86_64-unknown-linux-musl/guest/pyro-agent"))
        .into_command();
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run `cargo test`")?;
    let stdout = child.stdout.take().context("the pipe was asked for")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what `cargo test` prints")?;
        totals.add(&line);
        show(&line);
    }
    Ok(child.wait().context("cannot wait for `cargo test`")?.success())
}

#[expect(clippy::print_stdout, reason = "the test runner's lines are this task's output")]
fn show(line: &str) {
    println!("{line}");
}

#[derive(Default)]
struct Totals {
    passed: u64,
    failed: u64,
}

impl Totals {
    /// Adds a line of the form `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let Some((_, counts)) = rest.split_once(". ") else { return };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn adds_up_the_runners_summaries() {
        let mut totals = Totals::default();
        totals.add("running 3 tests");
        totals.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        totals.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        assert_eq!((totals.passed, totals.failed), (4, 2));
    }
}
