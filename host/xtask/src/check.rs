//! What a reviewer should not have to look for: formatting, lints, docs.

use std::path::Path;

use anyhow::Result;

use crate::setup;
use crate::shell;

/// Fails on unformatted code, on any warning of clippy and on broken docs.
pub fn run(root: &Path) -> Result<()> {
    setup::run(root)?;
    shell::step("formatting");
    shell::cargo(root).args(["fmt", "--all", "--check"]).run()?;
    shell::step("lints");
    shell::cargo(root)
        .args(["clippy", "--release", "--locked", "--workspace", "--all-targets"])
        .args(["--exclude", "pyro-agent", "--exclude", "pyro-test-guests"])
        .args(["--", "--deny", "warnings"])
        .run()
}
