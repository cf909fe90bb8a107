//! What is wrong in a profile or in a component it names, in a form that a person and a program can act on.

use std::fmt;

use serde::Serialize;

/// One finding: where it stands, the fact, and the next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// A stable lower-case code, as `unknown_key` or `missing_grant`.
    pub code: &'static str,
    /// The profile's file, or its built-in name.
    pub file: String,
    /// Line of the finding, from 1; none when it concerns the whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The fact, in lower case and with the value.
    pub message: String,
    /// The next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message)?,
            None => write!(f, "{}: {}", self.file, self.message)?,
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {}", hint.replace('\n', "\n        "))?;
        }
        Ok(())
    }
}

/// Why a profile cannot be used: every finding, not only the first, in the order of the file.
#[derive(Clone, Debug, thiserror::Error, Serialize)]
pub struct LoadError {
    /// At least one finding.
    pub diagnostics: Vec<Diagnostic>,
}

impl LoadError {
    /// Returns the error for `diagnostics`, sorted by line.
    pub(crate) fn new(mut diagnostics: Vec<Diagnostic>) -> LoadError {
        diagnostics.sort_by_key(|d| d.line.unwrap_or(usize::MAX));
        diagnostics.dedup();
        LoadError { diagnostics }
    }

    /// Returns the code of the first finding.
    pub fn code(&self) -> &'static str {
        self.diagnostics.first().map_or("invalid_profile", |d| d.code)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

/// Returns the candidate nearest to `word`, when it is near enough to be what was meant.
pub(crate) fn suggestion<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = match word.chars().count() {
        0..=3 => 1,
        4..=7 => 2,
        _ => 3,
    };
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns the names as a sentence part, `` `a`, `b` and `c` ``.
pub(crate) fn name_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        None => "none".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let known = ["grants", "source", "digest"];
        assert_eq!(suggestion("grant", known), Some("grants"));
        assert_eq!(suggestion("sorce", known), Some("source"));
        assert_eq!(suggestion("network", known), None);
        assert_eq!(suggestion("abc", ["abd"]), Some("abd"));
        assert_eq!(suggestion("x", ["abc"]), None);
    }

    #[test]
    fn names_read_as_a_sentence() {
        assert_eq!(name_list([]), "none");
        assert_eq!(name_list(["a"]), "`a`");
        assert_eq!(name_list(["a", "b", "c"]), "`a`, `b` and `c`");
    }
}
