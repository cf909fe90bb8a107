//! Replacing one exact piece of text by another.
//!
//! The old text must occur exactly once, so that an edit can never land in the wrong place; when it
//! does not, the error shows what the file has instead.

use thiserror::Error;

/// Lines of the file shown for the closest match.
const MAX_SHOWN_LINES: usize = 12;
/// Characters shown of each.
const MAX_SHOWN_CHARS: usize = 160;
/// Line comparisons spent on the closest match.
const MAX_COMPARISONS: usize = 2_000_000;

/// An edited text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The whole new text.
    pub text: String,
    /// How many places were replaced.
    pub count: usize,
    /// The line of the first, counted from one.
    pub line: usize,
}

/// Why nothing was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EditError {
    #[error("old_text is empty")]
    Empty,
    #[error("old_text and new_text are the same")]
    Same,
    #[error("old_text does not occur in the file")]
    NotFound { closest: Option<Closest> },
    #[error("old_text occurs {count} times, first at lines {}", join(lines))]
    Ambiguous { count: usize, lines: Vec<usize> },
}

/// The place of the file that is most like the text that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closest {
    /// Its first line, counted from one.
    pub line: usize,
    /// What the file has there.
    pub text: String,
    /// True when only blanks or line ends differ.
    pub only_space: bool,
}

impl EditError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            EditError::NotFound { closest: Some(closest) } => {
                let how = if closest.only_space { "only blanks or line ends differ from" } else { "the closest is" };
                Some(format!("{how} line {}:\n{}", closest.line, closest.text))
            }
            EditError::NotFound { closest: None } => {
                Some("read the file and copy the text exactly, with its indentation".to_owned())
            }
            EditError::Ambiguous { .. } => {
                Some("add lines around it to old_text until it is unique, or set replace_all".to_owned())
            }
            EditError::Empty | EditError::Same => None,
        }
    }
}

/// Replaces `old` by `new` in `text`: at its one place, or with `all` at every one.
///
/// # Errors
/// [`EditError`], with the closest place or the places.
pub fn replace(text: &str, old: &str, new: &str, all: bool) -> Result<Edited, EditError> {
    if old.is_empty() {
        return Err(EditError::Empty);
    }
    if old == new {
        return Err(EditError::Same);
    }
    let places: Vec<usize> = text.match_indices(old).map(|(at, _)| at).collect();
    let Some(first) = places.first() else {
        return Err(EditError::NotFound { closest: closest(text, old) });
    };
    // `match_indices` does not see places that overlap the one before; they are places all the same.
    let step = old.chars().next().map_or(1, char::len_utf8);
    let overlaps = text.get(first + step..).is_some_and(|rest| rest.contains(old));
    if !all && overlaps {
        let lines = places.iter().take(10).map(|at| line_of(text, *at)).collect();
        return Err(EditError::Ambiguous { count: places.len().max(2), lines });
    }
    Ok(Edited { text: text.replace(old, new), count: places.len(), line: line_of(text, *first) })
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// The lines of `text` that have most in common with those of `old`.
fn closest(text: &str, old: &str) -> Option<Closest> {
    let lines: Vec<&str> = text.split('\n').collect();
    let wanted: Vec<&str> = old.trim_matches('\n').split('\n').collect();
    if lines.len().saturating_mul(wanted.len()) > MAX_COMPARISONS {
        return None;
    }
    let mut best = (0, 0);
    for start in 0..lines.len() {
        let score: usize = wanted.iter().zip(lines.iter().skip(start)).map(|(a, b)| likeness(a, b)).sum();
        if score > best.0 {
            best = (score, start);
        }
    }
    // Less than half alike is no help.
    if best.0 * 2 < wanted.len() * 100 {
        return None;
    }
    let place: Vec<&str> = lines.iter().skip(best.1).take(wanted.len()).copied().collect();
    let only_space = place.iter().zip(&wanted).all(|(a, b)| words(a).eq(words(b)));
    let shown: Vec<String> = place
        .iter()
        .take(MAX_SHOWN_LINES)
        .map(|line| line.trim_end_matches('\r').chars().take(MAX_SHOWN_CHARS).collect())
        .collect();
    Some(Closest { line: best.1 + 1, text: shown.join("\n"), only_space })
}

fn words(line: &str) -> impl Iterator<Item = char> {
    line.chars().filter(|c| !c.is_whitespace())
}

/// How alike two lines are, 0 to 100: what they share at their start and end, blanks aside.
fn likeness(a: &str, b: &str) -> usize {
    let (a, b) = (a.trim().as_bytes(), b.trim().as_bytes());
    let longer = a.len().max(b.len());
    if longer == 0 || a == b {
        return 100;
    }
    let shorter = a.len().min(b.len());
    let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let end = a.iter().rev().zip(b.iter().rev()).take(shorter - start).take_while(|(a, b)| a == b).count();
    (start + end) * 100 / longer
}

fn join(lines: &[usize]) -> String {
    lines.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CODE: &str = "fn one() {\n    let a = 1;\n}\n\nfn two() {\n    let a = 2;\n}\n";

    #[test]
    fn one_place_is_replaced() {
        let edited = replace(CODE, "let a = 2;", "let b = 3;", false).unwrap();
        assert_eq!(edited.text, CODE.replace("a = 2", "b = 3"));
        assert_eq!((edited.count, edited.line), (1, 6));
        assert_eq!(replace("x", "x", "", false).unwrap().text, "");
    }

    #[test]
    fn several_places_need_replace_all() {
        let error = replace(CODE, "let a", "let b", false).unwrap_err();
        assert_eq!(error, EditError::Ambiguous { count: 2, lines: vec![2, 6] });
        assert!(error.to_string().ends_with("lines 2, 6"));
        let edited = replace(CODE, "let a", "let b", true).unwrap();
        assert_eq!((edited.count, edited.line), (2, 2));
        assert!(matches!(replace("aaa", "aa", "b", false), Err(EditError::Ambiguous { count: 2, .. })));
    }

    #[test]
    fn the_closest_place_is_shown() {
        let error = replace(CODE, "fn two() {\n    let a = 3;\n}", "", false).unwrap_err();
        let EditError::NotFound { closest: Some(closest) } = &error else { panic!("{error:?}") };
        assert_eq!((closest.line, closest.only_space), (5, false));
        assert!(error.hint().unwrap().contains("let a = 2;"));

        let error = replace(CODE, "fn two() {\n\tlet a = 2;\n}", "", false).unwrap_err();
        let EditError::NotFound { closest: Some(closest) } = error else { panic!() };
        assert!(closest.only_space);
        let error = replace("a\r\nb\r\n", "a\nb", "c", false).unwrap_err();
        assert!(error.hint().unwrap().starts_with("only blanks or line ends"));
        assert_eq!(replace(CODE, "struct Unlike;", "", false), Err(EditError::NotFound { closest: None }));
    }

    #[test]
    fn nothing_to_do_is_an_error() {
        assert_eq!(replace(CODE, "", "x", false), Err(EditError::Empty));
        assert_eq!(replace(CODE, "a", "a", true), Err(EditError::Same));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_gives_an_edit_or_an_error(text in "[abä\r\n ]{0,60}", old in "[abä\r\n ]{0,6}", new in "[abä]{0,3}") {
            match replace(&text, &old, &new, false) {
                Ok(edited) => prop_assert_eq!(edited.text, text.replacen(&old, &new, 1)),
                Err(error) => { let _ = error.hint(); prop_assert!(!error.to_string().is_empty()); }
            }
        }
    }
}
