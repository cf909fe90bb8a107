//! A part of a file: by bytes, or by lines.

/// What was taken of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Decoded; bytes that are no UTF-8 became U+FFFD.
    pub text: String,
    /// True when some did.
    pub lossy: bool,
    /// Where the taken bytes begin in the file.
    pub offset: u64,
    /// Where the next window begins.
    pub next: u64,
}

/// The text of `bytes`, which begin at `offset` of a file of `size` bytes.
///
/// A character that the end of `bytes` cuts is left for the next window, unless the file ends there.
pub fn by_bytes(bytes: &[u8], offset: u64, size: u64) -> Window {
    let ends_file = offset.saturating_add(bytes.len() as u64) >= size;
    let kept = if ends_file { bytes } else { complete(bytes) };
    let text = String::from_utf8_lossy(kept);
    Window {
        lossy: matches!(text, std::borrow::Cow::Owned(_)),
        next: offset + kept.len() as u64,
        text: text.into_owned(),
        offset,
    }
}

/// `bytes` without a last character that is cut; all of them when nothing else is there.
fn complete(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => {
            bytes.get(..error.valid_up_to()).unwrap_or(bytes)
        }
        // Invalid bytes before the end hide a cut character: look at the last three only.
        Err(_) => {
            let tail = bytes.len().saturating_sub(3);
            let cut = (tail.max(1)..bytes.len()).find(|at| {
                let width = match bytes.get(*at) {
                    Some(0xc2..=0xdf) => 2,
                    Some(0xe0..=0xef) => 3,
                    Some(0xf0..=0xf4) => 4,
                    _ => 1,
                };
                at + width > bytes.len()
            });
            cut.and_then(|at| bytes.get(..at)).unwrap_or(bytes)
        }
        Ok(_) => bytes,
    }
}

/// Takes the lines `first` to `last` (counted from one) of a file that arrives in pieces.
pub struct LineWindow {
    first: u64,
    last: u64,
    max_bytes: usize,
    line: u64,
    seen: u64,
    offset: Option<u64>,
    taken: Vec<u8>,
    cut: bool,
}

impl LineWindow {
    /// Returns a window that takes at most `max_bytes`.
    pub fn new(first: u64, last: u64, max_bytes: usize) -> Self {
        LineWindow { first, last, max_bytes, line: 1, seen: 0, offset: None, taken: Vec::new(), cut: false }
    }

    /// Takes the next piece; false when no more is needed.
    pub fn feed(&mut self, piece: &[u8]) -> bool {
        for line in piece.split_inclusive(|byte| *byte == b'\n') {
            if self.line > self.last {
                return false;
            }
            if self.line >= self.first {
                self.offset.get_or_insert(self.seen);
                let room = self.max_bytes - self.taken.len();
                self.taken.extend_from_slice(line.get(..room.min(line.len())).unwrap_or_default());
                if line.len() > room {
                    self.cut = true;
                    return false;
                }
            }
            self.seen += line.len() as u64;
            self.line += u64::from(line.ends_with(b"\n"));
        }
        self.line <= self.last
    }

    /// The window, and whether lines of the range were left because of the limit.
    pub fn finish(self) -> (Window, bool) {
        let offset = self.offset.unwrap_or(self.seen);
        let size = if self.cut { u64::MAX } else { 0 };
        (by_bytes(&self.taken, offset, size), self.cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_bytes_add_up() {
        let file = "aä€😀\u{feff}z".as_bytes();
        for step in 4..12 {
            let (mut at, mut text) = (0, String::new());
            while at < file.len() {
                let window = by_bytes(&file[at..file.len().min(at + step)], at as u64, file.len() as u64);
                assert!(!window.lossy && window.next > at as u64);
                text += &window.text;
                at = window.next as usize;
            }
            assert_eq!(text.as_bytes(), file);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_said() {
        let window = by_bytes(b"a\xff\xe2\x82", 0, 10);
        assert_eq!((window.text.as_str(), window.lossy, window.next), ("a\u{fffd}", true, 2));
        let window = by_bytes(b"a\xff\xe2\x82", 6, 10);
        assert_eq!((window.text.as_str(), window.next), ("a\u{fffd}\u{fffd}", 10));
        assert_eq!(by_bytes(b"\xe2", 0, 3).next, 1);
        assert_eq!(by_bytes(b"", 5, 3).text, "");
    }

    #[test]
    fn lines_are_taken_whatever_the_pieces() {
        let file = b"one\ntwo\n\nfour\r\nfive";
        for step in 1..10 {
            for (first, last, text, offset) in
                [(1, 1, "one\n", 0), (2, 4, "two\n\nfour\r\n", 4), (5, 99, "five", 15), (9, 9, "", 19)]
            {
                let mut window = LineWindow::new(first, last, 100);
                for piece in file.chunks(step) {
                    if !window.feed(piece) {
                        break;
                    }
                }
                let (window, cut) = window.finish();
                assert_eq!(
                    (window.text.as_str(), window.offset, cut),
                    (text, offset, false),
                    "{first}-{last} by {step}"
                );
            }
        }
    }

    #[test]
    fn the_limit_cuts_lines_and_says_where_to_go_on() {
        let mut window = LineWindow::new(2, 3, 5);
        assert!(!window.feed("one\nt€o\nthree\n".as_bytes()));
        let (window, cut) = window.finish();
        assert_eq!((window.text.as_str(), window.next, cut), ("t€o", 9, true));
    }
}
