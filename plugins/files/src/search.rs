//! Searching a tree, with ripgrep's own engine.

use std::io::{self, Read, Seek};

use grep_matcher::Matcher;
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{
    BinaryDetection, Searcher, SearcherBuilder, Sink, SinkContext, SinkContextKind, SinkFinish, SinkMatch,
};
use pyro_plugin_sdk::ToolError;
use pyro_tree::{EntryKind, Tree, TreeError};
use thiserror::Error;

use crate::ignored::{GlobError, Ignored, Selection};

/// A larger file is passed over and counted: it would not fit beside everything else.
const MAX_FILE: u64 = 8 << 20;
/// Characters shown of a line; a longer one shows the part around its first match.
const MAX_LINE_CHARS: usize = 400;
/// Bytes of all shown lines.
const MAX_TEXT: usize = 256 * 1024;
/// Bytes of a compiled pattern.
const MAX_PATTERN_SIZE: usize = 8 << 20;

/// What to look for.
#[derive(Debug, Clone)]
pub struct Query {
    /// A regular expression of the `regex` crate, or with `literal` plain text.
    pub pattern: String,
    /// Take the pattern as text.
    pub literal: bool,
    /// How letters compare.
    pub case: Case,
    /// Lines shown around a match.
    pub context: usize,
    /// Matching lines at most.
    pub max_results: usize,
    /// Where to look.
    pub selection: Selection,
}

/// How letters compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// `a` is not `A`.
    Sensitive,
    /// `a` is `A`.
    Insensitive,
    /// Insensitive unless the pattern has an upper-case letter.
    Smart,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// By path, then by line.
    pub matches: Vec<LineMatch>,
    /// Files looked into.
    pub files_searched: usize,
    /// Files with a match.
    pub files_matched: usize,
    /// Files passed over because they hold a NUL.
    pub binary_skipped: usize,
    /// Files passed over because of their size.
    pub large_skipped: usize,
    /// True when there may be more matches.
    pub truncated: bool,
}

/// One matching line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineMatch {
    /// Relative to the root of the search's paths.
    pub path: String,
    /// Counted from one.
    pub line: u64,
    /// Characters before the first match, plus one.
    pub column: usize,
    /// The line without its end.
    pub text: String,
    /// Lines before it that no earlier match shows.
    pub before: Vec<String>,
    /// Lines behind it, up to the next match.
    pub after: Vec<String>,
}

/// Why a search cannot be made.
#[derive(Debug, Error)]
pub enum SearchError {
    #[error("pattern `{pattern}`: {reason}")]
    Pattern { pattern: String, reason: String },
    #[error(transparent)]
    Glob(#[from] GlobError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{}", .0.message)]
    Guest(ToolError),
}

/// A file: its path below the directory that is searched, and its bytes.
pub type FileSize = (String, u64);

/// A search whose pattern and globs are understood.
pub struct Search {
    query: Query,
    matcher: RegexMatcher,
    ignored: Ignored,
}

impl Search {
    /// # Errors
    /// A malformed pattern or glob.
    pub fn new(query: Query) -> Result<Search, SearchError> {
        let matcher = matcher(&query)?;
        let ignored = Ignored::new(&query.selection)?;
        Ok(Search { query, matcher, ignored })
    }

    /// Takes the text of an ignore file: its directory, whether it is a `.gitignore`, its text.
    pub fn add_rules(&mut self, directory: &str, git: bool, text: &str) {
        self.ignored.add_rules(directory, git, text);
    }

    /// The ignore files among `files` that count.
    pub fn ignore_files<'f>(&self, files: &'f [FileSize]) -> Vec<&'f FileSize> {
        let is_rules = |path: &str| matches!(name_of(path).1, ".gitignore" | ".ignore");
        files.iter().filter(|(path, _)| !self.query.selection.no_ignore && is_rules(path)).collect()
    }

    /// Takes the ignore files among `files`, whose paths lie below `prefix` (empty, or ending in `/`).
    ///
    /// # Errors
    /// Those of `read`, which is given a path, and the bytes that are wanted.
    pub fn read_rules(
        &mut self,
        prefix: &str,
        files: &[FileSize],
        read: &mut impl FnMut(&str, u64) -> Result<Vec<u8>, SearchError>,
    ) -> Result<(), SearchError> {
        for (path, size) in self.ignore_files(files) {
            let text = read(path, (*size).min(1 << 20))?;
            let (directory, name) = name_of(path);
            let directory = format!("{prefix}{directory}");
            let directory = directory.trim_end_matches('/');
            self.ignored.add_rules(directory, name == ".gitignore", &String::from_utf8_lossy(&text));
        }
        Ok(())
    }

    /// How many of `files` a search reads, and how many bytes these have.
    pub fn wanted(&mut self, prefix: &str, files: &[FileSize]) -> (usize, u64) {
        let ignored = &mut self.ignored;
        let wanted =
            files.iter().filter(|(path, size)| *size <= MAX_FILE && !ignored.skips_file(&format!("{prefix}{path}")));
        wanted.fold((0, 0), |(count, bytes), (_, size)| (count + 1, bytes + size))
    }

    /// Searches `files`, whose paths lie below `prefix`.
    ///
    /// # Errors
    /// Those of `read`, which is given a path, and the bytes that are wanted.
    pub fn run(
        &mut self,
        prefix: &str,
        files: &[FileSize],
        read: &mut impl FnMut(&str, u64) -> Result<Vec<u8>, SearchError>,
    ) -> Result<Found, SearchError> {
        let Search { query, matcher, ignored } = self;
        let mut searcher = SearcherBuilder::new()
            .line_number(true)
            .before_context(query.context)
            .after_context(query.context)
            .binary_detection(BinaryDetection::quit(0))
            .heap_limit(Some(16 << 20))
            .build();
        let mut found = Found::default();
        let mut text_left = MAX_TEXT;
        for (path, size) in files {
            let size = *size;
            let whole = format!("{prefix}{path}");
            if ignored.skips_file(&whole) {
                continue;
            }
            if size > MAX_FILE {
                found.large_skipped += 1;
                continue;
            }
            let left = query.max_results.saturating_sub(found.matches.len());
            let content = read(path, size)?;
            let mut sink = Lines {
                matcher,
                path: &whole,
                out: Vec::new(),
                before: Vec::new(),
                left,
                text_left,
                binary: false,
                full: false,
            };
            searcher.search_slice(&*matcher, &content, &mut sink).map_err(TreeError::Read)?;
            found.files_searched += 1;
            if sink.binary {
                found.binary_skipped += 1;
                continue;
            }
            text_left = sink.text_left;
            found.files_matched += usize::from(!sink.out.is_empty());
            found.matches.append(&mut sink.out);
            if sink.full {
                found.truncated = true;
                break;
            }
        }
        Ok(found)
    }
}

/// The files of an archive, by path.
pub fn files_of<R: Read + Seek>(tree: &Tree<R>) -> Vec<FileSize> {
    let files = tree.entries().iter().filter_map(|(path, entry)| match entry.kind {
        EntryKind::File { size, .. } => Some((path.clone(), size)),
        _ => None,
    });
    files.collect()
}

fn name_of(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn matcher(query: &Query) -> Result<RegexMatcher, SearchError> {
    RegexMatcherBuilder::new()
        .line_terminator(Some(b'\n'))
        .fixed_strings(query.literal)
        .case_insensitive(query.case == Case::Insensitive)
        .case_smart(query.case == Case::Smart)
        .size_limit(MAX_PATTERN_SIZE)
        .dfa_size_limit(MAX_PATTERN_SIZE)
        .build(&query.pattern)
        .map_err(|error| SearchError::Pattern { pattern: query.pattern.clone(), reason: error.to_string() })
}

/// Collects the lines of one file.
struct Lines<'a> {
    matcher: &'a RegexMatcher,
    path: &'a str,
    out: Vec<LineMatch>,
    before: Vec<String>,
    left: usize,
    text_left: usize,
    binary: bool,
    /// A match had no room.
    full: bool,
}

impl Lines<'_> {
    fn take(&mut self, line: String) -> Option<String> {
        self.text_left = self.text_left.checked_sub(line.len())?;
        Some(line)
    }
}

impl Sink for Lines<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> Result<bool, io::Error> {
        let bytes = found.bytes();
        let start = self.matcher.find(bytes).ok().flatten().map_or(0, |place| place.start());
        let shown = show(bytes, start);
        let fits = self.left > self.out.len();
        let Some(text) = fits.then(|| self.take(shown)).flatten() else {
            self.full = true;
            return Ok(false);
        };
        let ahead = String::from_utf8_lossy(bytes.get(..start).unwrap_or_default());
        self.out.push(LineMatch {
            path: self.path.to_owned(),
            line: found.line_number().unwrap_or(0),
            column: ahead.chars().count() + 1,
            text,
            before: std::mem::take(&mut self.before),
            after: Vec::new(),
        });
        Ok(true)
    }

    fn context(&mut self, _: &Searcher, context: &SinkContext<'_>) -> Result<bool, io::Error> {
        let Some(line) = self.take(show(context.bytes(), 0)) else {
            self.full = true;
            return Ok(false);
        };
        match (context.kind(), self.out.last_mut()) {
            (SinkContextKind::After, Some(last)) => last.after.push(line),
            _ => self.before.push(line),
        }
        Ok(true)
    }

    fn binary_data(&mut self, _: &Searcher, _: u64) -> Result<bool, io::Error> {
        self.binary = true;
        Ok(false)
    }

    fn finish(&mut self, _: &Searcher, finish: &SinkFinish) -> Result<(), io::Error> {
        self.binary |= finish.binary_byte_offset().is_some();
        Ok(())
    }
}

/// A line for the result: without its end, and the part around `start` when it is long.
fn show(line: &[u8], start: usize) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Four bytes a character at most.
    let from = if start > MAX_LINE_CHARS { start - MAX_LINE_CHARS / 4 } else { 0 };
    let to = line.len().min(from + MAX_LINE_CHARS * 4);
    let part = String::from_utf8_lossy(line.get(from..to).unwrap_or_default());
    let mut text: String = part
        .trim_start_matches(if from > 0 { char::REPLACEMENT_CHARACTER } else { '\0' })
        .chars()
        .take(MAX_LINE_CHARS)
        .collect();
    if from > 0 {
        text.insert(0, '…');
    }
    if to < line.len() || part.chars().count() > MAX_LINE_CHARS {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use pyro_tree::TreeLimits;

    use super::*;

    fn tree(files: &[(&str, &[u8])]) -> Tree<Cursor<Vec<u8>>> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, *content).expect("append");
        }
        Tree::index(Cursor::new(builder.into_inner().expect("tar")), &TreeLimits::default()).expect("tree")
    }

    fn query(pattern: &str) -> Query {
        Query {
            pattern: pattern.to_owned(),
            literal: false,
            case: Case::Sensitive,
            context: 0,
            max_results: 100,
            selection: Selection::default(),
        }
    }

    fn search(
        tree: &Tree<Cursor<Vec<u8>>>,
        prefix: &str,
        parents: &[(String, bool, String)],
        query: &Query,
    ) -> Result<Found, SearchError> {
        let mut search = Search::new(query.clone())?;
        for (directory, git, text) in parents {
            search.add_rules(directory, *git, text);
        }
        let files = files_of(tree);
        let mut read = |path: &str, size| Ok(tree.read(path, 0, size)?);
        search.read_rules(prefix, &files, &mut read)?;
        search.run(prefix, &files, &mut read)
    }

    fn run(files: &[(&str, &[u8])], query: &Query) -> Found {
        search(&tree(files), "", &[], query).expect("a search")
    }

    fn lines(found: &Found) -> Vec<String> {
        found.matches.iter().map(|m| format!("{}:{}:{}:{}", m.path, m.line, m.column, m.text)).collect()
    }

    const FILES: &[(&str, &[u8])] = &[
        ("a.rs", b"fn main() {\n    let x = foo(1);\n}\r\n"),
        ("b/c.py", "# caf\u{e9} foo\nFOO = 1\n".as_bytes()),
        ("bin", b"foo\n\0foo\n"),
        (".hidden", b"foo\n"),
        (".gitignore", b"*.log\n"),
        ("x.log", b"foo\n"),
    ];

    #[test]
    fn lines_are_found_with_their_place() {
        let found = run(FILES, &query("foo"));
        assert_eq!(lines(&found), ["a.rs:2:13:    let x = foo(1);", "b/c.py:1:8:# café foo"]);
        assert_eq!(
            (found.files_matched, found.files_searched, found.binary_skipped, found.truncated),
            (2, 3, 1, false)
        );
    }

    #[test]
    fn case_and_literal_text() {
        let with = |pattern: &str, literal, case| run(FILES, &Query { literal, case, ..query(pattern) }).matches.len();
        assert_eq!(with("foo", false, Case::Insensitive), 3);
        assert_eq!(with("foo", false, Case::Smart), 3);
        assert_eq!(with("FOO", false, Case::Smart), 1);
        assert_eq!(with("foo(", true, Case::Sensitive), 1);
        assert_eq!(with(r"^\}$", false, Case::Sensitive), 0);
        assert_eq!(with(r"\bx\b", false, Case::Sensitive), 1);
    }

    #[test]
    fn context_is_shown_once() {
        let text = b"1\n2\nhit\n4\nhit\n6\n7\n8\n9\nhit\n";
        let found = run(&[("f", text)], &Query { context: 2, ..query("hit") });
        let shown: Vec<_> = found.matches.iter().map(|m| (m.before.join(","), m.after.join(","))).collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(shown, [pair("1,2", "4"), pair("", "6,7"), pair("8,9", "")]);
    }

    #[test]
    fn limits_say_that_there_is_more() {
        let text = b"hit\n".repeat(50);
        let found = run(&[("f", &text), ("g", &text)], &Query { max_results: 60, ..query("hit") });
        assert_eq!((found.matches.len(), found.truncated), (60, true));
        let found = run(&[("f", &text), ("g", &text)], &Query { max_results: 100, ..query("hit") });
        assert_eq!((found.matches.len(), found.truncated), (100, false));
        let long = [vec![b'x'; 5000], b"hit".to_vec(), vec![b'y'; 5000]].concat();
        let found = run(&[("f", &long)], &query("hit"));
        let shown = &found.matches[0].text;
        assert!(
            shown.contains("xhity")
                && shown.starts_with('…')
                && shown.ends_with('…')
                && shown.chars().count() <= MAX_LINE_CHARS + 2,
            "{shown}"
        );
        let wide = [b"hit ".to_vec(), vec![b'z'; 390], b"\n".to_vec()].concat().repeat(2000);
        let found = run(&[("f", &wide)], &Query { max_results: 5000, ..query("hit") });
        assert!(found.truncated && found.matches.len() < 700);
    }

    #[test]
    fn a_search_below_a_directory_knows_the_rules_above() {
        let tree = tree(&[("y.log", b"foo\n"), ("z", b"foo\n"), ("gen/q", b"foo\n")]);
        let parents = [(String::new(), true, "*.log\n/sub/gen\n".to_owned())];
        let found = search(&tree, "sub/", &parents, &query("foo")).expect("a search");
        assert_eq!(lines(&found), ["sub/z:1:1:foo"]);
    }

    #[test]
    fn bad_patterns_are_told_before_anything_is_read() {
        for pattern in ["(", "[", "a\\nb", "\\p{Foo}", "(a{1000}){1000}"] {
            let error = Search::new(query(pattern)).err().expect(pattern);
            assert!(error.to_string().starts_with("pattern"), "{error}");
        }
        let globs = Selection { globs: vec!["[".into()], ..Selection::default() };
        assert!(Search::new(Query { selection: globs, ..query("a") }).is_err());
    }

    #[test]
    fn only_what_is_wanted_is_read() {
        let globs = Selection { globs: vec!["*.rs".into()], ..Selection::default() };
        let mut search = Search::new(Query { selection: globs, ..query("foo") }).expect("a search");
        let files = [(".gitignore", 3), ("big.rs", 3 << 40), ("d/a.rs", 3), ("d/b.txt", 3)];
        let files = files.map(|(path, size)| (path.to_owned(), size));
        assert_eq!(search.ignore_files(&files), [&files[0]]);
        assert_eq!(search.wanted("sub/", &files), (1, 3));
        let mut read = Vec::new();
        let found = search.run("sub/", &files, &mut |path, size| {
            read.push((path.to_owned(), size));
            Ok(b"foo".to_vec())
        });
        assert_eq!(lines(&found.expect("found")), ["sub/d/a.rs:1:1:foo"]);
        assert_eq!(read, [("d/a.rs".to_owned(), 3)]);
    }
}
