//! What building environments needs of this host, for `pyro doctor`.

use std::path::Path;

use serde::Serialize;

use super::{bootstrap, process, space};
use crate::Paths;

/// Room for one environment and its build.
const WANTED_FREE_BYTES: u64 = 3 << 30;

/// One thing that building needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prerequisite {
    /// A short name.
    pub name: &'static str,
    /// Whether it is fine.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do about it, when it is not fine.
    pub fix: Option<String>,
}

/// Checks everything that building environments needs. Runs two short programs.
pub fn prerequisites(paths: &Paths) -> Vec<Prerequisite> {
    let mut out = vec![
        program("mmdebstrap", bootstrap::PROGRAM, "apt-get install mmdebstrap"),
        program("apt", "apt-get", "install apt: environments are built from Debian packages"),
        file(
            "debian keyring",
            &["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"],
            "apt-get install debian-archive-keyring",
        ),
        free_space(&paths.cache),
    ];
    if !rustix::process::geteuid().is_root() {
        out.push(file(
            "mapped users",
            &["/usr/bin/newuidmap"],
            "apt-get install uidmap, and give this user a range in /etc/subuid and /etc/subgid",
        ));
    }
    out
}

fn program(name: &'static str, program: &str, fix: &str) -> Prerequisite {
    let mut command = process::command(program);
    command.arg("--version");
    let mut first = None;
    let ran = process::run(
        command,
        &|| false,
        |line| {
            first.get_or_insert_with(|| line.to_owned());
        },
        || {},
    );
    let ok = ran.as_ref().is_ok_and(|done| done.status.success());
    let found = match (ran, first) {
        (Ok(done), _) if !done.status.success() => {
            format!("`{program} --version` ended with {}", done.how())
        }
        (Ok(_), line) => line.unwrap_or_default(),
        (Err(error), _) => error.to_string(),
    };
    Prerequisite { name, ok, found, fix: (!ok).then(|| fix.to_owned()) }
}

fn file(name: &'static str, paths: &[&str], fix: &str) -> Prerequisite {
    let found = paths.iter().find(|path| Path::new(path).exists());
    Prerequisite {
        name,
        ok: found.is_some(),
        found: found.map_or_else(|| "not found".to_owned(), |path| (*path).to_owned()),
        fix: found.is_none().then(|| fix.to_owned()),
    }
}

fn free_space(cache: &Path) -> Prerequisite {
    let (ok, found) = match space::free_bytes(cache) {
        Ok(free) => (free >= WANTED_FREE_BYTES, format!("{} MiB free for `{}`", free >> 20, cache.display())),
        Err(error) => (false, format!("cannot ask about `{}`: {error}", cache.display())),
    };
    let fix =
        format!("make {} MiB free (`pyro env prune`), or point PYRO_HOME at a larger disk", WANTED_FREE_BYTES >> 20);
    Prerequisite { name: "free space", ok, found, fix: (!ok).then_some(fix) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_its_fix() {
        let missing = program("x", "no-such-program-here", "install it");
        assert_eq!((missing.ok, missing.fix.as_deref()), (false, Some("install it")));
        let there = program("x", "sh", "install it");
        assert!(there.found.contains("--version") || there.ok, "{there:?}");
        assert!(!file("x", &["/nonexistent"], "f").ok);
        assert_eq!(file("x", &["/nonexistent", "/"], "f").found, "/");
    }

    #[test]
    fn free_space_of_a_cache_that_does_not_exist_yet() {
        let dir = tempfile::tempdir().unwrap();
        let got = free_space(&dir.path().join("a/b"));
        assert!(got.found.contains("MiB free"), "{got:?}");
    }
}
