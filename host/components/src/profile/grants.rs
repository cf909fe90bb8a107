//! What a component may do: one grant per gated interface, with scopes that are checked on every call.

use serde::Serialize;

/// The grants of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GrantSet {
    /// `pyro:vm/machines`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machines: Option<MachinesScope>,
    /// `pyro:vm/exec`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecScope>,
    /// `pyro:vm/workspaces`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspaces: Option<MachinesScope>,
    /// `pyro:vm/files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesScope>,
    /// `pyro:vm/host-files`: below the profile's `[host]` roots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_files: Option<WholeScope>,
    /// `pyro:vm/terminals`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminals: Option<WholeScope>,
    /// `pyro:vm/services`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<WholeScope>,
    /// `pyro:vm/ports`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<WholeScope>,
    /// `pyro:vm/environments`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environments: Option<WholeScope>,
    /// `pyro:vm/machine-lifecycle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_lifecycle: Option<MachinesScope>,
    /// `pyro:secrets/store` and `pyro:secrets/bindings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<SecretsScope>,
}

/// Which machines or workspaces a component may make and open. Every key narrows; an empty scope allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachinesScope {
    /// Patterns of environment names, `*` for any run of characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environments: Option<Vec<String>>,
}

/// Which files of a guest a component may reach. Every key narrows; an empty scope allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FilesScope {
    /// Absolute directories of the guest; a path and every symlink on the way to it stay below one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roots: Option<Vec<String>>,
}

/// Which secrets a component may list, set, remove and bind. Every key narrows; an empty scope allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SecretsScope {
    /// Patterns of secret names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
}

/// A grant that has no keys: all of the interface or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WholeScope {}

/// Which commands a component may run. Every key narrows; an empty scope allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExecScope {
    /// Patterns of command lines, one word per argument. `*` in a word stands for any run of characters, a last word
    /// `*` for any further arguments, also none; `*` alone is any command. A shell line counts as the arguments `sh`,
    /// `-lc`, LINE, and one of plain words only as these words too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Environment variables that may be set. With `argv` and without this, none: a variable such as `LD_PRELOAD`
    /// would make an allowed program run anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Longest timeout of a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<u32>,
}

impl GrantSet {
    /// Every grant there is.
    pub(crate) const NAMES: [&'static str; 11] = [
        "machines",
        "exec",
        "workspaces",
        "files",
        "host-files",
        "terminals",
        "services",
        "ports",
        "environments",
        "machine-lifecycle",
        "secrets",
    ];

    /// Returns every grant with no scope.
    pub(crate) fn all() -> GrantSet {
        GrantSet {
            machines: Some(MachinesScope::default()),
            exec: Some(ExecScope::default()),
            workspaces: Some(MachinesScope::default()),
            files: Some(FilesScope::default()),
            host_files: Some(WholeScope {}),
            terminals: Some(WholeScope {}),
            services: Some(WholeScope {}),
            ports: Some(WholeScope {}),
            environments: Some(WholeScope {}),
            machine_lifecycle: Some(MachinesScope::default()),
            secrets: Some(SecretsScope::default()),
        }
    }

    /// Returns the names that are granted, in the order of [`GrantSet::NAMES`].
    pub fn names(&self) -> Vec<&'static str> {
        let granted = [
            self.machines.is_some(),
            self.exec.is_some(),
            self.workspaces.is_some(),
            self.files.is_some(),
            self.host_files.is_some(),
            self.terminals.is_some(),
            self.services.is_some(),
            self.ports.is_some(),
            self.environments.is_some(),
            self.machine_lifecycle.is_some(),
            self.secrets.is_some(),
        ];
        GrantSet::NAMES.into_iter().zip(granted).filter(|(_, granted)| *granted).map(|(name, _)| name).collect()
    }

    /// Returns whether a component with these grants can change anything at all: the catalogue of environments can
    /// only be read.
    pub(crate) fn can_change(&self) -> bool {
        self.names().iter().any(|name| *name != "environments")
    }

    /// Returns whether a component with these grants can change or remove anything that outlives a call. A machine that
    /// does is had from `workspaces` and `machine-lifecycle` only; without one of them `exec`, `files`, `terminals` and
    /// `services` reach machines that end with the call. What `host-files` writes was not there before.
    pub(crate) fn can_destroy(&self) -> bool {
        self.workspaces.is_some() || self.machine_lifecycle.is_some() || self.secrets.is_some()
    }

    /// Returns whether a component with these grants can reach anything outside pyro's machines: files of the host, or
    /// ports on it.
    pub(crate) fn can_reach_out(&self) -> bool {
        self.host_files.is_some() || self.ports.is_some()
    }
}

impl MachinesScope {
    /// Returns why `environment` may not be used, when it may not. `grant` is the name of this one.
    pub(crate) fn refusal(&self, grant: &str, environment: &str) -> Option<String> {
        let patterns = self.environments.as_ref()?;
        if patterns.iter().any(|pattern| glob(pattern, environment)) {
            return None;
        }
        Some(format!("environment `{environment}` is outside the grant `{grant}` ({})", patterns.join(", ")))
    }
}

impl FilesScope {
    /// Returns the directory that is to confine a request for `paths`, which asks to be confined to `root`: that, when
    /// it is granted, or the granted directory below it that all of the paths are in.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn confine<'a>(&'a self, root: &'a str, paths: &[&str]) -> Result<&'a str, String> {
        let Some(roots) = &self.roots else { return Ok(root) };
        if roots.iter().any(|allowed| is_below(root, allowed)) {
            return Ok(root);
        }
        let holds_all = |allowed: &&String| {
            is_below(allowed, root) && !paths.is_empty() && paths.iter().all(|path| is_below(path, allowed))
        };
        roots.iter().find(holds_all).map(String::as_str).ok_or_else(|| {
            let outside = paths.iter().find(|path| !roots.iter().any(|allowed| is_below(path, allowed)));
            let what = outside.map_or_else(|| format!("directory `{root}`"), |path| format!("`{path}`"));
            format!("{what} is outside the grant `files` ({})", roots.join(", "))
        })
    }
}

/// Returns whether a path is that directory or below it, by their names.
fn is_below(path: &str, directory: &str) -> bool {
    // Without `.` and `..` a prefix of whole names is a directory above.
    let plain = path.starts_with('/') && !path.split('/').any(|name| name == "." || name == "..");
    let mut below = path.split('/').filter(|name| !name.is_empty());
    plain && directory.split('/').filter(|name| !name.is_empty()).all(|name| below.next() == Some(name))
}

impl SecretsScope {
    /// Returns why a secret may not be used, when it may not.
    pub(crate) fn refusal(&self, name: &str) -> Option<String> {
        let patterns = self.names.as_ref()?;
        if patterns.iter().any(|pattern| glob(pattern, name)) {
            return None;
        }
        Some(format!("secret `{name}` is outside the grant `secrets` ({})", patterns.join(", ")))
    }
}

impl ExecScope {
    /// Returns why a command may not be run, when it may not.
    pub(crate) fn refusal(&self, argv: &[&str], env: &[(String, String)], timeout_ms: u64) -> Option<String> {
        let words = match argv {
            ["sh", "-lc", line] => plain_words(line),
            _ => None,
        };
        if let Some(patterns) = &self.argv
            && !patterns.iter().any(|pattern| {
                argv_matches(pattern, argv) || words.as_deref().is_some_and(|words| argv_matches(pattern, words))
            })
        {
            let shown: String = argv.join(" ").chars().take(200).collect();
            return Some(format!("command `{shown}` is outside the grant `exec` ({})", patterns.join(", ")));
        }
        if self.argv.is_some() || self.env.is_some() {
            let allowed = self.env.as_deref().unwrap_or_default();
            let refused = env.iter().find(|(name, _)| !allowed.iter().any(|pattern| glob(pattern, name)));
            if let Some((name, _)) = refused {
                return Some(format!("environment variable `{name}` is outside the grant `exec`"));
            }
        }
        if let Some(max_seconds) = self.max_seconds
            && timeout_ms > u64::from(max_seconds) * 1000
        {
            let seconds = timeout_ms.div_ceil(1000);
            return Some(format!("a timeout of {seconds} s is outside the grant `exec` (max_seconds = {max_seconds})"));
        }
        None
    }
}

/// Returns the words of a shell line in which no character means anything to a shell, so that it runs just the program
/// of that name with these arguments.
fn plain_words(line: &str) -> Option<Vec<&str>> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b" -_./:@%+,=".contains(&byte);
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    // With `=` the first would be an assignment, and what comes next the program.
    let is_program = words.first().is_some_and(|first| !first.contains('='));
    (is_program && line.bytes().all(plain)).then_some(words)
}

fn argv_matches(pattern: &str, argv: &[&str]) -> bool {
    let words: Vec<&str> = pattern.split_whitespace().collect();
    match words.split_last() {
        None => false,
        // Alone it is any command.
        Some((&"*", head)) => {
            argv.len() >= head.len().max(1) && head.iter().zip(argv).all(|(word, argument)| glob(word, argument))
        }
        Some(_) => argv.len() == words.len() && words.iter().zip(argv).all(|(word, argument)| glob(word, argument)),
    }
}

/// Returns whether `text` matches `pattern`, where `*` stands for any run of characters. Takes time proportional to the
/// product of the lengths at most.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(byte) if text.get(t) == Some(byte) => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, start)) => {
                    retry = Some((after_star, start + 1));
                    p = after_star;
                    t = start + 1;
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_runs_of_characters() {
        for (pattern, text, matches) in [
            ("debian:*", "debian:12", true),
            ("debian:*", "alpine:3", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("a", "ab", false),
            ("", "", true),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn a_root_is_a_directory_of_whole_names() {
        let scope = FilesScope { roots: Some(vec!["/workspace/".to_owned(), "/srv/a".to_owned()]) };
        for (root, allowed) in [
            ("/workspace", true),
            ("/workspace/sub/dir/", true),
            ("//workspace", true),
            ("/workspaces", false),
            ("/", false),
            ("", false),
            ("workspace", false),
            ("/workspace/../etc", false),
            ("/srv", false),
            ("/srv/a/./b", false),
        ] {
            assert_eq!(scope.confine(root, &[]).is_ok(), allowed, "{root}");
        }
        assert_eq!(FilesScope::default().confine("/", &["/etc"]), Ok("/"));
        assert!(FilesScope { roots: Some(Vec::new()) }.confine("/workspace", &["/workspace/a"]).is_err());
    }

    #[test]
    fn a_wider_root_is_narrowed_to_the_one_that_is_granted() {
        let scope = FilesScope { roots: Some(vec!["/workspace/src".to_owned(), "/workspace/doc/".to_owned()]) };
        for (paths, root) in [
            (&["/workspace/src"] as &[&str], Some("/workspace/src")),
            (&["/workspace/src/a", "/workspace/src/b/c"], Some("/workspace/src")),
            (&["/workspace/doc/a"], Some("/workspace/doc/")),
            // One set of changes is confined to one directory.
            (&["/workspace/src/a", "/workspace/doc/a"], None),
            (&["/workspace/src/../other"], None),
            (&["/workspace/srcs/a"], None),
            (&["/workspace"], None),
            (&["src/a"], None),
            (&[], None),
        ] {
            assert_eq!(scope.confine("/workspace", paths).ok(), root, "{paths:?}");
        }
        // Not wider than what was asked for.
        assert!(scope.confine("/workspace/lib", &["/workspace/src/a"]).is_err());
        let refused = scope.confine("/workspace", &["/workspace/src/a", "/workspace/x"]).unwrap_err();
        assert_eq!(refused, "`/workspace/x` is outside the grant `files` (/workspace/src, /workspace/doc/)");
    }

    #[test]
    fn every_grant_has_a_name() {
        assert_eq!(GrantSet::all().names(), GrantSet::NAMES);
        let json = serde_json::to_value(GrantSet::all()).unwrap();
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), GrantSet::NAMES);
    }

    #[test]
    fn what_a_grant_makes_possible_is_said_truthfully() {
        let grants = |names: &[&str]| {
            let all = GrantSet::all();
            let has = |name: &str| names.contains(&name);
            GrantSet {
                exec: all.exec.filter(|_| has("exec")),
                files: all.files.filter(|_| has("files")),
                workspaces: all.workspaces.filter(|_| has("workspaces")),
                host_files: all.host_files.filter(|_| has("host-files")),
                ports: all.ports.filter(|_| has("ports")),
                environments: all.environments.filter(|_| has("environments")),
                secrets: all.secrets.filter(|_| has("secrets")),
                ..GrantSet::default()
            }
        };
        for (names, change, destroy, out) in [
            (&[] as &[&str], false, false, false),
            (&["environments"], false, false, false),
            (&["exec", "files"], true, false, false),
            (&["workspaces"], true, true, false),
            (&["secrets"], true, true, false),
            (&["host-files"], true, false, true),
            (&["ports", "workspaces"], true, true, true),
        ] {
            let grants = grants(names);
            let found = (grants.can_change(), grants.can_destroy(), grants.can_reach_out());
            assert_eq!(found, (change, destroy, out), "{names:?}");
        }
    }

    #[test]
    fn a_command_pattern_matches_word_by_word() {
        let scope = ExecScope { argv: Some(vec!["rg *".to_owned(), "git status".to_owned()]), ..ExecScope::default() };
        let allowed = |argv: &[&str]| scope.refusal(argv, &[], 1000).is_none();
        assert!(allowed(&["rg"]));
        assert!(allowed(&["rg", "-n", "a b"]));
        assert!(allowed(&["git", "status"]));
        assert!(!allowed(&["git", "status", "-s"]));
        assert!(!allowed(&["/tmp/rg"]));
        assert!(!allowed(&["sh", "-lc", "rg x; id"]));
        assert!(!allowed(&[]));
        // One argument with a space is not two words.
        assert!(!allowed(&["git status"]));
        // A line of the shell, where it is nothing but words.
        for (line, expected) in [
            ("rg -n pattern src/main.rs", true),
            ("  git   status ", true),
            ("git status --short", false),
            ("rg a; id", false),
            ("rg a\nid", false),
            ("rg $(id)", false),
            ("rg a > b", false),
            ("rg 'a b'", false),
            ("rg *", false),
            ("rg ~", false),
            ("rg a#b", false),
            ("A=b rg a", false),
            ("r\\g a", false),
            ("rg \u{e9}", false),
            ("", false),
        ] {
            assert_eq!(allowed(&["sh", "-lc", line]), expected, "{line}");
            assert!(!allowed(&["sh", "-c", line]) && !allowed(&["sh", "-lc", line, "x"]));
        }
        let any = ExecScope { argv: Some(vec!["*".to_owned()]), ..ExecScope::default() };
        assert!(any.refusal(&["true"], &[], 1000).is_none());
        assert!(any.refusal(&["git", "status", "-s"], &[], 1000).is_none());
        assert!(any.refusal(&[], &[], 1000).is_some());
    }

    #[test]
    fn an_argv_scope_closes_the_environment() {
        let preload = [("LD_PRELOAD".to_owned(), "/tmp/x.so".to_owned())];
        let mut scope = ExecScope { argv: Some(vec!["rg *".to_owned()]), ..ExecScope::default() };
        assert!(scope.refusal(&["rg"], &preload, 1).is_some());
        scope.env = Some(vec!["LC_*".to_owned()]);
        assert!(scope.refusal(&["rg"], &preload, 1).is_some());
        assert!(scope.refusal(&["rg"], &[("LC_ALL".to_owned(), "C".to_owned())], 1).is_none());
        assert!(ExecScope::default().refusal(&["rg"], &preload, 1).is_none());
    }

    #[test]
    fn a_scope_bounds_the_timeout() {
        let scope = ExecScope { max_seconds: Some(60), ..ExecScope::default() };
        assert!(scope.refusal(&["a"], &[], 60_000).is_none());
        assert!(scope.refusal(&["a"], &[], 60_001).is_some());
    }
}
