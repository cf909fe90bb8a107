//! Where a read of a terminal's output ends.
//!
//! The cursor counts bytes of the output; what is handed out is whole characters and, when it will
//! be rendered, whole control sequences. What is cut off at the end is handed out by the next read.

use avt::Parser;
use avt::parser::State;

/// A control sequence longer than this is handed out in parts: no real one is.
const MAX_SEQUENCE: usize = 4096;

/// One read's share of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Decoded; bytes that are no UTF-8 became U+FFFD.
    pub text: String,
    /// Bytes of the output that it stands for.
    pub bytes: usize,
    /// True when characters were left because of the limit.
    pub cut: bool,
}

/// Takes at most `max_chars` characters of `output`.
///
/// `whole_sequences` holds an unfinished control sequence back; `last` says that no more bytes will
/// come, so that nothing is held back.
pub fn take(output: &[u8], max_chars: usize, whole_sequences: bool, last: bool) -> Share {
    let complete = if last { output.len() } else { complete_characters(output) };
    let mut share = decode(output.get(..complete).unwrap_or_default(), max_chars);
    if whole_sequences && (share.cut || !last) {
        let settled = settled_prefix(&share.text);
        // Nothing settled means that the sequence alone is over the limit: then it is not held.
        if settled > 0 && share.text.len() - settled <= MAX_SEQUENCE {
            share.bytes = source_length(output, share.text.get(..settled).unwrap_or_default());
            share.text.truncate(settled);
        } else if settled == 0 && share.text.len() <= MAX_SEQUENCE && !share.cut {
            share = Share { text: String::new(), bytes: 0, cut: false };
        }
    }
    share
}

/// Length of `bytes` without a character whose last bytes have not come yet.
fn complete_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let needed = match bytes.get(at) {
            Some(0xc2..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..=0xf4) => 4,
            Some(0x80..=0xbf) => continue,
            _ => return bytes.len(),
        };
        return if needed > back { at } else { bytes.len() };
    }
    bytes.len()
}

fn decode(bytes: &[u8], max_chars: usize) -> Share {
    let mut share = Share { text: String::new(), bytes: 0, cut: false };
    let mut chars = 0;
    for chunk in bytes.utf8_chunks() {
        for (at, character) in chunk.valid().char_indices() {
            if chars == max_chars {
                share.bytes += at;
                share.cut = true;
                return share;
            }
            share.text.push(character);
            chars += 1;
        }
        share.bytes += chunk.valid().len();
        if !chunk.invalid().is_empty() {
            if chars == max_chars {
                share.cut = true;
                return share;
            }
            share.text.push(char::REPLACEMENT_CHARACTER);
            chars += 1;
            share.bytes += chunk.invalid().len();
        }
    }
    share
}

/// Bytes of `output` that `text`, its decoded beginning, stands for.
fn source_length(output: &[u8], text: &str) -> usize {
    decode(output, text.chars().count()).bytes
}

/// Bytes of `text` up to the last place where no control sequence is open.
fn settled_prefix(text: &str) -> usize {
    let mut parser = Parser::new();
    let mut settled = 0;
    for (at, character) in text.char_indices() {
        parser.feed(character);
        if parser.state == State::Ground {
            settled = at + character.len_utf8();
        }
    }
    settled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(output: &[u8], max: usize, whole: bool, last: bool) -> (String, usize, bool) {
        let share = take(output, max, whole, last);
        (share.text, share.bytes, share.cut)
    }

    #[test]
    fn a_character_is_never_split() {
        let output = "aä€😀".as_bytes();
        for (end, text, bytes) in [(2, "a", 1), (3, "aä", 3), (5, "aä", 3), (9, "aä€", 6), (10, "aä€😀", 10)]
        {
            assert_eq!(share(&output[..end], 99, false, false), (text.to_owned(), bytes, false));
        }
        assert_eq!(share(&output[..2], 99, false, true), ("a\u{fffd}".to_owned(), 2, false));
        assert_eq!(share(b"a\xff\x80b", 99, false, false), ("a\u{fffd}\u{fffd}b".to_owned(), 4, false));
    }

    #[test]
    fn the_limit_counts_characters() {
        assert_eq!(share("aä€".as_bytes(), 2, false, false), ("aä".to_owned(), 3, true));
        assert_eq!(share("aä".as_bytes(), 2, false, false), ("aä".to_owned(), 3, false));
        assert_eq!(share(b"\xff\xff", 1, false, false), ("\u{fffd}".to_owned(), 1, true));
    }

    #[test]
    fn an_open_sequence_waits_for_its_end() {
        assert_eq!(share(b"ab\x1b[3", 99, true, false), ("ab".to_owned(), 2, false));
        assert_eq!(share(b"\x1b[3", 99, true, false), (String::new(), 0, false));
        assert_eq!(share(b"ab\x1b[31mc", 99, true, false).1, 8);
        assert_eq!(share(b"ab\x1b[3", 99, true, true).1, 5);
        assert_eq!(share(b"ab\xff\x1b[31m", 5, true, false), ("ab\u{fffd}".to_owned(), 3, true));
        // An escape that never ends does not stop the reader for ever.
        let endless = [b"\x1b]0;".to_vec(), vec![b'x'; 5000]].concat();
        assert_eq!(share(&endless, 9999, true, false).1, endless.len());
    }

    #[test]
    fn shares_add_up_to_the_output() {
        let output = "one\r\n\x1b[1mtwo ä€😀\x1b[0m\x1b]0;title\x07 end".as_bytes();
        for max in 8..20 {
            let (mut at, mut text) = (0, String::new());
            while at < output.len() {
                let share = take(&output[at..], max, true, false);
                assert!(share.bytes > 0, "stuck at {at} with {max}");
                text += &share.text;
                at += share.bytes;
            }
            assert_eq!(text.as_bytes(), output);
        }
    }
}
