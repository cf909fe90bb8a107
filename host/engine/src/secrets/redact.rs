//! Replaces secret values in a stream of bytes, wherever the stream is cut.
//!
//! A value is found as it is, in base64 at each of the three alignments it can
//! have inside a longer text (standard and URL alphabet), and percent-encoded.
//! Not found: a value that a process transforms otherwise, as by encryption or
//! by printing it letter by letter. Redaction keeps a secret out of logs and of
//! a model's context by accident; it does not hold back a program that means to
//! leak it.

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

/// An encoded form shorter than this is not looked for: it would match by chance.
const ENCODED_MIN: usize = 8;

/// The patterns of a set of secrets; cheap to share, one per set.
pub struct Redactor {
    finder: Option<AhoCorasick>,
    patterns: Vec<Pattern>,
    longest: usize,
}

struct Pattern {
    bytes: Zeroizing<Vec<u8>>,
    /// Only between bytes that are not letters or digits.
    alone: bool,
}

/// One stream being redacted: holds back the bytes that may begin a secret.
pub struct RedactedStream<'a> {
    redactor: &'a Redactor,
    carry: Zeroizing<Vec<u8>>,
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
        let mut patterns: Vec<Pattern> = Vec::new();
        for value in values {
            for (bytes, alone) in forms(value) {
                if !patterns.iter().any(|known| known.bytes.as_slice() == bytes.as_slice()) {
                    patterns.push(Pattern { bytes, alone });
                }
            }
        }
        let longest = patterns.iter().map(|pattern| pattern.bytes.len()).max().unwrap_or(0);
        // A set too large for the automaton is as good as an internal limit hit;
        // the contiguous form handles every set that fits in memory.
        let finder = (!patterns.is_empty()).then(|| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .kind(Some(AhoCorasickKind::NoncontiguousNFA))
                .build(patterns.iter().map(|pattern| pattern.bytes.as_slice()))
        });
        let finder = finder.and_then(Result::ok);
        Self { finder, patterns, longest }
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Starts a stream.
    #[must_use]
    pub fn stream(&self) -> RedactedStream<'_> {
        RedactedStream { redactor: self, carry: Zeroizing::new(Vec::new()), before: None }
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

    /// Length of the longest form that is looked for.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The ranges of `text` to replace, in order, and how much of `text` no further byte can change: what lies behind it
    /// may begin a secret. `last` says that nothing follows.
    #[must_use]
    pub fn find(&self, text: &[u8], last: bool) -> (Vec<Range<usize>>, usize) {
        let open = |from: usize| if last { text.len() } else { self.undecided(text, from) };
        let mut found = Vec::new();
        let mut from = 0;
        for range in self.matches(text, None, last) {
            let settled = open(from);
            if settled <= range.start {
                return (found, settled);
            }
            from = range.end;
            found.push(range);
        }
        (found, open(from))
    }

    /// The ranges of `text` to replace, in order. A match of an "alone" pattern
    /// counts only between other bytes; `last` says that nothing follows `text`.
    fn matches(&self, text: &[u8], before: Option<u8>, last: bool) -> Vec<Range<usize>> {
        let Some(finder) = &self.finder else { return Vec::new() };
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(range) =
            finder.find(&text[from..]).map(|hit| (hit.pattern(), from + hit.start()..from + hit.end()))
        {
            let (pattern, range) = range;
            let alone = self.patterns.get(pattern.as_usize()).is_some_and(|pattern| pattern.alone);
            if alone {
                let left = if range.start == 0 { before } else { text.get(range.start - 1).copied() };
                let right = text.get(range.end).copied();
                let undecided = right.is_none() && !last;
                let inside = left.is_some_and(|byte| byte.is_ascii_alphanumeric())
                    || right.is_some_and(|byte| byte.is_ascii_alphanumeric());
                if inside || undecided {
                    from = range.start + 1;
                    continue;
                }
            }
            from = range.end;
            found.push(range);
        }
        found
    }

    /// Where in `text`, from `from` on, something begins that the next bytes may
    /// turn into a pattern; the length of `text` when nothing does.
    fn undecided(&self, text: &[u8], from: usize) -> usize {
        let begin = from.max(text.len().saturating_sub(self.longest));
        let window = &text[begin..];
        let open = self
            .patterns
            .iter()
            .map(|pattern| {
                // A short value at the very end waits for what follows it.
                if pattern.alone && window.ends_with(&pattern.bytes) {
                    pattern.bytes.len()
                } else {
                    longest_overlap(&pattern.bytes, window)
                }
            })
            .max()
            .unwrap_or(0);
        text.len() - open
    }
}

impl RedactedStream<'_> {
    /// Takes the next bytes and returns what can be given out.
    #[must_use]
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        if self.redactor.is_empty() {
            return chunk.to_owned();
        }
        self.carry.extend_from_slice(chunk);
        self.drain(false)
    }

    /// Returns what was held back; the stream is at its end.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        self.drain(true)
    }

    fn drain(&mut self, last: bool) -> Vec<u8> {
        let text = std::mem::take(&mut *self.carry);
        let text = Zeroizing::new(text);
        let found = self.redactor.matches(&text, self.before, last);
        let mut out = Vec::with_capacity(text.len());
        let mut from = 0;
        let mut end = text.len();
        for range in found {
            // A longer pattern that begins no later wins over this one.
            let open = if last { text.len() } else { self.redactor.undecided(&text, from) };
            if open <= range.start {
                end = open;
                break;
            }
            out.extend_from_slice(&text[from..range.start]);
            out.extend_from_slice(REDACTED.as_bytes());
            from = range.end;
        }
        if !last {
            end = end.min(self.redactor.undecided(&text, from));
        }
        out.extend_from_slice(&text[from..end]);
        if end > 0 {
            self.before = text.get(end - 1).copied();
        }
        self.carry.extend_from_slice(&text[end..]);
        out
    }
}

/// The longest proper prefix of `pattern` that `text` ends with (the failure
/// function of Knuth, Morris and Pratt, run over `text`).
fn longest_overlap(pattern: &[u8], text: &[u8]) -> usize {
    let mut failure = vec![0_usize; pattern.len()];
    let mut length = 0;
    for index in 1..pattern.len() {
        while length > 0 && pattern[index] != pattern[length] {
            length = failure[length - 1];
        }
        if pattern[index] == pattern[length] {
            length += 1;
        }
        failure[index] = length;
    }
    let mut matched = 0;
    for byte in text {
        if matched == pattern.len() {
            matched = failure[matched - 1];
        }
        while matched > 0 && *byte != pattern[matched] {
            matched = failure[matched - 1];
        }
        if *byte == pattern[matched] {
            matched += 1;
        }
    }
    // A whole match is the finder's; what matters here is what is still open.
    if matched == pattern.len() { failure[matched - 1] } else { matched }
}

/// The forms a value is looked for in, and whether each must stand alone.
fn forms(value: &[u8]) -> Vec<(Zeroizing<Vec<u8>>, bool)> {
    if value.is_empty() {
        return Vec::new();
    }
    let mut forms = vec![(Zeroizing::new(value.to_owned()), value.len() < SHORT)];
    let mut add = |bytes: Zeroizing<Vec<u8>>| {
        if bytes.len() >= ENCODED_MIN && bytes.as_slice() != value {
            forms.push((bytes, false));
        }
    };
    // A tool that reads the value from a file or a shell often encodes the line
    // end with it; the alignment forms below cover that too, because they leave
    // out the characters that depend on what surrounds the value.
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
    for (upper, plus) in [(true, false), (false, false), (true, true)] {
        add(percent_encoded(value, upper, plus));
    }
    forms
}

/// RFC 3986 percent-encoding of all but unreserved characters; `plus` writes a
/// space as `+`, as forms do.
fn percent_encoded(value: &[u8], upper: bool, plus: bool) -> Zeroizing<Vec<u8>> {
    let digits = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    let mut out = Zeroizing::new(Vec::with_capacity(value.len()));
    for byte in value {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(*byte),
            b' ' if plus => out.push(b'+'),
            _ => out.extend_from_slice(&[b'%', digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]),
        }
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
        check(&["aaaa"], "aaaaaaaaa", "[REDACTED][REDACTED]a");
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
