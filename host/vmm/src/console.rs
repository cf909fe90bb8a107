//! Where the serial port's output goes: a bounded file and the last lines in memory.
//!
//! The guest decides what arrives here: nothing is interpreted but the words with which Linux
//! announces a panic.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes kept in memory: the last screenful and some more.
const TAIL_BYTES: usize = 16 * 1024;

/// What the kernel says when it panics.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// Longest line looked at for a panic.
const MAX_LINE: usize = 512;

/// A shared view of the console's last output.
#[derive(Debug, Clone, Default)]
pub struct ConsoleTail(Arc<Mutex<Tail>>);

#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    line: Vec<u8>,
    panic: Option<String>,
    total: u64,
}

impl ConsoleTail {
    /// Returns the last output, at most 16 KiB, with invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        let tail = self.lock();
        let (front, back) = tail.bytes.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }

    /// Returns the line in which the kernel announced a panic.
    pub fn panic(&self) -> Option<String> {
        self.lock().panic.clone()
    }

    /// Returns the number of bytes the guest has written.
    pub fn total(&self) -> u64 {
        self.lock().total
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, bytes: &[u8]) {
        let mut tail = self.lock();
        tail.total += bytes.len() as u64;
        for byte in bytes {
            if tail.bytes.len() == TAIL_BYTES {
                tail.bytes.pop_front();
            }
            tail.bytes.push_back(*byte);
            if *byte == b'\n' {
                if let Some(at) = tail.line.windows(PANIC.len()).position(|window| window == PANIC) {
                    let words = tail.line.get(at + PANIC.len()..).unwrap_or_default();
                    let words = String::from_utf8_lossy(words);
                    let message = words.trim_start_matches(':').trim().to_owned();
                    tail.panic.get_or_insert(message);
                }
                tail.line.clear();
            } else if tail.line.len() < MAX_LINE {
                tail.line.push(*byte);
            }
        }
    }
}

/// The writer given to the serial port.
pub struct Console {
    tail: ConsoleTail,
    file: Option<File>,
    room: u64,
    copy: Option<File>,
}

impl Console {
    /// Makes a console that writes at most `limit` bytes to `file`, and everything that it takes
    /// at once to `copy`.
    pub fn new(file: Option<File>, limit: u64, copy: Option<File>) -> Console {
        Console { tail: ConsoleTail::default(), file, room: limit, copy }
    }

    /// Returns the shared view of the last output.
    pub fn tail(&self) -> ConsoleTail {
        self.tail.clone()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tail.push(bytes);
        if let Some(copy) = &mut self.copy {
            // Never waited for: what it does not take is lost.
            let _ = copy.write(bytes);
        }
        if let Some(file) = &mut self.file {
            let count = bytes.len().min(usize::try_from(self.room).unwrap_or(usize::MAX));
            self.room -= count as u64;
            // A full disk must not stop the guest: the tail in memory goes on.
            if count > 0 && file.write_all(bytes.get(..count).unwrap_or_default()).is_err() {
                self.file = None;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn the_file_is_bounded_and_the_tail_goes_on() {
        let mut file = tempfile::tempfile().unwrap();
        let mut console = Console::new(Some(file.try_clone().unwrap()), 10, None);
        console.write_all(b"0123456789abc\n").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "0123456789");
        assert_eq!(console.tail().text(), "0123456789abc\n");
        console.write_all(&vec![b'x'; TAIL_BYTES + 5]).unwrap();
        assert_eq!(console.tail().text().len(), TAIL_BYTES);
        assert_eq!(console.tail().total(), 14 + TAIL_BYTES as u64 + 5);
    }

    #[test]
    fn a_panic_is_noticed() {
        let mut console = Console::new(None, 0, None);
        console.write_all(b"ok\n[    1.0] Kernel panic - not syncing: VFS: no root\r\n").unwrap();
        assert_eq!(console.tail().panic().as_deref(), Some("VFS: no root"));
    }
}
