//! Which paths a search passes over: what `.gitignore` and `.ignore` files name, what is hidden, and
//! what the caller's globs leave out. The rules and their order are ripgrep's, except that a
//! `.gitignore` counts whether or not there is a repository.

use std::collections::HashMap;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use ignore::overrides::{Override, OverrideBuilder};

/// What a search leaves out.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Globs as ripgrep's `-g`: a file must match one; a leading `!` leaves out what matches.
    pub globs: Vec<String>,
    /// Also files and directories whose name begins with a dot.
    pub hidden: bool,
    /// Also what ignore files name.
    pub no_ignore: bool,
}

/// A glob that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("glob `{glob}`: {reason}")]
pub struct GlobError {
    glob: String,
    reason: String,
}

/// Decides about paths, all relative to one root.
pub struct Ignored {
    overrides: Override,
    hidden: bool,
    no_ignore: bool,
    /// By directory, the root being the empty path.
    rules: HashMap<String, Rules>,
    /// Directories decided about.
    decided: HashMap<String, bool>,
}

#[derive(Default)]
struct Rules {
    git: Option<Gitignore>,
    own: Option<Gitignore>,
}

impl Ignored {
    /// # Errors
    /// A malformed glob of the caller.
    pub fn new(selection: &Selection) -> Result<Self, GlobError> {
        // An absolute root, because `ignore` takes a relative `.` away from paths that begin so.
        let mut overrides = OverrideBuilder::new("/");
        for glob in &selection.globs {
            let error = |error: ignore::Error| GlobError { glob: glob.clone(), reason: error.to_string() };
            overrides.add(glob).map_err(error)?;
        }
        let overrides = overrides
            .build()
            .map_err(|error| GlobError { glob: selection.globs.join(" "), reason: error.to_string() })?;
        Ok(Ignored {
            overrides,
            hidden: selection.hidden,
            no_ignore: selection.no_ignore,
            rules: HashMap::new(),
            decided: HashMap::new(),
        })
    }

    /// Takes the text of `.gitignore` or, when `git` is false, `.ignore` of a directory. A malformed
    /// line is passed over, as git does.
    pub fn add_rules(&mut self, directory: &str, git: bool, text: &str) {
        let mut builder = GitignoreBuilder::new(format!("/{directory}"));
        for line in text.lines() {
            let _ = builder.add_line(None, line);
        }
        let Ok(built) = builder.build() else { return };
        let rules = self.rules.entry(directory.to_owned()).or_default();
        *(if git { &mut rules.git } else { &mut rules.own }) = Some(built);
    }

    /// Returns whether a search passes over the file at `path`.
    pub fn skips_file(&mut self, path: &str) -> bool {
        let mut at = 0;
        while let Some(slash) = path.get(at..).and_then(|rest| rest.find('/')) {
            let directory = path.get(..at + slash).unwrap_or_default();
            let skipped = match self.decided.get(directory) {
                Some(skipped) => *skipped,
                None => {
                    let skipped = self.skips(directory, true);
                    self.decided.insert(directory.to_owned(), skipped);
                    skipped
                }
            };
            if skipped {
                return true;
            }
            at += slash + 1;
        }
        self.skips(path, false)
    }

    fn skips(&self, path: &str, is_directory: bool) -> bool {
        let whole = format!("/{path}");
        match self.overrides.matched(&whole, is_directory) {
            Match::Ignore(_) => return true,
            Match::Whitelist(_) => return false,
            Match::None => {}
        }
        if !self.no_ignore {
            let by = |pick: fn(&Rules) -> Option<&Gitignore>| {
                let mut directory = path;
                loop {
                    directory = directory.rsplit_once('/').map_or("", |(parent, _)| parent);
                    let decision = self.rules.get(directory).and_then(pick).map(|rules| {
                        let decision = rules.matched(&whole, is_directory);
                        (decision.is_ignore(), decision.is_whitelist())
                    });
                    if let Some((ignore, keep)) = decision
                        && (ignore || keep)
                    {
                        return Some(ignore);
                    }
                    if directory.is_empty() {
                        return None;
                    }
                }
            };
            if let Some(ignored) = by(|rules| rules.own.as_ref()).or_else(|| by(|rules| rules.git.as_ref())) {
                // A rule that keeps a path keeps a hidden one too.
                return ignored;
            }
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        !self.hidden && name.starts_with('.')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(selection: &Selection, rules: &[(&str, bool, &str)], paths: &[&str]) -> Vec<String> {
        let mut ignored = Ignored::new(selection).expect("globs");
        for (directory, git, text) in rules {
            ignored.add_rules(directory, *git, text);
        }
        paths.iter().filter(|path| !ignored.skips_file(path)).map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn ignore_files_count_from_their_directory_down() {
        let rules = [
            ("", true, "# comment\ntarget/\n*.log\n/only-top\nbuild/*\n!build/keep\n"),
            ("sub", true, "!important.log\nlocal\n"),
            ("vendor", false, "!*.log\n"),
        ];
        let paths = [
            "a.rs",
            "target/x",
            "sub/target/y",
            "x.log",
            "sub/important.log",
            "sub/local",
            "sub/d/local",
            "local",
            "only-top",
            "sub/only-top",
            "build/x",
            "build/keep",
            "vendor/z.log",
        ];
        assert_eq!(
            shown(&Selection::default(), &rules, &paths),
            ["a.rs", "sub/important.log", "local", "sub/only-top", "build/keep", "vendor/z.log"]
        );
        let all = Selection { no_ignore: true, ..Selection::default() };
        assert_eq!(shown(&all, &rules, &paths).len(), paths.len());
    }

    #[test]
    fn hidden_paths_are_left_out() {
        let paths = [".env", "a/.git/config", "a/b", ".github/x"];
        assert_eq!(shown(&Selection::default(), &[], &paths), ["a/b"]);
        assert_eq!(shown(&Selection::default(), &[("", true, "!.github\n")], &paths), ["a/b", ".github/x"]);
        assert_eq!(shown(&Selection { hidden: true, ..Selection::default() }, &[], &paths).len(), 4);
    }

    #[test]
    fn globs_choose_files() {
        let paths = ["a.rs", "b.py", "src/c.rs", "src/d.py", "test/e.rs", ".h.rs"];
        let with = |globs: &[&str]| {
            let globs = globs.iter().map(|glob| (*glob).to_owned()).collect();
            shown(&Selection { globs, ..Selection::default() }, &[("", true, "b.py\n")], &paths)
        };
        assert_eq!(with(&["*.rs"]), ["a.rs", "src/c.rs", "test/e.rs", ".h.rs"]);
        assert_eq!(with(&["src/**"]), ["src/c.rs", "src/d.py"]);
        assert_eq!(with(&["!test", "!*.py"]), ["a.rs", "src/c.rs"]);
        assert_eq!(with(&["*.{py,txt}"]), ["b.py", "src/d.py"]);
        assert!(Ignored::new(&Selection { globs: vec!["a{b".into()], ..Selection::default() }).is_err());
    }
}
