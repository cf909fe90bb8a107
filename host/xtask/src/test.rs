//! All tests: what is needed is installed and built, the environment for the
//! end-to-end tests is prepared, and the runner's summaries are added up at the
//! end.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::shell::{self, Cmd};
use crate::{WHOLE_WORKSPACE, build, setup};

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
    shell::step("run all tests");
    let mut sound = cargo_test(root, &home, &["--no-fail-fast"], options.filter.as_deref(), &[], &mut totals)?;
    shell::step("run the engine's tests on real machines");
    // They wait for each other's processes, so they run one after the other and apart from the rest.
    sound &= cargo_test(
        root,
        &home,
        &["--test", "machine"],
        options.filter.as_deref(),
        &["--ignored", "--test-threads=1"],
        &mut totals,
    )?;
    show(&format!("{} passed, {} failed", totals.passed, totals.failed));
    if !sound || totals.failed > 0 {
        bail!("{} tests failed", totals.failed);
    }
    if totals.passed == 0 {
        bail!("no test ran\nhint: `cargo xtask test` without a filter runs all");
    }
    Ok(())
}

/// Runs `cargo test`, shows what it prints and adds up its summaries; returns whether it succeeded.
fn cargo_test(
    root: &Path,
    home: &Path,
    what: &[&str],
    filter: Option<&str>,
    how: &[&str],
    totals: &mut Totals,
) -> Result<bool> {
    let mut command = shell::cargo(root)
        .args(["test", "--release", "--locked"])
        .args(WHOLE_WORKSPACE)
        .args(what)
        .args(filter)
        .arg("--")
        .args(how)
        .env("PYRO_BIN", shell::pyro(root))
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
