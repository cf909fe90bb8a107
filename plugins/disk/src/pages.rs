//! Bytes of a disk, fetched in pages and kept for a while.
//!
//! A file system is read in many small pieces that lie near each other (inodes, directory blocks),
//! and each fetch crosses into the host.

use std::collections::{HashMap, VecDeque};

use ext4_view::Ext4Read;
use thiserror::Error;

/// Bytes of a page.
const PAGE: u64 = 64 * 1024;
/// Pages kept: 4 MiB.
const KEPT: usize = 64;

/// A read behind the end of the disk, or a fetch that came back short.
#[derive(Debug, Error)]
#[error("cannot read {length} bytes at offset {offset} of a disk of {size} bytes")]
pub struct PagesError {
    offset: u64,
    length: usize,
    size: u64,
}

/// A disk of `size` bytes, of which `fetch(offset, length)` returns a part.
pub struct Pages<F> {
    fetch: F,
    size: u64,
    pages: HashMap<u64, Vec<u8>>,
    order: VecDeque<u64>,
}

impl<F: FnMut(u64, u32) -> Vec<u8>> Pages<F> {
    /// Returns a disk of which nothing is fetched yet.
    pub fn new(size: u64, fetch: F) -> Self {
        Pages { fetch, size, pages: HashMap::new(), order: VecDeque::new() }
    }

    fn page(&mut self, number: u64) -> &[u8] {
        if !self.pages.contains_key(&number) {
            if self.order.len() >= KEPT
                && let Some(oldest) = self.order.pop_front()
            {
                self.pages.remove(&oldest);
            }
            let page = (self.fetch)(number * PAGE, u32::try_from(PAGE).unwrap_or(u32::MAX));
            self.pages.insert(number, page);
            self.order.push_back(number);
        }
        self.pages.get(&number).map(Vec::as_slice).unwrap_or_default()
    }
}

impl<F: FnMut(u64, u32) -> Vec<u8>> Ext4Read for Pages<F> {
    fn read(&mut self, start: u64, target: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let error = PagesError { offset: start, length: target.len(), size: self.size };
        if start.checked_add(target.len() as u64).is_none_or(|end| end > self.size) {
            return Err(error.into());
        }
        let mut at = start;
        let mut rest = target;
        while !rest.is_empty() {
            let inside = usize::try_from(at % PAGE)?;
            let page = self.page(at / PAGE);
            let available = page.get(inside..).unwrap_or_default();
            let count = available.len().min(rest.len());
            if count == 0 {
                return Err(error.into());
            }
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(available.get(..count).unwrap_or_default());
            rest = later;
            at += count as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_read_and_the_end_is_an_error() {
        let bytes: Vec<u8> = (0..9_000_000_u32).map(|n| (n / 7) as u8).collect();
        let mut pages = Pages::new(bytes.len() as u64, |offset, length| {
            let start = offset as usize;
            bytes[start..bytes.len().min(start + length as usize)].to_vec()
        });
        for (start, length) in [(0, 10), (65_530, 10), (0, 200_000), (8_999_999, 1), (4_000_000, 300_000), (3, 5)] {
            let mut out = vec![0; length];
            pages.read(start as u64, &mut out).unwrap();
            assert!(out == bytes[start..start + length], "{start} {length}");
        }
        assert!(pages.pages.len() <= KEPT);
        assert!(pages.read(8_999_999, &mut [0; 2]).is_err());
        assert!(pages.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(Pages::new(100, |_, _| Vec::new()).read(0, &mut [0; 2]).is_err());
    }
}
