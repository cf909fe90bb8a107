//! Runs the example programs of `docs/examples` against a scripted model on loopback.
//!
//! Their packages come from PyPI into a virtual environment in the target directory. Where that cannot be had they cannot
//! run, which is said and is no failure of pyro; a program that runs and fails is.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::shell::{self, Cmd};

const PROGRAMS: [&str; 3] = ["openai_responses.py", "langchain_agent.py", "pydantic_ai_agent.py"];

/// Runs them all. Returns how many passed and how many failed; none when Python's packages cannot be had.
pub fn run(root: &Path, home: &Path) -> Result<Option<(u64, u64)>> {
    shell::step("run the example programs");
    let target = shell::target_dir(root);
    let environment = target.join("examples-venv");
    let requirements = root.join("docs/examples/requirements.txt");
    let python = environment.join("bin/python");
    if !environment.join("complete").exists() {
        let made = Cmd::new("python3").args(["-m", "venv", "--clear"]).arg(&environment).run().and_then(|()| {
            Cmd::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
                .arg(&requirements)
                .run()
        });
        if let Err(error) = made {
            eprintln!("    NOT RUN: the example programs: their Python packages cannot be installed: {error:#}");
            return Ok(None);
        }
        std::fs::write(environment.join("complete"), "").context("cannot mark the Python packages as complete")?;
    }

    // Environments are shared with the other tests; workspaces are not.
    let own = target.join("examples-home");
    std::fs::create_dir_all(&own).context("cannot make a home for the example programs")?;
    let cache = own.join("cache");
    if !cache.exists() {
        std::os::unix::fs::symlink(home.join("cache"), &cache).context("cannot share the environments")?;
    }
    let (mut passed, mut failed) = (0, 0);
    for program in PROGRAMS {
        let sound = Cmd::new(&python)
            .arg(root.join("tests/examples/scripted_model.py"))
            .arg(root.join("docs/examples").join(program))
            .env("PYRO", shell::pyro(root))
            .env("PYRO_HOME", &own)
            .into_command()
            .stdin(Stdio::null())
            .status()
            .context("cannot run an example program")?
            .success();
        eprintln!("    {program}: {}", if sound { "ok" } else { "FAILED" });
        if sound { passed += 1 } else { failed += 1 }
    }
    Ok(Some((passed, failed)))
}
