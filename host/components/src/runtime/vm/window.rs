//! Reading a part of an output with its secrets taken out, from any place on.

use pyro_engine::secrets::REDACTED;

use super::redact::Redaction;

/// Which part of an output is wanted.
///
/// A secret keeps its length, so that a cursor counts the same bytes on both sides. It may begin before the cursor and end
/// behind the last byte asked for, so more is read on both sides; and it may go on after what there is, so the end is held
/// back while it may be the beginning of one.
#[derive(Debug)]
pub(super) struct Window {
    /// The first byte.
    pub(super) cursor: u64,
    /// Bytes at most.
    pub(super) max: u32,
    /// Bytes that one read of the guest returns at most.
    pub(super) most: u32,
    /// Whether an end that may be the beginning of a secret is given out when it is all there is.
    pub(super) release: bool,
}

/// A part of an output.
#[derive(Debug)]
pub(super) struct Part<I> {
    pub(super) data: Vec<u8>,
    pub(super) start: u64,
    pub(super) next: u64,
    /// Whether nothing can follow any more.
    pub(super) ended: bool,
    pub(super) info: I,
}

impl Window {
    /// What to read of the guest: a cursor and a number of bytes.
    pub(super) fn around(&self, redaction: &Redaction) -> (u64, u32) {
        // So much is read around what was asked for that a secret which reaches into it is seen whole.
        let around = u32::try_from(redaction.redactor().longest()).unwrap_or(u32::MAX);
        let from = self.cursor.saturating_sub(around.into());
        let lead = u32::try_from(self.cursor - from).unwrap_or(around);
        (from, self.max.saturating_add(lead).saturating_add(around))
    }

    /// Returns what is wanted of what was read, without secrets.
    pub(super) fn cut<I>(&self, redaction: &Redaction, mut part: Part<I>) -> Part<I> {
        let longest = redaction.redactor().longest();
        if longest == 0 {
            return part;
        }
        let (from, asked) = self.around(redaction);
        let mut skip = usize::try_from(self.cursor.saturating_sub(part.start)).unwrap_or(usize::MAX);
        if part.start > from {
            // Older output was dropped, maybe the head of a secret: nobody could tell what is left of that one.
            skip = skip.max(longest - 1);
        }
        let skip = skip.min(part.data.len());
        let all = part.data.len() < usize::try_from(asked.min(self.most)).unwrap_or(usize::MAX);
        let (mut masked, mut settled) = mask(redaction, &part.data, all && part.ended);
        if settled <= skip && all && self.release {
            (masked, settled) = mask(redaction, &part.data, true);
        }
        let end = skip.saturating_add(usize::try_from(self.max).unwrap_or(usize::MAX));
        part.data = masked.get(skip..settled.clamp(skip, end)).unwrap_or_default().to_vec();
        part.start += skip as u64;
        part.next = part.start + part.data.len() as u64;
        part
    }
}

/// Returns `text` with its secrets covered, each by as many bytes as it has, and how much of it no later byte can change.
fn mask(redaction: &Redaction, text: &[u8], at_end: bool) -> (Vec<u8>, usize) {
    let (ranges, settled) = redaction.redactor().find(text, at_end);
    let mut masked = text.to_vec();
    for range in ranges {
        let Some(bytes) = masked.get_mut(range) else { continue };
        bytes.fill(b'*');
        if let Some(head) = bytes.get_mut(..REDACTED.len()) {
            head.copy_from_slice(REDACTED.as_bytes());
        }
    }
    (masked, settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads from a log of which the bytes before `dropped` are gone.
    fn read(log: &str, dropped: usize, ended: bool, cursor: u64, max: u32) -> (u64, String) {
        let redaction = Redaction::of([b"correct horse".as_slice()]);
        let window = Window { cursor, max, most: 1 << 20, release: false };
        let (from, asked) = window.around(&redaction);
        let start = usize::try_from(from).unwrap().clamp(dropped, log.len());
        let data: Vec<u8> = log.bytes().skip(start).take(asked as usize).collect();
        let next = (start + data.len()) as u64;
        let part = window.cut(&redaction, Part { data, start: start as u64, next, ended, info: () });
        assert_eq!(part.next, part.start + part.data.len() as u64);
        (part.start, String::from_utf8(part.data).unwrap())
    }

    #[test]
    fn a_secret_is_covered_from_any_place_on() {
        let log = "say correct horse now";
        assert_eq!(read(log, 0, false, 0, 99), (0, "say [REDACTED]*** now".to_owned()));
        assert_eq!(read(log, 0, false, 6, 4), (6, "EDAC".to_owned()));
        assert_eq!(read(log, 0, false, 20, 99), (20, "w".to_owned()));
        // One that is half there is held back until nothing can follow.
        assert_eq!(read("say correct ho", 0, false, 0, 99), (0, "say ".to_owned()));
        assert_eq!(read("say correct ho", 0, false, 4, 99), (4, String::new()));
        assert_eq!(read("say correct ho", 0, true, 0, 99), (0, "say correct ho".to_owned()));
    }

    #[test]
    fn what_is_left_of_a_dropped_secret_is_not_shown() {
        let (start, text) = read("say correct horse now and then", 9, true, 0, 99);
        // It is looked for in longer forms too, so more than its own rest goes.
        assert!(start >= 17 && !text.is_empty() && " now and then".ends_with(&text), "{start} {text}");
    }

    #[test]
    fn a_covered_text_keeps_its_length() {
        let redaction = Redaction::of([b"correct horse".as_slice(), b"short"]);
        let covered = |text: &str| {
            let (masked, settled) = mask(&redaction, text.as_bytes(), false);
            assert_eq!(masked.len(), text.len());
            (String::from_utf8(masked).unwrap(), settled)
        };
        assert_eq!(covered("a correct horse and short one"), ("a [REDACTED]*** and ***** one".to_owned(), 29));
        assert_eq!(covered("it is corr"), ("it is corr".to_owned(), 6));
    }
}
