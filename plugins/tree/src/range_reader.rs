//! `Read + Seek` over bytes that are fetched in ranges.

use std::io::{self, Read, Seek, SeekFrom};

/// Bytes fetched at a time: a few hundred small files per fetch, and far below what one fetch may
/// return.
const WINDOW: u32 = 256 * 1024;

/// A reader over `size` bytes, of which `fetch(offset, length)` returns a part: at least one byte
/// and at most `length`, unless the offset is at the end.
pub struct RangeReader<F> {
    fetch: F,
    size: u64,
    position: u64,
    window_start: u64,
    window: Vec<u8>,
}

impl<F: FnMut(u64, u32) -> Vec<u8>> RangeReader<F> {
    /// Returns a reader at the start.
    pub fn new(size: u64, fetch: F) -> Self {
        RangeReader { fetch, size, position: 0, window_start: 0, window: Vec::new() }
    }

    /// The rest of the window from the current position on; filled when it is empty.
    fn available(&mut self) -> &[u8] {
        let inside = self.position.checked_sub(self.window_start);
        let held = inside.is_some_and(|at| at < self.window.len() as u64);
        if !held && self.position < self.size {
            self.window = (self.fetch)(self.position, WINDOW);
            self.window_start = self.position;
        }
        let at = self.position.checked_sub(self.window_start).and_then(|at| usize::try_from(at).ok());
        let rest = at.and_then(|at| self.window.get(at..)).unwrap_or_default();
        // A host that returns more than there is does not make the blob longer.
        let left = usize::try_from(self.size.saturating_sub(self.position)).unwrap_or(usize::MAX);
        rest.get(..rest.len().min(left)).unwrap_or_default()
    }
}

impl<F: FnMut(u64, u32) -> Vec<u8>> Read for RangeReader<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.available();
        let count = available.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(available) {
            *to = *from;
        }
        self.position += count as u64;
        Ok(count)
    }
}

impl<F> Seek for RangeReader<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_seeks_see_the_same_bytes_as_a_slice() {
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut fetches = 0;
        let fetch = |offset: u64, length: u32| {
            fetches += 1;
            let start = offset as usize;
            bytes[start..bytes.len().min(start + length as usize)].to_vec()
        };
        let mut reader = RangeReader::new(bytes.len() as u64, fetch);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert!(all == bytes);
        for at in [0, 1, 262_143, 262_144, 1_999_999, 2_000_000, 3_000_000] {
            reader.seek(SeekFrom::Start(at)).unwrap();
            let mut part = Vec::new();
            (&mut reader).take(10).read_to_end(&mut part).unwrap();
            assert_eq!(part, bytes.get(at as usize..).map_or(&[][..], |rest| &rest[..rest.len().min(10)]));
        }
        assert!(reader.seek(SeekFrom::Current(-9_000_000)).is_err());
        drop(reader);
        assert!(fetches < 20, "{fetches}");
    }

    #[test]
    fn a_host_that_returns_nothing_ends_the_stream() {
        let mut reader = RangeReader::new(100, |_, _| Vec::new());
        assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0);
    }
}
