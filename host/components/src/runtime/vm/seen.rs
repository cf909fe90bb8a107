//! What one call has read of guests' files: what it then writes replaces just that, or nothing.
//!
//! Two calls that read a file, change the text and write it would otherwise lose one change, and nobody would be told.
//! Only what was read whole, from its beginning on, is known; other writes replace whatever is there.

use std::collections::HashMap;

use pyro_engine::ContentSum;

/// Files that are remembered in one call; those after them are written without a look.
const MAX_FILES: usize = 10_000;

/// The files that a call has read.
#[derive(Debug, Default)]
pub(crate) struct SeenFiles(HashMap<(String, String), Seen>);

#[derive(Debug)]
struct Seen {
    sum: ContentSum,
    whole: bool,
}

impl SeenFiles {
    /// Notes what a read of a machine's file returned, and the file's size.
    pub(super) fn read(&mut self, machine: &str, path: &str, offset: u64, bytes: &[u8], size: u64) {
        let key = (machine.to_owned(), path.to_owned());
        let before = self.0.remove(&key).map(|seen| seen.sum);
        let sum = if offset == 0 { Some(ContentSum::default()) } else { before.filter(|sum| sum.bytes == offset) };
        if let Some(mut sum) = sum
            && self.0.len() < MAX_FILES
        {
            sum.add(bytes);
            self.0.insert(key, Seen { sum, whole: sum.bytes == size });
        }
    }

    /// Returns what the file must still have when it is replaced.
    pub(super) fn expected(&self, machine: &str, path: &str) -> Option<ContentSum> {
        let seen = self.0.get(&(machine.to_owned(), path.to_owned()))?;
        seen.whole.then_some(seen.sum)
    }

    /// Forgets a file that was replaced, or may have been. One that was not is still known: a write that is sent again
    /// without reading anew meets the same conflict.
    pub(super) fn forget(&mut self, machine: &str, path: &str) {
        self.0.remove(&(machine.to_owned(), path.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> ContentSum {
        let mut sum = ContentSum::default();
        sum.add(bytes);
        sum
    }

    #[test]
    fn what_was_read_whole_is_known_until_it_is_replaced() {
        let mut seen = SeenFiles::default();
        seen.read("m", "/a", 0, b"one", 3);
        seen.read("m", "/b", 0, b"on", 5);
        seen.read("m", "/b", 2, b"e", 5);
        seen.read("m", "/c", 1, b"x", 2);
        assert_eq!(seen.expected("other", "/a"), None);
        assert_eq!(seen.expected("m", "/a"), Some(sum(b"one")));
        assert_eq!(seen.expected("m", "/a"), Some(sum(b"one")), "until it is replaced");
        seen.forget("m", "/a");
        assert_eq!(seen.expected("m", "/a"), None);
        assert_eq!((seen.expected("m", "/b"), seen.expected("m", "/c")), (None, None), "a part says nothing");
        seen.read("m", "/b", 0, b"on", 3);
        seen.read("m", "/b", 2, b"e", 3);
        assert_eq!(seen.expected("m", "/b"), Some(sum(b"one")));
        seen.read("m", "/b", 0, b"", 0);
        assert_eq!(seen.expected("m", "/b"), Some(ContentSum::default()));
    }
}
