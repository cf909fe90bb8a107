//! All tests: what is needed is installed and built, the environment for the
//! end-to-end tests is prepared, and the runner's summaries are added up at the
//! end.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{self, LabEnd, LabOptions};
use crate::shell::{self, Cmd};
use crate::{WHOLE_WORKSPACE, bench, build, examples, fuzz, setup};

/// How long each fuzz target runs: enough to go through what is kept of inputs and a little further.
const FUZZ_SECONDS: u32 = 20;

/// How often the lab is booted when it stands still.
const LAB_BOOTS: u32 = 3;

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
    if totals.failed > 0 {
        bail!("{} tests failed", totals.failed);
    }
    if !sound {
        bail!("a run of tests ended without all of its results, see above");
    }
    if totals.passed == 0 {
        bail!("no test ran\nhint: `cargo xtask test` without a filter runs all");
    }
    Ok(())
}

/// Runs the tests that need a working KVM in the lab; returns whether they succeeded. A lab that cannot start is an error.
///
/// A lab that stands still, which is no test's fault, is booted again for the tests that have not ended.
fn lab_tests(root: &Path, home: &Path, filter: Option<&str>, totals: &mut Totals) -> Result<bool> {
    let mut programs = Vec::new();
    for binary in test_binaries(root, &["lab", "e2e"])? {
        let list = Cmd::new(&binary).args(["--list", "--ignored"]).args(filter).read()?;
        let tests = list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
        programs.push(LabProgram { binary, tests });
    }
    // The lab is not started for a filter that none of its tests has in its name.
    if programs.iter().all(|program| program.tests.is_empty()) {
        return Ok(true);
    }
    let files = bench::boot_files(root, home)?;
    // Seven minutes on an idle host; a busy one can take three times as long.
    let deadline = Instant::now() + Duration::from_secs(1500);
    for _ in 0..LAB_BOOTS {
        shell::step("run the tests of the KVM engine in the lab");
        let script = lab_script(root, home, &files, &programs);
        let mut options = LabOptions::new(&shell::target_dir(root), ["sh", "-c", &script].map(str::to_owned).into());
        options.timeout = deadline.saturating_duration_since(Instant::now());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let end = lab::run_with(&options, Lines { line: Vec::new(), results: Arc::clone(&seen) })?;
        for (name, passed) in std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner)) {
            programs.iter_mut().for_each(|program| program.tests.retain(|test| *test != name));
            *if passed { &mut totals.passed } else { &mut totals.failed } += 1;
        }
        let left: Vec<&str> = programs.iter().flat_map(|program| &program.tests).map(String::as_str).collect();
        match end {
            LabEnd::Exited(code) => return Ok(code == 0 && left.is_empty()),
            LabEnd::TimedOut => {
                show(&format!("no end in the lab: {}", left.join(", ")));
                return Ok(false);
            }
            LabEnd::StoodStill => show(&format!("not ended when the lab stood still: {}", left.join(", "))),
        }
    }
    Ok(false)
}

/// A test program and the names of its tests that have not ended in the lab.
struct LabProgram {
    binary: PathBuf,
    tests: Vec<String>,
}

/// Returns what the lab's shell does to run these tests.
fn lab_script(root: &Path, home: &Path, [kernel, initramfs, rootfs]: &[PathBuf; 3], programs: &[LabProgram]) -> String {
    // What is read often is copied into the lab's memory first.
    let copy = |from: &Path, to: &str| format!("cat '{}' > {to} && chmod 755 {to}\n", from.display());
    let mut script = "set -e\nmkdir /dev/shm/tests\ncd /dev/shm/tests\nexport TMPDIR=/dev/shm\nsound=0\n".to_owned();
    script += &copy(kernel, "kernel");
    script += &copy(initramfs, "initramfs");
    script += &copy(&shell::pyro(root), "pyro");
    script += "export PYRO_BIN=$PWD/pyro PYRO_TEST_KERNEL=$PWD/kernel PYRO_TEST_INITRAMFS=$PWD/initramfs\n";
    script += &format!("export PYRO_TEST_ROOTFS='{}' PYRO_TEST_HOME='{}'\n", rootfs.display(), home.display());
    for (index, program) in programs.iter().enumerate().filter(|(_, program)| !program.tests.is_empty()) {
        script += &copy(&program.binary, &format!("test-{index}"));
        let tests = program.tests.join(" ");
        script += &format!("./test-{index} --ignored --test-threads=1 --exact {tests} || sound=1\n");
    }
    script + "exit $sound\n"
}

/// Shows lines and keeps each test's result, which counts even when the summary never comes.
struct Lines {
    line: Vec<u8>,
    results: Arc<Mutex<Vec<(String, bool)>>>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
            let result = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
            if let Some((name, result)) = result {
                let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
                results.push((name.to_owned(), result == "ok"));
            }
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
    use super::*;

    #[test]
    fn adds_up_the_runners_summaries() {
        let mut totals = Totals::default();
        totals.add("running 3 tests");
        totals.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        totals.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        assert_eq!((totals.passed, totals.failed), (4, 2));
    }

    #[test]
    fn keeps_the_results_of_tests_that_ended() {
        let results = Arc::default();
        let mut lines = Lines { line: Vec::new(), results: Arc::clone(&results) };
        lines.write_all(b"\nrunning 3 tests\ntest one ... ok\ntest two::three ... FAI").unwrap();
        lines.write_all(b"LED\ntest four ... ").unwrap();
        let expected = [("one".to_owned(), true), ("two::three".to_owned(), false)];
        assert_eq!(*results.lock().unwrap(), expected);
    }
}
