//! Fuzzing the devices and the kernel loader of the VMM with libFuzzer.
//!
//! Coverage comes from the compiler's own pass, which the pinned Rust has; the sanitizers, for which it would have to be a
//! nightly one, are not used: what is looked for are panics, broken promises and endless loops. What the repository keeps
//! of inputs is where every run begins; what a run finds stays in the target directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::shell::{self, Cmd};

const TARGETS: &[&str] = &["devices", "vsock", "kernel"];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The same as `cargo fuzz` gives, without a sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on";

#[derive(clap::Args)]
pub struct Options {
    /// Fuzz only this target
    target: Option<String>,
    /// How long each target is fuzzed
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Builds the fuzz targets and runs them one after the other. Fails when an input breaks one; libFuzzer says which.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let wanted = |name: &&&str| options.target.as_deref().is_none_or(|target| target == **name);
    anyhow::ensure!(TARGETS.iter().any(|name| wanted(&name)), "no such target\nhint: there are {}", TARGETS.join(", "));
    for_seconds(root, TARGETS.iter().filter(wanted), options.seconds)
}

/// Fuzzes all targets for that long each.
pub fn all(root: &Path, seconds: u32) -> Result<()> {
    for_seconds(root, TARGETS.iter(), seconds)
}

fn for_seconds<'a>(root: &Path, targets: impl Iterator<Item = &'a &'static str>, seconds: u32) -> Result<()> {
    let (home, built) = (root.join("host/vmm/fuzz"), shell::target_dir(root).join("fuzz"));
    shell::step("build the fuzz targets");
    shell::cargo(&home)
        .args(["build", "--quiet", "--release", "--target", TRIPLE])
        .env("CARGO_TARGET_DIR", &built)
        .env("RUSTFLAGS", FLAGS)
        .run()?;
    for target in targets {
        shell::step(&format!("fuzz {target} for {seconds} s"));
        let found = built.join("corpus").join(target);
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        Cmd::new(built.join(TRIPLE).join("release").join(target))
            .current_dir(&built)
            .args([format!("-max_total_time={seconds}"), "-timeout=10".to_owned(), "-print_final_stats=1".to_owned()])
            .arg("-verbosity=0")
            .arg(&found)
            .arg(home.join("corpus").join(target))
            .run()?;
    }
    Ok(())
}
