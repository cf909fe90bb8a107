//! The end of a byte stream.

use std::collections::VecDeque;

/// The last bytes of a stream, with their places in it.
#[derive(Debug)]
pub struct Ring {
    bytes: VecDeque<u8>,
    limit: usize,
    /// How many bytes came before those that are kept.
    start: u64,
}

impl Ring {
    /// Returns an empty ring that keeps `limit` bytes. Memory is taken as bytes come.
    pub fn new(limit: usize) -> Self {
        Self { bytes: VecDeque::new(), limit, start: 0 }
    }

    /// Adds bytes and drops the oldest over the limit.
    pub fn push(&mut self, bytes: &[u8]) {
        let skipped = bytes.len().saturating_sub(self.limit);
        let kept = bytes.get(skipped..).unwrap_or_default();
        let over = (self.bytes.len() + kept.len()).saturating_sub(self.limit);
        self.bytes.drain(..over.min(self.bytes.len()));
        self.start += (over + skipped) as u64;
        // Growth by doubling would end at twice the limit.
        if self.bytes.len() + kept.len() > self.limit / 2 && self.bytes.capacity() < self.limit {
            self.bytes.reserve_exact(self.limit - self.bytes.len());
        }
        self.bytes.extend(kept);
    }

    /// Returns the place of the first byte that is kept.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Returns the place after the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Returns at most `max` bytes from `place` on, and where they begin: later when older bytes were dropped, earlier when
    /// there is nothing there yet.
    pub fn read(&self, place: u64, max: usize) -> (u64, Vec<u8>) {
        let start = place.clamp(self.start, self.end());
        let skip = usize::try_from(start - self.start).unwrap_or(usize::MAX);
        (start, self.bytes.range(skip.min(self.bytes.len())..).take(max).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_with_their_places() {
        let mut ring = Ring::new(5);
        assert_eq!(ring.read(0, 9), (0, vec![]));
        ring.push(b"abc");
        assert_eq!(ring.read(1, 1), (1, b"b".to_vec()));
        ring.push(b"defg");
        assert_eq!((ring.start(), ring.end()), (2, 7));
        assert_eq!(ring.read(0, 9), (2, b"cdefg".to_vec()));
        assert_eq!(ring.read(5, 9), (5, b"fg".to_vec()));
        assert_eq!(ring.read(99, 9), (7, vec![]));
        ring.push(b"0123456789");
        assert_eq!((ring.start(), ring.read(0, 9)), (12, (12, b"56789".to_vec())));
        assert!(ring.bytes.capacity() <= 10);
    }

    #[test]
    fn a_ring_of_nothing_keeps_nothing() {
        let mut ring = Ring::new(0);
        ring.push(b"abc");
        assert_eq!((ring.start(), ring.end(), ring.read(0, 9)), (3, 3, (3, vec![])));
    }
}
