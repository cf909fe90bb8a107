//! What this machine has, what it lacks, and what to do about it.
//!
//! Every check looks; none changes anything, starts a microVM or uses the network.
//!
//! Deliberately absent: fixing. `cargo xtask setup` and the package manager do that.

use std::path::{Path, PathBuf};

use pyro_engine::environments::prerequisites;
use pyro_engine::{EngineChoice, MachineReport, Paths, kvm_verdict, pick_engine, running_machines};
use rustix::fs::Access;
use serde::Serialize;

/// Free memory below which the default microVM (1 GiB) may not fit.
const WANTED_FREE_MEMORY_BYTES: u64 = 1536 * 1024 * 1024;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// pyro works, but not as well as it could.
    Warning,
    /// pyro cannot run commands.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A stable short name.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do; none when there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, detail: impl Into<String>) -> Check {
        Check { name, verdict, detail: detail.into(), fix: None }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Check {
        Check::new(name, Verdict::Ok, detail)
    }

    fn fix(mut self, fix: impl Into<String>) -> Check {
        self.fix = Some(fix.into());
        self
    }
}

/// The result of all checks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The version of this program.
    pub version: &'static str,
    /// Whether commands can be run: no check failed.
    pub ok: bool,
    /// In the order of importance to a reader.
    pub checks: Vec<Check>,
    /// The microVMs that run now, with what each costs.
    pub machines: Vec<MachineReport>,
}

/// Looks at everything that pyro needs, and at the microVMs that run.
pub async fn examine(paths: &Paths, choice: EngineChoice) -> Report {
    let mut checks = vec![platform(), engine(choice), qemu(), kvm()];
    checks.extend(prerequisites(paths).into_iter().map(|found| Check {
        name: found.name,
        // What is missing for builds does not stop what is installed from running.
        verdict: if found.ok { Verdict::Ok } else { Verdict::Warning },
        detail: found.found,
        fix: found.fix,
    }));
    checks.extend([
        directory("state directory", &paths.state),
        directory("cache directory", &paths.cache),
        directory("run directory", &paths.run),
        memory(),
    ]);
    Report {
        version: env!("CARGO_PKG_VERSION"),
        ok: checks.iter().all(|check| check.verdict != Verdict::Failed),
        checks,
        machines: running_machines(paths).await,
    }
}

/// Which engine would be used, and why.
fn engine(choice: EngineChoice) -> Check {
    match pick_engine(choice) {
        Ok(pick) => Check::ok("engine", format!("{} ({})", pick.execution_mode.as_str(), pick.reason)),
        Err(error) => Check {
            name: "engine",
            verdict: Verdict::Failed,
            detail: error.message().to_owned(),
            fix: Some(error.hint().unwrap_or("use `--engine auto`").to_owned()),
        },
    }
}

fn platform() -> Check {
    let uname = rustix::system::uname();
    let detail = format!(
        "{} {} on {}",
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        uname.machine().to_string_lossy()
    );
    if uname.sysname().to_bytes() == b"Linux" && uname.machine().to_bytes() == b"x86_64" {
        Check::ok("platform", detail)
    } else {
        Check::new("platform", Verdict::Failed, detail).fix("pyro runs on x86-64 Linux")
    }
}

fn qemu() -> Check {
    const PROGRAM: &str = "qemu-system-x86_64";
    match find_program(PROGRAM) {
        Some(path) => Check::ok("qemu", format!("{} (the software engine)", path.display())),
        None => Check::new("qemu", Verdict::Failed, format!("`{PROGRAM}` is not in PATH; it is the software engine"))
            .fix("apt-get install --no-install-recommends qemu-system-x86"),
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file() && rustix::fs::access(file, Access::EXEC_OK).is_ok())
}

fn kvm() -> Check {
    let device = Path::new("/dev/kvm");
    if !device.exists() {
        return Check::new(
            "kvm",
            Verdict::Warning,
            "there is no /dev/kvm: microVMs run on the software engine, slower",
        )
        .fix("enable virtualisation for this machine, if it can be");
    }
    if rustix::fs::access(device, Access::READ_OK | Access::WRITE_OK).is_err() {
        return Check::new("kvm", Verdict::Warning, "/dev/kvm may not be used by this user").fix(
            "add the user to the group of /dev/kvm (`usermod -aG kvm USER`) and log in again, or use the software engine",
        );
    }
    // That it opens proves nothing: only a guest's own instructions tell whether it runs ours.
    let verdict = kvm_verdict();
    if verdict.usable {
        Check::ok("kvm", format!("the self-test says: {}", verdict.reason))
    } else {
        Check::new("kvm", Verdict::Warning, format!("the self-test says: {}", verdict.reason))
            .fix("nothing: microVMs run on the software engine, slower; `--engine kvm` uses KVM all the same")
    }
}

/// Whether a directory can be used, or made.
fn directory(name: &'static str, path: &Path) -> Check {
    let nearest = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    if !nearest.is_dir() {
        return Check::new(name, Verdict::Failed, format!("{}: {} is no directory", path.display(), nearest.display()))
            .fix("move it away, or set PYRO_HOME to another place");
    }
    if rustix::fs::access(nearest, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return Check::new(
            name,
            Verdict::Failed,
            format!("{}: {} cannot be written", path.display(), nearest.display()),
        )
        .fix("give this user the directory, or set PYRO_HOME to another place");
    }
    let state = if nearest == path { "" } else { " (will be made)" };
    Check::ok(name, format!("{}{state}", path.display()))
}

fn memory() -> Check {
    const NAME: &str = "memory";
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib.saturating_mul(1024));
    match available {
        None => Check::new(NAME, Verdict::Warning, "the free memory is not known"),
        Some(bytes) if bytes < WANTED_FREE_MEMORY_BYTES => {
            Check::new(NAME, Verdict::Warning, format!("{} free; a microVM has 1 GiB by default", gib(bytes)))
                .fix("ask for smaller microVMs (`--mem-mib 512`)")
        }
        Some(bytes) => Check::ok(NAME, format!("{} free", gib(bytes))),
    }
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_can_be_made_is_fine() {
        let home = tempfile::tempdir().unwrap();
        let check = directory("state directory", &home.path().join("a/b/c"));
        assert_eq!(check.verdict, Verdict::Ok);
        assert!(check.detail.ends_with("(will be made)"), "{}", check.detail);
    }

    #[test]
    fn a_file_in_the_way_is_found() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("a"), "").unwrap();
        let check = directory("state directory", &home.path().join("a/b"));
        assert_eq!(check.verdict, Verdict::Failed);
        assert!(check.fix.is_some());
    }

    #[tokio::test]
    async fn what_is_not_fine_says_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let report = examine(&Paths::below(home.path()), EngineChoice::Auto).await;
        for check in &report.checks {
            assert!(check.verdict != Verdict::Failed || check.fix.is_some(), "{check:?}");
        }
        let failed = report.checks.iter().any(|check| check.verdict == Verdict::Failed);
        assert_eq!(report.ok, !failed);
    }
}
