//! Finding the place of a hunk and putting its lines there.

use std::cell::Cell;

use thiserror::Error;

use crate::lines::{split_lines, without_line_end, without_newline};
use crate::patch::{Hunk, Line, LineKind};

/// The most context lines that may be ignored at each end of a hunk.
pub const MAX_FUZZ: u8 = 2;

/// Line comparisons for a whole set. A patch of the largest size against a file of the largest size
/// needs far fewer; one made to search without end is refused.
pub const LINE_COMPARE_BUDGET: u64 = 20_000_000;

/// How far a hunk may stray from what its header says.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// The most lines a hunk may be found away from its place; 0 asks for the exact place.
    pub max_offset: usize,
    /// Context lines at each end that need not match; at most [`MAX_FUZZ`].
    pub fuzz: u8,
}

impl Default for ApplyOptions {
    /// As `git apply`: any place in a file of 1 MiB, every context line exact.
    fn default() -> Self {
        ApplyOptions { max_offset: 1 << 20, fuzz: 0 }
    }
}

/// Where a hunk was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HunkPlace {
    /// Lines between where its header points, shifted by the hunks before it, and where it matched.
    pub offset: i64,
    /// Context lines ignored at each end.
    pub fuzz: u8,
}

/// A hunk that has no place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("hunk {hunk} (patch line {patch_line}) does not match: {mismatch}")]
pub struct HunkMismatch {
    /// Its number in the file's section, counted from one.
    pub hunk: usize,
    /// Where its header stands in the patch.
    pub patch_line: usize,
    /// What differs at the place its header names.
    pub mismatch: Mismatch,
}

/// What differs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Mismatch {
    #[error("line {line} should be `{expected}`, found `{found}`")]
    Line { line: usize, expected: String, found: String },
    #[error("line {line} differs only in its line end: the file has {found}, the patch {expected}")]
    LineEnd { line: usize, expected: &'static str, found: &'static str },
    #[error("line {line} should be `{expected}`, but the file ends at line {lines}")]
    FileEnd { line: usize, expected: String, lines: usize },
    #[error("line {line} lies behind the end of the file, which has {lines} lines")]
    BehindEnd { line: usize, lines: usize },
    #[error("it ends the file without a newline, but the file has more lines than {line}")]
    NotAtEnd { line: usize },
    #[error("it overlaps the hunk before it")]
    Overlap,
    #[error("the search for its place took too long")]
    Budget,
}

/// Comparisons left for a set of patches.
pub(crate) struct Budget(Cell<u64>);

impl Budget {
    pub(crate) fn new() -> Self {
        Budget(Cell::new(LINE_COMPARE_BUDGET))
    }

    fn spend(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

/// Applies `hunks` to `text`; returns the new text and where each hunk went.
pub(crate) fn apply(
    text: &[u8],
    hunks: &[Hunk],
    crlf: bool,
    options: &ApplyOptions,
    budget: &Budget,
) -> Result<(Vec<u8>, Vec<HunkPlace>), HunkMismatch> {
    let stripped: Vec<Hunk>;
    let mut result = apply_exactly(text, hunks, options, budget);
    if crlf && result.is_err() {
        // The carriage returns were the transport's, not the file's.
        stripped = hunks
            .iter()
            .map(|hunk| {
                let mut hunk = hunk.clone();
                hunk.strip_transport();
                hunk
            })
            .collect();
        result = apply_exactly(text, &stripped, options, budget).or(result);
    }
    result
}

fn apply_exactly(
    text: &[u8],
    hunks: &[Hunk],
    options: &ApplyOptions,
    budget: &Budget,
) -> Result<(Vec<u8>, Vec<HunkPlace>), HunkMismatch> {
    let lines: Vec<&[u8]> = split_lines(text).collect();
    let mut out = Vec::with_capacity(text.len());
    let mut places = Vec::with_capacity(hunks.len());
    // Old lines up to here are in `out`.
    let mut done = 0;
    let mut shift = 0_i64;
    for (index, hunk) in hunks.iter().enumerate() {
        let file = File { lines: &lines, from: done, budget };
        let found = file.find(hunk, shift, options).map_err(|mismatch| HunkMismatch {
            hunk: index + 1,
            patch_line: hunk.line,
            mismatch,
        })?;
        for line in lines.iter().take(found.at).skip(done) {
            out.extend_from_slice(line);
        }
        let mut at = found.at;
        for line in found.body {
            // Context comes from the file: with fuzz it may not be what the patch says.
            let own = lines.get(at).copied().unwrap_or_default();
            match line.kind {
                LineKind::Context => out.extend_from_slice(own),
                LineKind::Added => {
                    // The old last line without a newline gets one when lines now follow it.
                    if !out.is_empty() && !out.ends_with(b"\n") {
                        out.push(b'\n');
                    }
                    out.extend_from_slice(&line.text);
                }
                LineKind::Removed => {}
            }
            at += usize::from(line.kind != LineKind::Added);
        }
        done = at;
        shift += found.place.offset;
        places.push(found.place);
    }
    for line in lines.iter().skip(done) {
        out.extend_from_slice(line);
    }
    Ok((out, places))
}

/// The file's lines from the end of the last hunk on.
struct File<'a> {
    lines: &'a [&'a [u8]],
    from: usize,
    budget: &'a Budget,
}

struct Found<'h> {
    at: usize,
    body: &'h [Line],
    place: HunkPlace,
}

impl File<'_> {
    fn find<'h>(&self, hunk: &'h Hunk, shift: i64, options: &ApplyOptions) -> Result<Found<'h>, Mismatch> {
        // An empty old range names the line before it.
        let named = if hunk.old_count == 0 { hunk.old_start } else { hunk.old_start.saturating_sub(1) };
        let wanted = usize::try_from(to_i64(named) + shift).unwrap_or(0);
        let (lead, tail) = context(&hunk.lines);
        for fuzz in 0..=options.fuzz.min(MAX_FUZZ) {
            let (skip, cut) = (lead.min(usize::from(fuzz)), tail.min(usize::from(fuzz)));
            if fuzz > 0 && skip < usize::from(fuzz) && cut < usize::from(fuzz) {
                break;
            }
            let body = hunk.lines.get(skip..hunk.lines.len() - cut).unwrap_or_default();
            if let Some(at) = self.search(body, wanted + skip, options.max_offset, fuzz > 0)? {
                let offset = to_i64(at) - to_i64(wanted + skip);
                return Ok(Found { at, body, place: HunkPlace { offset, fuzz } });
            }
        }
        Err(self.explain(&hunk.lines, wanted))
    }

    /// The nearest place to `wanted` where the old lines of `body` stand.
    fn search(&self, body: &[Line], wanted: usize, reach: usize, loose: bool) -> Result<Option<usize>, Mismatch> {
        let old = body.iter().filter(|line| line.kind != LineKind::Added).count();
        // A line without a newline can only be the last one.
        let ends = body.iter().any(|line| !line.text.ends_with(b"\n") && line.kind != LineKind::Removed);
        let fits = |at: usize| !ends || at + old == self.lines.len();
        let Some(last) = self.lines.len().checked_sub(old).filter(|last| *last >= self.from) else {
            return Ok(None);
        };
        if old == 0 {
            // Nothing to look for: only the exact place will do.
            return Ok((wanted >= self.from && wanted <= last && fits(wanted)).then_some(wanted));
        }
        // The nearest place inside the file is where the search begins.
        let start = wanted.clamp(self.from, last);
        for distance in 0..=(last - self.from) {
            let below = start.checked_add(distance).filter(|at| *at <= last);
            let above = start.checked_sub(distance).filter(|at| *at >= self.from && distance > 0);
            if below.is_none() && above.is_none() {
                break;
            }
            for at in [below, above].into_iter().flatten() {
                if at.abs_diff(wanted) <= reach && fits(at) && self.matches(body, at, loose)? {
                    return Ok(Some(at));
                }
            }
            if distance > reach {
                break;
            }
        }
        Ok(None)
    }

    fn matches(&self, body: &[Line], at: usize, loose: bool) -> Result<bool, Mismatch> {
        let old = body.iter().filter(|line| line.kind != LineKind::Added);
        for (line, own) in old.zip(self.lines.iter().skip(at)) {
            if !self.budget.spend() {
                return Err(Mismatch::Budget);
            }
            let same =
                *own == line.text.as_slice() || loose && !own.ends_with(b"\n") && *own == without_newline(&line.text);
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What differs where the header points.
    fn explain(&self, body: &[Line], wanted: usize) -> Mismatch {
        let lines = self.lines.len();
        if wanted < self.from {
            return Mismatch::Overlap;
        }
        let mut at = wanted;
        for line in body.iter().filter(|line| line.kind != LineKind::Added) {
            let expected = shown(&line.text);
            let Some(own) = self.lines.get(at) else {
                return Mismatch::FileEnd { line: at + 1, expected, lines };
            };
            if *own != line.text.as_slice() {
                return if without_line_end(own) == without_line_end(&line.text) {
                    Mismatch::LineEnd { line: at + 1, expected: line_end(&line.text), found: line_end(own) }
                } else {
                    Mismatch::Line { line: at + 1, expected, found: shown(own) }
                };
            }
            at += 1;
        }
        if at < lines { Mismatch::NotAtEnd { line: at } } else { Mismatch::BehindEnd { line: wanted + 1, lines } }
    }
}

/// Context lines at the start and at the end of a body.
fn context(lines: &[Line]) -> (usize, usize) {
    let is_context = |line: &&Line| line.kind == LineKind::Context;
    let lead = lines.iter().take_while(is_context).count();
    (lead, lines.iter().rev().take_while(is_context).count().min(lines.len() - lead))
}

fn to_i64(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn line_end(line: &[u8]) -> &'static str {
    if line.ends_with(b"\r\n") {
        "CR LF"
    } else if line.ends_with(b"\n") {
        "LF"
    } else {
        "no newline at the end of the file"
    }
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(without_newline(line)).chars().take(160).collect()
}
