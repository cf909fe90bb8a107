//! What a component may do: one grant per gated interface, with scopes that are checked on every call.

use serde::Serialize;

/// The grants of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GrantSet {
    /// `pyro:vm/machines`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machines: Option<MachinesScope>,
    /// `pyro:vm/exec`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecScope>,
}

/// Which machines a component may make. Every key narrows; an empty scope allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachinesScope {
    /// Patterns of environment names, `*` for any run of characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environments: Option<Vec<String>>,
}

/// Which commands a component may run. Every key narrows; an empty scope allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExecScope {
    /// Patterns of command lines, one word per argument. `*` in a word stands for any run of characters, a last word
    /// `*` for any further arguments, also none. A shell line counts as the arguments `sh`, `-lc`, LINE.
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
    pub(crate) const NAMES: [&'static str; 2] = ["machines", "exec"];

    /// Returns the names that are granted, in the order of [`GrantSet::NAMES`].
    pub fn names(&self) -> Vec<&'static str> {
        let granted = [self.machines.is_some(), self.exec.is_some()];
        GrantSet::NAMES.into_iter().zip(granted).filter(|(_, granted)| *granted).map(|(name, _)| name).collect()
    }

    /// Returns whether a component with these grants can change or remove anything that outlives a call. The machines
    /// it can make today end with the call, so it cannot.
    pub(crate) fn can_destroy(&self) -> bool {
        false
    }

    /// Returns whether a component with these grants can reach a network. No grant of today leads to one.
    pub(crate) fn can_reach_network(&self) -> bool {
        false
    }
}

impl MachinesScope {
    /// Returns why `environment` may not be used, when it may not.
    pub(crate) fn refusal(&self, environment: &str) -> Option<String> {
        let patterns = self.environments.as_ref()?;
        if patterns.iter().any(|pattern| glob(pattern, environment)) {
            return None;
        }
        Some(format!("environment `{environment}` is outside the grant `machines` ({})", patterns.join(", ")))
    }
}

impl ExecScope {
    /// Returns why a command may not be run, when it may not.
    pub(crate) fn refusal(&self, argv: &[&str], env: &[(String, String)], timeout_ms: u64) -> Option<String> {
        if let Some(patterns) = &self.argv
            && !patterns.iter().any(|pattern| argv_matches(pattern, argv))
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

fn argv_matches(pattern: &str, argv: &[&str]) -> bool {
    let words: Vec<&str> = pattern.split_whitespace().collect();
    match words.split_last() {
        None => false,
        Some((&"*", head)) if !head.is_empty() => {
            argv.len() >= head.len() && head.iter().zip(argv).all(|(word, argument)| glob(word, argument))
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
    fn a_command_pattern_matches_word_by_word() {
        let scope = ExecScope { argv: Some(vec!["rg *".to_owned(), "git status".to_owned()]), ..ExecScope::default() };
        let allowed = |argv: &[&str]| scope.refusal(argv, &[], 1000).is_none();
        assert!(allowed(&["rg"]));
        assert!(allowed(&["rg", "-n", "a b"]));
        assert!(allowed(&["git", "status"]));
        assert!(!allowed(&["git", "status", "-s"]));
        assert!(!allowed(&["/tmp/rg"]));
        assert!(!allowed(&["sh", "-lc", "rg x"]));
        assert!(!allowed(&[]));
        // One argument with a space is not two words.
        assert!(!allowed(&["git status"]));
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
