//! Replaces secret values in a stream of bytes, wherever the stream is cut.
//!
//! A value is found as it is, in base64 at each of the three alignments it can
//! have inside a longer text (standard and URL alphabet), percent-encoded as the
//! common libraries do, and as JSON and shells quote it; of a value of several
//! lines each longer line is found by itself too. Line ends count for nothing:
//! a terminal writes others than it got, `base64` puts some into its output, and
//! a file ends with one that the program which uses the value takes off. Neither
//! do the colours of a terminal, which a plain rendering leaves out.
//!
//! Not found: a value that a process transforms otherwise, as by encryption or
//! by printing it letter by letter, and the rest of one whose first bytes were
//! read, with the end of their line, before anything else was there. Redaction
//! keeps a secret out of logs and of a model's context by accident; it does not
//! hold back a program that means to leak it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use zeroize::Zeroizing;

/// What stands in the place of a secret.
pub const REDACTED: &str = "[REDACTED]";

/// A value shorter than this is replaced only where it stands alone, between
/// bytes that are not letters or digits: replacing every `a` shreds a text and
/// tells what the secret is.
const SHORT: usize = 4;

/// An encoded form or a single line shorter than this is not looked for, and a
/// value shorter than this not across line ends: it would match by chance.
const LONG: usize = 8;

/// The automaton looks for the first bytes of a form; the rest is compared where
/// they are. A node for every byte of large secrets would take gigabytes.
const NEEDLE: usize = 64;

/// What may begin a form is held back at the end of a line from this length on:
/// less would hold back every line that ends as some form begins.
const HELD_OVER_LINES: usize = 16;

/// How much of a stream is looked at at once.
const PIECE: usize = 1 << 20;

/// The patterns of a set of secrets; cheap to share, one per set.
pub struct Redactor {
    finder: Option<AhoCorasick>,
    patterns: Vec<Pattern>,
    longest: usize,
}

/// A form, without line ends.
struct Pattern {
    bytes: Zeroizing<Vec<u8>>,
    /// Only between bytes that are not letters or digits.
    alone: bool,
    /// Also where line ends and control sequences stand between its bytes.
    joins: bool,
}

impl Pattern {
    fn needle(&self) -> &[u8] {
        self.bytes.get(..NEEDLE).unwrap_or(&self.bytes)
    }
}

/// One stream being redacted: holds back the bytes that may begin a secret.
pub struct RedactedStream<'a> {
    redactor: &'a Redactor,
    carry: Zeroizing<Vec<u8>>,
    /// So many bytes of what is held back belong to a secret that was replaced.
    covered: usize,
    /// The last byte that was given out or dropped, for the "alone" check.
    before: Option<u8>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Redactor").field("patterns", &self.patterns.len()).finish()
    }
}

impl Redactor {
    /// A redactor of `values`. Empty values are ignored.
    #[must_use]
    pub fn new<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> Self {
        let mut patterns: Vec<Pattern> = values.into_iter().flat_map(forms).collect();
        patterns.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.alone.cmp(&b.alone)).then(b.joins.cmp(&a.joins)));
        patterns.dedup_by(|later, kept| later.bytes == kept.bytes);
        let longest = patterns.iter().map(|pattern| pattern.bytes.len()).max().unwrap_or(0);
        // Most workspaces have no secrets, and each call makes one of these.
        let finder = (!patterns.is_empty()).then(|| {
            AhoCorasick::builder()
                .match_kind(MatchKind::Standard)
                .kind(Some(AhoCorasickKind::NoncontiguousNFA))
                .build(patterns.iter().map(Pattern::needle))
        });
        Self { finder: finder.and_then(Result::ok), patterns, longest }
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Starts a stream.
    #[must_use]
    pub fn stream(&self) -> RedactedStream<'_> {
        RedactedStream { redactor: self, carry: Zeroizing::new(Vec::new()), covered: 0, before: None }
    }

    /// Redacts a text that is there as a whole.
    #[must_use]
    pub fn bytes(&self, text: &[u8]) -> Vec<u8> {
        let mut stream = self.stream();
        let mut out = stream.push(text);
        out.extend(stream.finish());
        out
    }

    /// Redacts a text that is there as a whole.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        String::from_utf8_lossy(&self.bytes(text.as_bytes())).into_owned()
    }

    /// Length that the longest form has in a text, with the line ends that it may be written with.
    #[must_use]
    pub fn longest(&self) -> usize {
        // Lines of 16 and more, each with two bytes at its end.
        self.longest + self.longest.div_ceil(LONG)
    }

    /// The ranges of `text` to replace, in order, and how much of `text` no further byte can change: what lies behind it
    /// may begin a secret. `last` says that nothing follows.
    #[must_use]
    pub fn find(&self, text: &[u8], last: bool) -> (Vec<Range<usize>>, usize) {
        self.scan(text, None, last)
    }

    /// As [`Redactor::find`]. `before` is the byte in front of `text`. Ranges touch or are apart, and begin before the
    /// settled part ends.
    fn scan(&self, text: &[u8], before: Option<u8>, last: bool) -> (Vec<Range<usize>>, usize) {
        if self.is_empty() || text.is_empty() {
            return (Vec::new(), text.len());
        }
        let Some(finder) = &self.finder else {
            // Nothing can be told from a secret then.
            return (std::iter::once(0..text.len()).collect(), text.len());
        };
        let joined = Joined::of(text);
        let length = joined.bytes.len();
        let mut found = Vec::new();
        let mut open = length;
        for hit in finder.find_overlapping_iter(&*joined.bytes) {
            let Some(pattern) = self.patterns.get(hit.pattern().as_usize()) else { continue };
            let start = hit.start();
            let end = (start + pattern.bytes.len()).min(length);
            let (range, whole) = (start..end, end - start == pattern.bytes.len());
            let there = joined.bytes.get(range.clone()).unwrap_or_default();
            if !pattern.bytes.starts_with(there) || (!pattern.joins && joined.has_gap(&range)) {
                continue;
            }
            if !whole {
                open = open.min(start);
                continue;
            }
            if pattern.alone {
                let place = joined.place(start);
                let left = if place == 0 { before } else { text.get(place - 1).copied() };
                let right = text.get(joined.place(end - 1) + 1).copied();
                if [left, right].into_iter().flatten().any(|byte| byte.is_ascii_alphanumeric()) {
                    continue;
                }
                // One at the very end waits for what follows it.
                if right.is_none() && !last {
                    open = open.min(start);
                    continue;
                }
            }
            found.push(range);
        }
        // What is too short for the automaton yet.
        let at_line_end = text.last().is_some_and(|byte| is_line_end(*byte));
        for start in length.saturating_sub(NEEDLE - 1)..open {
            let rest = joined.bytes.get(start..).unwrap_or_default();
            let begins = |pattern: &Pattern| {
                let needle = pattern.needle();
                needle.len() > rest.len()
                    && needle.starts_with(rest)
                    && (pattern.joins || !(at_line_end || joined.has_gap(&(start..length))))
            };
            if (!at_line_end || rest.len() >= HELD_OVER_LINES) && self.patterns.iter().any(begins) {
                open = start;
                break;
            }
        }
        let settled = if last || open >= length { text.len() } else { joined.place(open) };
        found.sort_unstable_by_key(|range| range.start);
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for range in found {
            let range = joined.place(range.start)..joined.place(range.end - 1) + 1;
            match ranges.last_mut() {
                Some(known) if range.start < known.end => known.end = known.end.max(range.end),
                _ if range.start < settled => ranges.push(range),
                _ => break,
            }
        }
        (ranges, settled)
    }
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Begins a control sequence of a terminal (ECMA-48, section 5.4), with `[` behind it.
const ESCAPE: u8 = 0x1b;

/// A text without its line ends and control sequences, and where each byte of it was.
struct Joined<'t> {
    bytes: Cow<'t, [u8]>,
    /// Empty when there are none.
    places: Vec<usize>,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        // A copy may have a secret in it.
        if let Cow::Owned(bytes) = &mut self.bytes {
            zeroize::Zeroize::zeroize(bytes);
        }
    }
}

impl<'t> Joined<'t> {
    fn of(text: &'t [u8]) -> Joined<'t> {
        if !text.iter().any(|byte| is_line_end(*byte) || *byte == ESCAPE) {
            return Joined { bytes: Cow::Borrowed(text), places: Vec::new() };
        }
        let mut kept = Vec::with_capacity(text.len());
        let mut places = Vec::with_capacity(text.len());
        let mut rest = text.iter().enumerate();
        while let Some((place, byte)) = rest.next() {
            if *byte == ESCAPE && text.get(place + 1).is_none_or(|next| *next == b'[') {
                rest.next();
                // Parameters, then one letter or the like.
                rest.find(|(_, byte)| matches!(byte, 0x40..=0x7e));
            } else if !is_line_end(*byte) {
                kept.push(*byte);
                places.push(place);
            }
        }
        Joined { bytes: Cow::Owned(kept), places }
    }

    fn place(&self, index: usize) -> usize {
        self.places.get(index).copied().unwrap_or(index)
    }

    fn has_gap(&self, range: &Range<usize>) -> bool {
        !range.is_empty() && self.place(range.end - 1) - self.place(range.start) >= range.len()
    }
}

impl RedactedStream<'_> {
    /// Takes the next bytes and returns what can be given out.
    #[must_use]
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        if self.redactor.is_empty() {
            return chunk.to_owned();
        }
        let mut out = Vec::with_capacity(chunk.len());
        for piece in chunk.chunks(PIECE) {
            self.carry.extend_from_slice(piece);
            self.drain(false, &mut out);
        }
        out
    }

    /// Returns what was held back; the stream is at its end.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.drain(true, &mut out);
        out
    }

    fn drain(&mut self, last: bool, out: &mut Vec<u8>) {
        let text = std::mem::take(&mut self.carry);
        let (ranges, settled) = self.redactor.scan(&text, self.before, last);
        // Up to here it was given out or replaced.
        let mut done = self.covered;
        for range in ranges {
            if range.start >= done {
                out.extend_from_slice(text.get(done..range.start).unwrap_or_default());
                out.extend_from_slice(REDACTED.as_bytes());
            }
            done = done.max(range.end);
        }
        out.extend_from_slice(text.get(done..settled).unwrap_or_default());
        self.covered = done.saturating_sub(settled);
        if settled > 0 {
            self.before = text.get(settled - 1).copied();
        }
        self.carry.extend_from_slice(text.get(settled..).unwrap_or_default());
    }
}

/// The forms a value is looked for in.
fn forms(value: &[u8]) -> Vec<Pattern> {
    let without_line_ends = |bytes: &[u8]| -> Zeroizing<Vec<u8>> {
        let mut kept = Zeroizing::new(Vec::with_capacity(bytes.len()));
        kept.extend(bytes.iter().filter(|byte| !is_line_end(**byte)));
        kept
    };
    let end = value.iter().rposition(|byte| !is_line_end(*byte)).map_or(0, |last| last + 1);
    // Nobody encodes the end of a file's last line with it but who encodes the file, and then the form without is in it.
    let value = value.get(..end).unwrap_or_default();
    if value.is_empty() {
        return Vec::new();
    }
    let lines: Vec<&[u8]> = value.split(|byte| is_line_end(*byte)).collect();
    let bytes = without_line_ends(value);
    let (alone, joins) = (bytes.len() < SHORT, bytes.len() >= LONG || lines.len() > 1);
    let mut forms = vec![Pattern { bytes, alone, joins }];
    let mut add = |bytes: Zeroizing<Vec<u8>>| {
        if bytes.len() >= LONG && bytes.as_slice() != value {
            forms.push(Pattern { bytes, alone: false, joins: true });
        }
    };
    if lines.len() > 1 {
        for line in lines.iter().map(|line| line.trim_ascii()) {
            // The rules of a PEM file are in every other one.
            if !(line.starts_with(b"-----") && line.ends_with(b"-----")) {
                add(Zeroizing::new(line.to_vec()));
            }
        }
    }
    // The alignment forms leave out the characters that depend on what surrounds the value.
    for shift in 0..3_usize {
        let mut shifted = Zeroizing::new(vec![0_u8; shift]);
        shifted.extend_from_slice(value);
        // Characters that carry only bits of the value.
        let first = (shift * 8).div_ceil(6);
        let end = shifted.len() * 8 / 6;
        for engine in [&STANDARD, &URL_SAFE] {
            let text = Zeroizing::new(engine.encode(shifted.as_slice()).into_bytes());
            add(Zeroizing::new(text.get(first..end).unwrap_or_default().to_owned()));
        }
    }
    for kept in [PERCENT_NONE, PERCENT_PATH, PERCENT_COMPONENT] {
        for (upper, plus) in [(true, false), (false, false), (true, true)] {
            add(percent_encoded(value, kept, upper, plus));
        }
    }
    add(without_line_ends(&json_quoted(value)));
    for quote in [b"'\\''".as_slice(), b"'\"'\"'"] {
        add(without_line_ends(&replaced(value, b'\'', quote)));
    }
    forms
}

/// Reserved characters that encoders leave as they are: none as RFC 3986 has it, what paths keep, and what
/// `encodeURIComponent` of ECMAScript does.
const PERCENT_NONE: &[u8] = b"";
const PERCENT_PATH: &[u8] = b"/";
const PERCENT_COMPONENT: &[u8] = b"!'()*";

/// Percent-encoding of all but unreserved characters (RFC 3986) and `kept`; `plus` writes a space as `+`, as forms do.
fn percent_encoded(value: &[u8], kept: &[u8], upper: bool, plus: bool) -> Zeroizing<Vec<u8>> {
    let digits = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    let mut out = Zeroizing::new(Vec::with_capacity(value.len() * 3));
    for byte in value {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(*byte),
            b' ' if plus => out.push(b'+'),
            _ if kept.contains(byte) => out.push(*byte),
            _ => out.extend_from_slice(&[b'%', digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]),
        }
    }
    out
}

/// The inside of a JSON string (RFC 8259), with the short escapes where there are some.
fn json_quoted(value: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(value.len() * 6));
    for byte in value {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

fn replaced(value: &[u8], from: u8, to: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(value.len() * to.len()));
    for byte in value {
        if *byte == from { out.extend_from_slice(to) } else { out.push(*byte) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_told_with_what_is_settled() {
        let redactor = Redactor::new([b"hunter2".as_slice()]);
        let found: Vec<_> = std::iter::once(3..10).collect();
        assert_eq!(redactor.find(b"my hunter2 hun", false), (found.clone(), 11));
        assert_eq!(redactor.find(b"my hunter2 hun", true), (found, 14));
        assert_eq!(redactor.find(b"nothing", false), (vec![], 7));
        assert!(redactor.longest() >= 7);
    }
    use proptest::prelude::*;

    fn redactor(values: &[&str]) -> Redactor {
        Redactor::new(values.iter().map(|value| value.as_bytes()))
    }

    #[track_caller]
    fn check(values: &[&str], text: &str, expected: &str) {
        assert_eq!(redactor(values).text(text), expected);
    }

    #[test]
    fn plain_values() {
        check(&["hunter2secret"], "a hunter2secret b", "a [REDACTED] b");
        check(&["tok", "token-long"], "token-long tok", "[REDACTED] [REDACTED]");
        // Where they overlap nothing of either is left, where they touch there are two.
        check(&["aaaa"], "aaaaaaaaa", "[REDACTED]");
        check(&["overlap1111", "1111more-of-it"], "overlap1111more-of-it", "[REDACTED]");
        check(&["one1", "two2"], "one1two2", "[REDACTED][REDACTED]");
        check(&[], "nothing", "nothing");
        check(&[""], "nothing", "nothing");
    }

    #[test]
    fn a_short_value_only_where_it_stands_alone() {
        check(&["a"], "a banana (a) a", "[REDACTED] banana ([REDACTED]) [REDACTED]");
        check(&["ab"], "abc xab ab", "abc xab [REDACTED]");
    }

    #[test]
    fn base64_at_every_alignment() {
        let secret = "s3cr3t-value-42!";
        for prefix in ["", "x", "xy", "xyz"] {
            for suffix in ["", "\n", ":more"] {
                for engine in [&STANDARD, &URL_SAFE] {
                    let encoded = engine.encode(format!("{prefix}{secret}{suffix}"));
                    let redacted = redactor(&[secret]).text(&encoded);
                    assert!(redacted.contains(REDACTED), "{encoded} -> {redacted}");
                    assert!(redacted.len() < REDACTED.len() + 16, "{encoded} -> {redacted}");
                }
            }
        }
    }

    /// What a file's value looks like, where the program that reads it takes off the line end.
    #[test]
    fn the_line_end_of_a_file_is_not_the_secret() {
        for value in ["token-42\n", "token-42\r\n", "token-42\n\n", "token-42"] {
            check(&[value], "x:token-42@h token-42\nnext", "x:[REDACTED]@h [REDACTED]\nnext");
        }
        check(&["\n", "\r\n"], "a\nb\r\n", "a\nb\r\n");
        check(&["ab\n"], "ab abc ab\n", "[REDACTED] abc [REDACTED]\n");
    }

    const KEY: &str = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEF\nab=\n-----END KEY-----\n";

    #[test]
    fn a_value_of_several_lines_is_found_whatever_ends_them() {
        check(&[KEY], &format!("<{KEY}>"), "<[REDACTED]\n>");
        check(&[KEY], &format!("$ cat k\r\n{}$ ", KEY.replace('\n', "\r\n")), "$ cat k\r\n[REDACTED]\r\n$ ");
        check(&[KEY], &KEY.replace('\n', ""), REDACTED);
        // A line of it alone, as in a log with a prefix, but not what stands in every such file.
        check(&[KEY], "log: hkiG9w0BAQEF\nlog: ab=", "log: [REDACTED]\nlog: ab=");
        check(&[KEY], "-----BEGIN KEY-----\nother", "-----BEGIN KEY-----\nother");
        check(&[KEY], &KEY.replace('\n', "\\n"), &format!("{REDACTED}\\n"));
    }

    #[test]
    fn base64_is_found_across_its_lines() {
        let secret = "a-token-of-some-length-0123456789";
        for before in 0..80 {
            let text = STANDARD.encode(format!("{}{secret}{}", "p".repeat(before), "s".repeat(40)));
            for end in ["\n", "\r\n"] {
                let lines: Vec<&str> =
                    text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
                let redacted = redactor(&[secret]).text(&lines.join(end));
                assert!(redacted.contains(REDACTED) && redacted.len() < text.len() - 24, "{before}: {redacted}");
            }
        }
        // What is short is not put together from lines.
        check(&["abcdef"], "abc\ndef abcdef", "abc\ndef [REDACTED]");
    }

    #[test]
    fn colours_hide_nothing() {
        check(&["Sup3r-Secret"], "a \x1b[31mSup3r\x1b[0m\x1b[K-Secret\x1b[m b", "a \x1b[31m[REDACTED]\x1b[m b");
        let redactor = redactor(&["Sup3r-Secret"]);
        let mut stream = redactor.stream();
        let pieces = [b"Sup3r\x1b".as_slice(), b"[0", b"m-Sec", b"ret "].map(|piece| stream.push(piece));
        assert_eq!(pieces.concat(), b"[REDACTED] ");
        check(&["Sup3r-Secret"], "\x1b[31", "\x1b[31");
    }

    #[test]
    fn as_quoted() {
        check(&[r#"say "x" \ y"#], r#"{"k":"say \"x\" \\ y"}"#, r#"{"k":"[REDACTED]"}"#);
        check(&["it's a secret"], r"export K='it'\''s a secret'", "export K='[REDACTED]'");
        check(&["it's a secret"], r#"export K='it'"'"'s a secret'"#, "export K='[REDACTED]'");
        check(&["a/b c'd(e)"], "q=a/b%20c%27d%28e%29 q=a%2Fb%20c'd(e)", "q=[REDACTED] q=[REDACTED]");
    }

    /// The work grows with the text, not with how often a secret is in it times how large all of them are.
    #[test]
    fn a_text_full_of_secrets_and_a_large_secret_are_cheap() {
        let large = "0123456789abcdef".repeat(4096);
        let redactor = Redactor::new([large.as_bytes(), b"tok1", KEY.as_bytes()]);
        let mut stream = redactor.stream();
        let mut out = 0;
        for _ in 0..64 {
            out += stream.push("tok1 ".repeat(13_000).as_bytes()).len();
        }
        out += stream.finish().len();
        assert_eq!(out, 64 * 13_000 * (REDACTED.len() + 1));
        assert!(redactor.text(&format!("<{large}>")) == "<[REDACTED]>");
        let cut = redactor.text(&large[..large.len() - 1]);
        assert_eq!(cut.len(), large.len() - 1, "not all of it");
    }

    #[test]
    fn a_line_is_not_held_back_for_its_last_letters() {
        let redactor = redactor(&["secret-of-some-length"]);
        let mut stream = redactor.stream();
        assert_eq!(stream.push(b"all tests\n"), b"all tests\n");
        assert_eq!(stream.push(b"all tests"), b"all test");
        assert_eq!(stream.push(b"\n"), b"s\n");
        // So much is no chance any more.
        assert_eq!(stream.push(b"secret-of-some-len\n"), b"");
        assert_eq!(stream.push(b"gth\n"), b"[REDACTED]\n");
    }

    #[test]
    fn percent_encoding() {
        check(&["p@ss word/1"], "q=p%40ss%20word%2F1&x", "q=[REDACTED]&x");
        check(&["p@ss word/1"], "q=p%40ss+word%2F1&x", "q=[REDACTED]&x");
        check(&["p@ss word/1"], "q=p%40ss%20word%2f1&x", "q=[REDACTED]&x");
    }

    #[test]
    fn what_cannot_begin_a_secret_is_not_held_back() {
        let redactor = redactor(&["hunter2secret"]);
        let mut stream = redactor.stream();
        assert_eq!(stream.push(b"pyro$ "), b"pyro$ ");
        assert_eq!(stream.push(b"say hunt"), b"say ");
        assert_eq!(stream.push(b"ing"), b"hunting");
        assert_eq!(stream.finish(), b"");
    }

    proptest! {
        #[test]
        fn the_cuts_do_not_matter(
            text in "[ab%-]{0,60}",
            secrets in proptest::collection::vec("[ab]{1,7}", 1..4),
            cuts in proptest::collection::vec(0_usize..60, 0..8),
        ) {
            let redactor = Redactor::new(secrets.iter().map(String::as_bytes));
            let whole = redactor.bytes(text.as_bytes());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut stream = redactor.stream();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.extend(stream.push(&text.as_bytes()[from..cut]));
                from = cut;
            }
            pieces.extend(stream.push(&text.as_bytes()[from..]));
            pieces.extend(stream.finish());
            prop_assert_eq!(pieces, whole);
        }

        #[test]
        fn a_long_value_never_comes_through(
            secret in "[ -~]{4,40}",
            before in "[ -~]{0,20}",
            after in "[ -~]{0,20}",
            cut in 0_usize..80,
        ) {
            let redactor = redactor(&[&secret]);
            let text = format!("{before}{secret}{after}");
            let cut = cut.min(text.len());
            let mut stream = redactor.stream();
            let mut out = stream.push(&text.as_bytes()[..cut]);
            out.extend(stream.push(&text.as_bytes()[cut..]));
            out.extend(stream.finish());
            let out = String::from_utf8(out).unwrap();
            // The marker itself may contain a secret such as "REDA".
            prop_assert!(!out.replace(REDACTED, "\u{1}").contains(&secret), "{}", out);
        }
    }
}
