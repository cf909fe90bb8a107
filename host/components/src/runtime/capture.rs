//! The bounded capture of a command's output, and the tail of the component's own standard error.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Bytes of a component's standard error that an error shows.
const STDERR_TAIL_BYTES: usize = 2048;

/// Keeps the head and the tail of a stream and counts the rest.
#[derive(Debug)]
pub(crate) struct Capture {
    head_limit: usize,
    tail_limit: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Capture {
    /// Keeps `keep` bytes: half of them head, the rest tail.
    pub(crate) fn new(keep: usize) -> Capture {
        let head_limit = keep - keep / 2;
        Capture { head_limit, tail_limit: keep / 2, head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total = self.total.saturating_add(bytes.len() as u64);
        let room = self.head_limit - self.head.len();
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        // Of a chunk longer than the tail only its end can stay.
        let rest = rest.get(rest.len().saturating_sub(self.tail_limit)..).unwrap_or_default();
        let over = (self.tail.len() + rest.len()).saturating_sub(self.tail_limit);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    /// Replaces what is held, head and tail each by itself.
    pub(crate) fn rewrite(&mut self, with: impl Fn(Vec<u8>) -> Vec<u8>) {
        let missing = self.total - self.held() as u64;
        self.head = with(std::mem::take(&mut self.head));
        self.tail = with(Vec::from(std::mem::take(&mut self.tail))).into();
        self.total = missing + self.held() as u64;
    }

    /// Bytes held right now.
    pub(crate) fn held(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Returns the kept bytes, how many of them are head, how many there were, and whether some are missing.
    pub(crate) fn finish(self) -> (Bytes, u64, u64, bool) {
        let head_bytes = self.head.len() as u64;
        let kept = self.held() as u64;
        let mut bytes = self.head;
        let (front, back) = self.tail.as_slices();
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(back);
        (Bytes::from(bytes), head_bytes, self.total, kept < self.total)
    }
}

/// The end of what a component wrote to its standard output and error.
#[derive(Clone, Debug, Default)]
pub(crate) struct StdioTail(Arc<Mutex<VecDeque<u8>>>);

impl StdioTail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = bytes.get(bytes.len().saturating_sub(STDERR_TAIL_BYTES)..).unwrap_or_default();
        let over = (tail.len() + bytes.len()).saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..over);
        tail.extend(bytes);
    }

    /// Returns the text, without control characters that could steer a terminal.
    pub(crate) fn text(&self) -> String {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sanitized(tail.make_contiguous())
    }
}

/// Text for a person's terminal and a model's eyes: control characters but line feed and tab are shown as `�`.
pub(crate) fn sanitized(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| *c != '\r')
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

impl IsTerminal for StdioTail {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for StdioTail {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this one, and it is not linked.
        Box::new(tokio::io::sink())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for StdioTail {
    async fn ready(&mut self) {}
}

impl OutputStream for StdioTail {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(keep: usize, chunks: &[&[u8]]) -> (Vec<u8>, u64, u64, bool) {
        let mut capture = Capture::new(keep);
        for chunk in chunks {
            capture.push(chunk);
            assert!(capture.held() <= keep);
        }
        let (bytes, head, total, truncated) = capture.finish();
        (bytes.to_vec(), head, total, truncated)
    }

    #[test]
    fn short_output_is_kept_whole() {
        assert_eq!(capture(10, &[b"abc", b"", b"defg"]), (b"abcdefg".to_vec(), 5, 7, false));
        assert_eq!(capture(10, &[b"0123456789"]), (b"0123456789".to_vec(), 5, 10, false));
        assert_eq!(capture(10, &[]), (vec![], 0, 0, false));
    }

    #[test]
    fn long_output_keeps_head_and_tail() {
        assert_eq!(capture(4, &[b"abcdefgh"]), (b"abgh".to_vec(), 2, 8, true));
        assert_eq!(capture(4, &[b"a", b"b", b"c", b"d", b"e"]), (b"abde".to_vec(), 2, 5, true));
        assert_eq!(capture(5, &[b"abcdef"]), (b"abcef".to_vec(), 3, 6, true));
        assert_eq!(capture(1, &[b"abc"]), (b"a".to_vec(), 1, 3, true));
        assert_eq!(capture(0, &[b"abc"]), (vec![], 0, 3, true));
    }

    #[test]
    fn standard_error_keeps_its_end_and_no_control_characters() {
        let tail = StdioTail::default();
        tail.push(&[b'x'; 5000]);
        tail.push(b"\x1b[31mend\r\n");
        let text = tail.text();
        assert!(text.ends_with("\u{fffd}[31mend\n"), "{text}");
        assert!(text.len() <= STDERR_TAIL_BYTES + 8);
    }
}
