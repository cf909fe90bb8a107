//! Measurements. Never a test: a figure is printed, not judged.

use std::path::Path;

use anyhow::Result;

use crate::{build, setup};

#[derive(clap::Args)]
pub struct Options {
    /// How often each thing is measured
    #[arg(long, default_value_t = 20)]
    rounds: u32,
}

/// Runs the benchmarks against the release binary.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    setup::run(root)?;
    build(root)?;
    let _ = options;
    Ok(())
}
