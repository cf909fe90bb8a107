//! Installs what is missing: Debian packages and Rust targets. Asks for nothing
//! when everything is there.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell::{self, Cmd};

/// Debian packages and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("acpica-tools", "checks the ACPI tables in tests"),
    ("ca-certificates", "package downloads"),
    ("e2fsprogs", "checks file systems in tests"),
    ("busybox-static", "the lab's first program"),
    ("gcc", "C parts of crates, and linking"),
    ("git", "checks patches in tests"),
    ("libc6-dev", "C parts of crates, and linking"),
    ("mmdebstrap", "builds environments"),
    ("patch", "checks patches in tests"),
    ("python3-venv", "runs the example programs"),
    ("qemu-system-x86", "the software engine, and the lab"),
    ("xz-utils", "environments and kernel packages"),
];

const TARGETS: &[&str] = &["wasm32-wasip2", "x86_64-unknown-linux-musl"];
const COMPONENTS: &[&str] = &["clippy", "rustfmt"];

/// Installs everything the other tasks need.
pub fn run(root: &Path) -> Result<()> {
    shell::step("check system packages and Rust targets");
    packages()?;
    rust(root)
}

fn packages() -> Result<()> {
    let missing: Vec<&str> = PACKAGES.iter().map(|(name, _)| *name).filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (name, purpose) in PACKAGES.iter().filter(|(name, _)| missing.contains(name)) {
        eprintln!("    missing: {name} ({purpose})");
    }
    if !has("apt-get") {
        bail!(
            "apt-get is not on this machine\nhint: install these by hand, by their Debian names: {}",
            missing.join(" ")
        );
    }
    apt(&["update", "-qq"]).run()?;
    apt(&["install", "-y", "-qq", "--no-install-recommends"]).args(missing).run()
}

fn apt(args: &[&str]) -> Cmd {
    let command = if shell::is_root() { Cmd::new("env") } else { Cmd::new("sudo").arg("env") };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(args)
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn rust(root: &Path) -> Result<()> {
    if !has("rustup") {
        // A Rust that rustup does not manage has to bring the targets itself.
        let sysroot = Cmd::new("rustc").args(["--print", "sysroot"]).read()?;
        for target in TARGETS {
            if !Path::new(sysroot.trim()).join("lib/rustlib").join(target).is_dir() {
                bail!(
                    "the Rust target {target} is not installed, and there is no rustup to add it\nhint: install the standard library for {target}"
                );
            }
        }
        return Ok(());
    }
    let missing_targets = missing(root, "target", TARGETS)?;
    if !missing_targets.is_empty() {
        Cmd::new("rustup").current_dir(root).args(["target", "add"]).args(missing_targets).run()?;
    }
    let missing_components = missing(root, "component", COMPONENTS)?;
    if !missing_components.is_empty() {
        Cmd::new("rustup").current_dir(root).args(["component", "add"]).args(missing_components).run()?;
    }
    Ok(())
}

fn missing<'a>(root: &Path, kind: &str, wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let list = Cmd::new("rustup")
        .current_dir(root)
        .args([kind, "list", "--installed"])
        .read()
        .with_context(|| format!("cannot list the installed Rust {kind}s"))?;
    Ok(wanted.iter().copied().filter(|name| !list.lines().any(|line| line.starts_with(name))).collect())
}
