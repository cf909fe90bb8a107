//! Reading a patch.
//!
//! A hunk's body is read by the counts of its header and by nothing else, so that a removed line
//! that begins with `-- ` is never taken for a header. What follows a hunk must be a header or
//! prose: a line left over that looks like a change is an error, because dropping it would change
//! the meaning of the patch.

use std::collections::HashSet;

use thiserror::Error;

use crate::lines::{split_lines, without_line_end, without_newline};
use crate::patch::{FilePatch, Hunk, Intent, Line, LineKind, Patch};
use crate::path::{PathError, read_name, relative};

/// A patch that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("patch line {line}: {kind}")]
pub struct ParseError {
    /// Where, counted from one.
    pub line: usize,
    /// What is wrong.
    pub kind: ParseErrorKind,
}

/// What is wrong with a patch.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ParseErrorKind {
    #[error("no file header (`--- a/PATH` and `+++ b/PATH`) found")]
    NoFiles,
    #[error("hunk without a file header before it")]
    HunkWithoutFile,
    #[error("malformed hunk header `{0}`; expected `@@ -START,COUNT +START,COUNT @@`")]
    HunkHeader(String),
    #[error(
        "hunk header says {old_expected} old and {new_expected} new lines, \
         the body has {old_found} old and {new_found} new"
    )]
    CountMismatch { old_expected: usize, new_expected: usize, old_found: usize, new_found: usize },
    #[error("more lines than the hunk header counts: `{0}`")]
    LeftOver(String),
    #[error("`\\ No newline at end of file` where more lines of that file follow")]
    MisplacedMarker,
    #[error("malformed file header `{0}`")]
    FileHeader(String),
    #[error("the headers name different files: `{old}` and `{new}`")]
    NamesDiffer { old: String, new: String },
    #[error("{0}")]
    Path(#[from] PathError),
    #[error("`{0}` occurs twice; one section per file")]
    Duplicate(String),
    #[error("`{0}` has no hunks")]
    MissingHunks(String),
    #[error("`{0}` is added, but a hunk has lines of an old file")]
    OldLinesInNewFile(String),
    #[error("binary patches are not supported: `{0}`")]
    Binary(String),
    #[error("mode {0} is not supported; regular files have 100644 or 100755")]
    Mode(String),
    #[error("combined diffs are not supported")]
    Combined,
}

impl Patch {
    /// Parses a unified diff: plain, of `git diff`, or of `git format-patch`.
    ///
    /// `root` is a prefix that names may carry (`/workspace`) and that is taken off. Prose before the
    /// first file is skipped.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn parse(text: &[u8], root: Option<&str>) -> Result<Patch, ParseError> {
        let mut parser = Parser { lines: split_lines(text).collect(), at: 0, root };
        let mut files: Vec<FilePatch> = Vec::new();
        let mut seen = HashSet::new();
        let mut prose = true;
        while let Some(line) = parser.peek() {
            if parser.at_file() {
                let file = parser.file()?;
                let also = match &file.intent {
                    Intent::Rename { from } => Some(from.clone()),
                    _ => None,
                };
                for path in also.into_iter().chain([file.path.clone()]) {
                    if !seen.insert(path.clone()) {
                        return Err(ParseError { line: file.line, kind: ParseErrorKind::Duplicate(path) });
                    }
                }
                files.push(file);
                prose = false;
                continue;
            }
            if line.starts_with(b"diff --cc ") || line.starts_with(b"diff --combined ") {
                return Err(parser.error(ParseErrorKind::Combined));
            }
            if is_binary(line) {
                return Err(parser.error(ParseErrorKind::Binary(shown(line))));
            }
            if line.starts_with(b"@@ ") {
                return Err(parser.error(ParseErrorKind::HunkWithoutFile));
            }
            if [&b"From "[..], b"Index: ", b"diff "].iter().any(|start| line.starts_with(start)) {
                prose = true;
            } else if !prose && parser.at_signature() {
                parser.at += 1;
                prose = true;
            } else if !prose && matches!(line.first(), Some(b' ' | b'+' | b'-' | b'\\')) {
                return Err(parser.error(ParseErrorKind::LeftOver(shown(line))));
            }
            parser.at += 1;
        }
        if files.is_empty() {
            return Err(ParseError { line: 1, kind: ParseErrorKind::NoFiles });
        }
        Ok(Patch { files })
    }
}

struct Parser<'a> {
    lines: Vec<&'a [u8]>,
    /// The next line.
    at: usize,
    root: Option<&'a str>,
}

/// One side's name in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    Absent,
    Named(String),
}

/// What the lines before the first hunk say.
#[derive(Default)]
struct Header {
    /// The two names of the `diff --git` line, when they can be told apart.
    git: Option<(String, String)>,
    is_git: bool,
    old: Option<Side>,
    new: Option<Side>,
    added: bool,
    deleted: bool,
    mode: Option<u32>,
    moved_from: Option<String>,
    moved_to: Option<String>,
    is_copy: bool,
    /// The old side carries the epoch as its time, which is how `diff -N` says "no such file".
    old_epoch: bool,
    new_epoch: bool,
    crlf: bool,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a [u8]> {
        self.lines.get(self.at).copied()
    }

    fn error(&self, kind: ParseErrorKind) -> ParseError {
        ParseError { line: self.at + 1, kind }
    }

    /// At `diff --git`, or at `--- ` followed by `+++ `.
    fn at_file(&self) -> bool {
        let Some(line) = self.peek() else {
            return false;
        };
        line.starts_with(b"diff --git ") || self.at_names()
    }

    fn at_names(&self) -> bool {
        let starts = |at: usize, mark: &[u8]| self.lines.get(at).is_some_and(|line| line.starts_with(mark));
        starts(self.at, b"--- ") && starts(self.at + 1, b"+++ ")
    }

    /// At the `-- ` and version that end a mail of `git format-patch`.
    fn at_signature(&self) -> bool {
        let line = |at: usize| self.lines.get(at).map(|line| without_line_end(line));
        matches!(self.peek().map(without_line_end), Some(b"-- " | b"--"))
            && line(self.at + 1).is_some_and(|version| version.first().is_some_and(u8::is_ascii_digit))
            && line(self.at + 2).is_none_or(|next| next.is_empty() || next.starts_with(b"From "))
    }

    fn file(&mut self) -> Result<FilePatch, ParseError> {
        let start = self.at;
        let header = self.header()?;
        let mut hunks = Vec::new();
        while self.peek().is_some_and(|line| line.starts_with(b"@@ ")) {
            hunks.push(self.hunk()?);
        }
        let at = |kind| ParseError { line: start + 1, kind };
        self.assemble(header, hunks, start + 1).map_err(at)
    }

    fn header(&mut self) -> Result<Header, ParseError> {
        let mut header = Header::default();
        if let Some(names) = self.peek().and_then(|line| line.strip_prefix(b"diff --git ")) {
            header.is_git = true;
            header.git = git_names(without_line_end(names)).map_err(|e| self.error(e))?;
            self.at += 1;
            while let Some(line) = self.peek() {
                if !self.extended(without_line_end(line), &mut header)? {
                    break;
                }
                self.at += 1;
            }
        }
        if self.at_names() {
            for mark in [&b"--- "[..], b"+++ "] {
                let line = self.peek().unwrap_or_default();
                header.crlf = line.ends_with(b"\r\n");
                let name = without_line_end(line).strip_prefix(mark).unwrap_or_default();
                let (name, time) = read_name(name, Some(b'\t')).map_err(|e| self.error(e.into()))?;
                let time = time.trim_ascii_start();
                let epoch = time.starts_with(b"1970-01-01") || time.starts_with(b"1969-12-31");
                let side = if name.trim_end() == "/dev/null" { Side::Absent } else { Side::Named(name) };
                if mark == b"--- " {
                    (header.old, header.old_epoch) = (Some(side), epoch);
                } else {
                    (header.new, header.new_epoch) = (Some(side), epoch);
                }
                self.at += 1;
            }
        }
        Ok(header)
    }

    /// One line between `diff --git` and `---`; false when it is none.
    fn extended(&self, line: &[u8], header: &mut Header) -> Result<bool, ParseError> {
        let name = |text: &[u8]| read_name(text, None).map(|(name, _)| name).map_err(|e| self.error(e.into()));
        let mode = |text: &[u8]| match text {
            b"100644" => Ok(0o644),
            b"100755" => Ok(0o755),
            _ => Err(self.error(ParseErrorKind::Mode(shown(text)))),
        };
        if is_binary(line) {
            return Err(self.error(ParseErrorKind::Binary(shown(line))));
        }
        if let Some(text) = line.strip_prefix(b"old mode ") {
            mode(text)?;
        } else if let Some(text) = line.strip_prefix(b"new mode ") {
            header.mode = Some(mode(text)?);
        } else if let Some(text) = line.strip_prefix(b"new file mode ") {
            header.added = true;
            header.mode = Some(mode(text)?);
        } else if let Some(text) = line.strip_prefix(b"deleted file mode ") {
            header.deleted = true;
            mode(text)?;
        } else if let Some(text) = line.strip_prefix(b"rename from ") {
            header.moved_from = Some(name(text)?);
        } else if let Some(text) = line.strip_prefix(b"rename to ") {
            header.moved_to = Some(name(text)?);
        } else if let Some(text) = line.strip_prefix(b"copy from ") {
            header.is_copy = true;
            header.moved_from = Some(name(text)?);
        } else if let Some(text) = line.strip_prefix(b"copy to ") {
            header.moved_to = Some(name(text)?);
        } else if let Some(text) = line.strip_prefix(b"index ") {
            // A third word is the mode of both sides: 120000 is a symlink.
            if let Some(space) = text.iter().position(|&byte| byte == b' ') {
                mode(text.get(space + 1..).unwrap_or_default())?;
            }
        } else {
            return Ok(line.starts_with(b"similarity index ") || line.starts_with(b"dissimilarity index "));
        }
        Ok(true)
    }

    fn assemble(&self, header: Header, mut hunks: Vec<Hunk>, line: usize) -> Result<FilePatch, ParseErrorKind> {
        let empty_side = |count: fn(&Hunk) -> usize| !hunks.is_empty() && hunks.iter().all(|hunk| count(hunk) == 0);
        let added =
            header.added || header.old == Some(Side::Absent) || header.old_epoch && empty_side(|hunk| hunk.old_count);
        let deleted =
            header.deleted || header.new == Some(Side::Absent) || header.new_epoch && empty_side(|hunk| hunk.new_count);
        let named = |side: Option<Side>| match side {
            Some(Side::Named(name)) => Some(name),
            _ => None,
        };
        let (git_old, git_new) = header.git.unzip();
        let old = named(header.old).or(git_old);
        let new = named(header.new).or(git_new);
        let inside = |name: &str| relative(name, self.root);

        let (path, intent) = match (added, deleted, header.moved_from, header.moved_to) {
            (true, true, ..) => {
                return Err(ParseErrorKind::FileHeader("both sides are /dev/null".to_owned()));
            }
            (false, false, Some(from), Some(to)) => {
                let from = inside(&from)?;
                let intent = if header.is_copy { Intent::Copy { from } } else { Intent::Rename { from } };
                (inside(&to)?, intent)
            }
            (.., Some(name), None) | (.., None, Some(name)) => {
                return Err(ParseErrorKind::FileHeader(format!("`{name}` has no counterpart")));
            }
            (true, false, ..) => {
                let new = new.ok_or_else(|| ParseErrorKind::FileHeader("no name".to_owned()))?;
                (inside(new.strip_prefix("b/").unwrap_or(&new))?, Intent::Add)
            }
            (false, true, ..) => {
                let old = old.ok_or_else(|| ParseErrorKind::FileHeader("no name".to_owned()))?;
                (inside(old.strip_prefix("a/").unwrap_or(&old))?, Intent::Delete)
            }
            (false, false, None, None) => {
                let (Some(old), Some(new)) = (old, new) else {
                    return Err(ParseErrorKind::FileHeader("no name".to_owned()));
                };
                (inside(common_name(&old, &new)?)?, Intent::Modify)
            }
        };

        let complete = match &intent {
            Intent::Add | Intent::Delete => header.is_git || !hunks.is_empty(),
            Intent::Modify => header.mode.is_some() || !hunks.is_empty(),
            Intent::Rename { .. } | Intent::Copy { .. } => true,
        };
        if !complete {
            return Err(ParseErrorKind::MissingHunks(path));
        }
        if intent == Intent::Add {
            if hunks.iter().any(|hunk| hunk.old_count > 0) || hunks.len() > 1 {
                return Err(ParseErrorKind::OldLinesInNewFile(path));
            }
            if header.crlf {
                hunks.iter_mut().for_each(Hunk::strip_transport);
            }
        }
        Ok(FilePatch { path, intent, mode: header.mode, hunks, crlf: header.crlf, line })
    }

    fn hunk(&mut self) -> Result<Hunk, ParseError> {
        let header = self.peek().unwrap_or_default();
        let Some([old_start, old_count, new_start, new_count]) = hunk_header(header) else {
            return Err(self.error(ParseErrorKind::HunkHeader(shown(header))));
        };
        let start = self.at;
        self.at += 1;
        let mut lines: Vec<Line> = Vec::new();
        let (mut old_left, mut new_left) = (old_count, new_count);
        let (mut old_ended, mut new_ended) = (false, false);
        loop {
            let line = self.peek();
            if let Some([b'\\', ..]) = line {
                let Some(last) = lines.last_mut() else {
                    return Err(self.error(ParseErrorKind::MisplacedMarker));
                };
                if last.text.pop() != Some(b'\n') {
                    return Err(self.error(ParseErrorKind::MisplacedMarker));
                }
                old_ended |= last.kind != LineKind::Added;
                new_ended |= last.kind != LineKind::Removed;
                self.at += 1;
                continue;
            }
            if old_left == 0 && new_left == 0 {
                break;
            }
            let (kind, text) = match line {
                Some([b'-', text @ ..]) => (LineKind::Removed, text),
                Some([b'+', text @ ..]) => (LineKind::Added, text),
                Some([b' ', text @ ..]) => (LineKind::Context, text),
                // A blank context line whose single space an editor took away.
                Some(text @ (b"\n" | b"\r\n")) => (LineKind::Context, text),
                _ => {
                    return Err(mismatch(start, [old_count, new_count], [old_left, new_left]));
                }
            };
            let (old, new) = (kind != LineKind::Added, kind != LineKind::Removed);
            if old && old_left == 0 || new && new_left == 0 {
                return Err(mismatch(start, [old_count, new_count], [old_left, new_left]));
            }
            if old && old_ended || new && new_ended {
                return Err(self.error(ParseErrorKind::MisplacedMarker));
            }
            old_left -= usize::from(old);
            new_left -= usize::from(new);
            let mut text = text.to_vec();
            // The patch text itself may have lost its final newline.
            if !text.ends_with(b"\n") {
                text.push(b'\n');
            }
            lines.push(Line { kind, text });
            self.at += 1;
        }
        Ok(Hunk { old_start, old_count, new_start, new_count, lines, line: start + 1 })
    }
}

impl Hunk {
    /// Takes the carriage returns off that a CR LF transport put at the line ends.
    pub(crate) fn strip_transport(&mut self) {
        for line in &mut self.lines {
            if line.text.ends_with(b"\r\n") {
                line.text.truncate(line.text.len() - 2);
                line.text.push(b'\n');
            }
        }
    }
}

fn mismatch(start: usize, [old, new]: [usize; 2], [old_left, new_left]: [usize; 2]) -> ParseError {
    ParseError {
        line: start + 1,
        kind: ParseErrorKind::CountMismatch {
            old_expected: old,
            new_expected: new,
            old_found: old - old_left,
            new_found: new - new_left,
        },
    }
}

/// `@@ -a,b +c,d @@` with the counts optional.
fn hunk_header(line: &[u8]) -> Option<[usize; 4]> {
    let line = std::str::from_utf8(line.get(..line.len().min(100))?)
        .map_or_else(|e| line.get(..e.valid_up_to()).unwrap_or_default(), str::as_bytes);
    let line = std::str::from_utf8(line).ok()?.strip_prefix("@@ -")?;
    let (ranges, _) = line.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // Within u32, so that sums of positions cannot overflow.
        plain.then(|| text.parse::<u32>().ok()).flatten().and_then(|n| usize::try_from(n).ok())
    };
    let range = |text: &str| match text.split_once(',') {
        Some((start, count)) => Some((number(start)?, number(count)?)),
        None => Some((number(text)?, 1)),
    };
    let ((old_start, old_count), (new_start, new_count)) = (range(old)?, range(new)?);
    Some([old_start, old_count, new_start, new_count])
}

/// The two names after `diff --git `. Unquoted names with spaces can be told apart only when they
/// are the same but for the prefix, which they are where nothing else names the file.
fn git_names(text: &[u8]) -> Result<Option<(String, String)>, ParseErrorKind> {
    if text.starts_with(b"\"") {
        let (old, rest) = read_name(text, None)?;
        let (new, _) = read_name(rest.strip_prefix(b" ").unwrap_or(rest), None)?;
        return Ok(Some((old, new)));
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return Err(PathError::NotUtf8(shown(text)).into());
    };
    if let Some((old, new)) = text.split_once(" \"") {
        let (new, _) = read_name(format!("\"{new}").as_bytes(), None)?;
        return Ok(Some((old.to_owned(), new)));
    }
    let middle = text.len() / 2;
    let split = text
        .get(..middle)
        .zip(text.get(middle + 1..))
        .filter(|(old, new)| text.as_bytes().get(middle) == Some(&b' ') && common_name(old, new).is_ok());
    Ok(split.map(|(old, new)| (old.to_owned(), new.to_owned())))
}

/// The file that both names mean: the same name, or the same behind two one-letter prefixes
/// (`a/` and `b/`; git also writes `i/`, `w/`, `c/` and `o/`).
fn common_name<'n>(old: &'n str, new: &'n str) -> Result<&'n str, ParseErrorKind> {
    let bare = |name: &'n str| match name.as_bytes() {
        [b'a' | b'b' | b'c' | b'i' | b'o' | b'w', b'/', ..] => name.get(2..),
        _ => None,
    };
    match (bare(old), bare(new)) {
        (Some(a), Some(b)) if a == b && old != new => Ok(a),
        // `a/x` on both sides is as likely a directory `a`; git writes it only for `--no-prefix`.
        _ if old == new => Ok(old),
        _ => Err(ParseErrorKind::NamesDiffer { old: old.to_owned(), new: new.to_owned() }),
    }
}

fn is_binary(line: &[u8]) -> bool {
    line.starts_with(b"GIT binary patch")
        || line.starts_with(b"Binary files ") && without_line_end(line).ends_with(b" differ")
}

/// A line for a message: text, and not too long.
fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(without_newline(line)).chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Patch, ParseErrorKind> {
        Patch::parse(text.as_bytes(), Some("/workspace")).map_err(|error| error.kind)
    }

    fn only(text: &str) -> FilePatch {
        let mut patch = parse(text).expect("a patch");
        assert_eq!(patch.files.len(), 1);
        patch.files.remove(0)
    }

    #[test]
    fn a_removed_line_that_looks_like_a_header_is_a_line() {
        let file = only("--- a/q.sql\n+++ b/q.sql\n@@ -1,2 +1 @@\n--- drop\n+++ keep\n-x\n");
        let texts: Vec<&[u8]> = file.hunks[0].lines.iter().map(|line| &line.text[..]).collect();
        assert_eq!(texts, [&b"-- drop\n"[..], b"++ keep\n", b"x\n"]);
    }

    #[test]
    fn git_headers_say_what_happens() {
        let new = only("diff --git a/x b/x\nnew file mode 100755\nindex 0000000..e69de29\n");
        assert_eq!((new.intent, new.mode, new.hunks.len()), (Intent::Add, Some(0o755), 0));
        let gone = only("diff --git a/x y b/x y\ndeleted file mode 100644\nindex e69de29..0000000\n");
        assert_eq!((gone.path.as_str(), gone.intent), ("x y", Intent::Delete));
        let mode = only("diff --git a/x b/x\nold mode 100644\nnew mode 100755\n");
        assert_eq!((mode.intent, mode.mode), (Intent::Modify, Some(0o755)));
        let moved = only("diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to y\n");
        assert_eq!((moved.path.as_str(), moved.intent), ("y", Intent::Rename { from: "x".into() }));
    }

    #[test]
    fn names_are_read_in_every_form() {
        let hunk = "@@ -1 +1 @@\n-a\n+b\n";
        for (old, new, path) in [
            ("a/x", "b/x", "x"),
            ("x", "x", "x"),
            ("/workspace/d/x", "/workspace/d/x", "d/x"),
            ("a/x\t2024-01-01 00:00:00.0 +0000", "b/x\t2024-01-01 00:00:00.0 +0000", "x"),
            ("\"a/\\303\\244 b\"", "\"b/\\303\\244 b\"", "ä b"),
            ("i/x", "w/x", "x"),
        ] {
            assert_eq!(only(&format!("--- {old}\n+++ {new}\n{hunk}")).path, path, "{old}");
        }
        for (old, new) in [("a/x", "b/y"), ("a/../x", "b/../x"), ("/etc/x", "/etc/x")] {
            assert!(parse(&format!("--- {old}\n+++ {new}\n{hunk}")).is_err(), "{old}");
        }
    }

    #[test]
    fn blank_context_may_have_lost_its_space() {
        let file = only("--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n\n-a\n+b\n\n");
        assert_eq!(file.hunks[0].lines[0], Line { kind: LineKind::Context, text: b"\n".to_vec() });
        assert_eq!(file.hunks[0].lines.len(), 4);
    }

    #[test]
    fn wrong_counts_are_errors_not_guesses() {
        let head = "--- a/x\n+++ b/x\n";
        assert!(matches!(
            parse(&format!("{head}@@ -1,3 +1,3 @@\n a\n-b\n+c\n")),
            Err(ParseErrorKind::CountMismatch { old_found: 2, new_found: 2, .. })
        ));
        assert!(matches!(parse(&format!("{head}@@ -1 +1 @@\n-b\n+c\n+d\n")), Err(ParseErrorKind::LeftOver(_))));
        assert!(matches!(parse(&format!("{head}@@ -1 +1 @@\n-b\n+c\n\n d\n")), Err(ParseErrorKind::LeftOver(_))));
        assert!(matches!(parse(&format!("{head}@@ -x +1 @@\n")), Err(ParseErrorKind::HunkHeader(_))));
        assert!(matches!(
            parse(&format!("{head}@@ -1,2 +1 @@\n-a\n\\ No newline at end of file\n-b\n+c\n")),
            Err(ParseErrorKind::MisplacedMarker)
        ));
    }

    #[test]
    fn what_is_not_supported_says_so() {
        let git = "diff --git a/x b/x\n";
        assert!(matches!(
            parse(&format!("{git}index 1..2\nBinary files a/x and b/x differ\n")),
            Err(ParseErrorKind::Binary(_))
        ));
        assert!(matches!(parse(&format!("{git}index 1..2\nGIT binary patch\n")), Err(ParseErrorKind::Binary(_))));
        assert!(matches!(parse(&format!("{git}new file mode 120000\n")), Err(ParseErrorKind::Mode(_))));
        assert!(matches!(parse(&format!("{git}index 1..2 120000\n")), Err(ParseErrorKind::Mode(_))));
        assert!(matches!(parse("diff --cc x\n"), Err(ParseErrorKind::Combined)));
        assert!(matches!(parse("@@ -1 +1 @@\n-a\n+b\n"), Err(ParseErrorKind::HunkWithoutFile)));
        assert!(matches!(parse("hello\n"), Err(ParseErrorKind::NoFiles)));
        assert!(matches!(parse(git), Err(ParseErrorKind::MissingHunks(_))));
        let twice = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n".repeat(2);
        assert!(matches!(parse(&twice), Err(ParseErrorKind::Duplicate(_))));
    }

    #[test]
    fn mails_and_epoch_times_are_understood() {
        let mail = "From 0123 Mon Sep 17 00:00:00 2001\nSubject: x\n\n- a list\n---\n x | 2 +-\n\n\
                    diff --git a/x b/x\nindex 1..2 100644\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n-- \n2.47.3\n\n";
        assert_eq!(only(mail).hunks.len(), 1);
        let new =
            only("--- a/x\t1970-01-01 00:00:00.0 +0000\n+++ b/x\t2024-01-01 00:00:00.0 +0000\n@@ -0,0 +1 @@\n+a\n");
        assert_eq!(new.intent, Intent::Add);
    }
}
