//! What was kept of a command's output, as text.

use crate::bindings::pyro::host::blobs::Blob;
use crate::bindings::pyro::vm::exec::Captured;

/// Bytes read from the host at a time.
const CHUNK: u32 = 256 * 1024;

/// Output as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The text; where bytes are missing, a line says how many.
    pub text: String,
    /// Bytes that the command wrote in all.
    pub total_bytes: u64,
    /// Bytes are missing from the middle.
    pub truncated: bool,
    /// Some bytes were not UTF-8 and stand as U+FFFD.
    pub lossy: bool,
}

/// Returns what was kept of a stream as text.
pub fn text(captured: &Captured) -> Text {
    let bytes = read(&captured.bytes);
    let head = usize::try_from(captured.head_bytes).unwrap_or(usize::MAX).min(bytes.len());
    let (head, tail) = bytes.split_at(head);
    render(head, tail, captured.total_bytes, captured.truncated)
}

/// Returns all bytes of a blob.
pub fn read(blob: &Blob) -> Vec<u8> {
    let size = blob.size();
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    while (bytes.len() as u64) < size {
        let chunk = blob.read(bytes.len() as u64, CHUNK);
        if chunk.is_empty() {
            break;
        }
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

fn render(head: &[u8], tail: &[u8], total_bytes: u64, truncated: bool) -> Text {
    if !truncated {
        // One text: a character may stand on both sides of the border.
        let (text, lossy) = decode([head, tail].concat());
        return Text { text, total_bytes, truncated, lossy };
    }
    // The cuts are not the command's doing: a character they split is dropped, not shown as broken.
    let (head, cut_head) = head.split_at(whole_end(head));
    let (cut_tail, tail) = tail.split_at(whole_start(tail));
    let missing = total_bytes.saturating_sub((head.len() + tail.len()) as u64);
    debug_assert!(missing >= (cut_head.len() + cut_tail.len()) as u64);
    let (mut text, head_lossy) = decode(head.to_vec());
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("[... {missing} bytes left out ...]\n"));
    let (tail, tail_lossy) = decode(tail.to_vec());
    text.push_str(&tail);
    Text { text, total_bytes, truncated, lossy: head_lossy || tail_lossy }
}

fn decode(bytes: Vec<u8>) -> (String, bool) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, false),
        Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), true),
    }
}

/// Where the last whole character of `bytes` ends, when its end is a cut.
fn whole_end(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        // An unfinished character at the end is not an error yet.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => {
            // Broken earlier on: look at the last bytes only.
            let from = bytes.len().saturating_sub(3);
            (from..bytes.len())
                .find(|&at| matches!(std::str::from_utf8(&bytes[at..]), Err(error) if error.valid_up_to() == 0 && error.error_len().is_none()))
                .unwrap_or(bytes.len())
        }
    }
}

/// Where the first whole character of `bytes` starts, when its start is a cut.
fn whole_start(bytes: &[u8]) -> usize {
    bytes.iter().take(3).take_while(|byte| **byte & 0b1100_0000 == 0b1000_0000).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_output_is_shown_as_it_is() {
        let text = render("grü".as_bytes(), b"n\n", 6, false);
        assert_eq!(text, Text { text: "grün\n".to_owned(), total_bytes: 6, truncated: false, lossy: false });
        // A character on the border of head and tail.
        assert_eq!(render(b"\xc3", b"\xbc", 2, false).text, "ü");
        assert!(render(b"a\xff", b"b", 3, false).lossy);
    }

    #[test]
    fn the_gap_is_named_and_splits_no_character() {
        let text = render("ab\u{fc}".as_bytes().split_last().unwrap().1, &"\u{fc}yz".as_bytes()[1..], 100, true);
        assert_eq!(text.text, "ab\n[... 96 bytes left out ...]\nyz");
        assert!(!text.lossy);
        assert_eq!(render(b"x\n", b"y", 10, true).text, "x\n[... 7 bytes left out ...]\ny");
        assert_eq!(render(b"", b"", 10, true).text, "[... 10 bytes left out ...]\n");
    }
}
