//! Guest buffers as the kernel's scatter-gather lists, for file I/O without a copy.
//!
//! One of the modules with host pointers to guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::GuestRam;

/// Most pieces of one list: the kernel's `UIO_MAXIOV`.
pub const MAX_PIECES: usize = 1024;

/// The guest's buffers of one request, all inside guest memory.
#[derive(Default)]
pub struct GuestBuffers {
    pieces: Vec<libc::iovec>,
    // In step with `pieces`, for splitting.
    addresses: Vec<(GuestAddress, usize)>,
    len: u64,
}

// SAFETY: the pointers are into guest RAM, which is shared memory that any thread may access; they
// are only given to the kernel together with the `GuestRam` that keeps the mapping.
unsafe impl Send for GuestBuffers {}

/// A buffer that is not in guest memory, or too many of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuffersError {
    /// See the message.
    #[error("buffer of {len} bytes at {address:#x} is outside guest memory")]
    Outside {
        /// Guest address.
        address: u64,
        /// Length.
        len: usize,
    },
    /// See the message.
    #[error("more than {MAX_PIECES} buffers in one request")]
    TooMany,
}

impl GuestBuffers {
    /// Adds a buffer.
    pub fn push(&mut self, ram: &GuestRam, address: GuestAddress, len: usize) -> Result<(), BuffersError> {
        let outside = || BuffersError::Outside { address: address.0, len };
        if len == 0 {
            return Ok(());
        }
        let mut at = address;
        for slice in ram.get_slices(address, len) {
            let slice = slice.map_err(|_| outside())?;
            if self.pieces.len() == MAX_PIECES {
                return Err(BuffersError::TooMany);
            }
            self.pieces.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
            self.addresses.push((at, slice.len()));
            at = GuestAddress(at.0.wrapping_add(slice.len() as u64));
            self.len += slice.len() as u64;
        }
        Ok(())
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the last byte off and returns its address.
    pub fn pop_byte(&mut self) -> Option<GuestAddress> {
        let (piece, (address, len)) = (self.pieces.last_mut()?, self.addresses.last_mut()?);
        // Pieces are never empty.
        let last = len.checked_sub(1)?;
        let at = GuestAddress(address.0.wrapping_add(last as u64));
        if last == 0 {
            self.pieces.pop();
            self.addresses.pop();
        } else {
            piece.iov_len = last;
            *len = last;
        }
        self.len -= 1;
        Some(at)
    }

    /// Takes bytes off the start and copies them to `to`. Returns false when there are too few.
    pub fn take_start(&mut self, ram: &GuestRam, to: &mut [u8]) -> bool {
        if self.len < to.len() as u64 {
            return false;
        }
        let mut filled = 0;
        while filled < to.len() {
            let Some((address, len)) = self.addresses.first().copied() else {
                return false;
            };
            let count = len.min(to.len() - filled);
            let Some(part) = to.get_mut(filled..filled + count) else {
                return false;
            };
            if ram.read_slice(part, address).is_err() {
                return false;
            }
            filled += count;
            self.drop_start(count);
        }
        true
    }

    fn drop_start(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let (Some(piece), Some((address, len))) = (self.pieces.first_mut(), self.addresses.first_mut()) else {
                return;
            };
            let step = left.min(*len);
            if step == *len {
                self.pieces.remove(0);
                self.addresses.remove(0);
            } else {
                piece.iov_base = piece.iov_base.wrapping_byte_add(step);
                piece.iov_len -= step;
                *len -= step;
                address.0 = address.0.wrapping_add(step as u64);
            }
            self.len -= step as u64;
            left -= step;
        }
    }

    /// Copies bytes into the buffers from their start; returns how many fitted.
    pub fn write(&self, ram: &GuestRam, from: &[u8]) -> usize {
        let mut written = 0;
        for (address, len) in &self.addresses {
            let end = from.len().min(written + len);
            let Some(part) = from.get(written..end) else {
                break;
            };
            if part.is_empty() || ram.write_slice(part, *address).is_err() {
                break;
            }
            written = end;
        }
        written
    }

    /// Fills at most `limit` bytes of the buffers from `file` at `offset` and drops what is
    /// filled. With `only_cached`, fails with `EAGAIN` rather than wait for the disk: what was
    /// read until then is dropped from the buffers, and the caller goes on behind it.
    ///
    /// `_ram` is the memory of these buffers: holding it keeps it mapped.
    pub fn read_from(
        &mut self,
        _ram: &GuestRam,
        file: &File,
        offset: u64,
        limit: u64,
        only_cached: bool,
    ) -> io::Result<u64> {
        let flags = if only_cached { libc::RWF_NOWAIT } else { 0 };
        self.transfer(offset, limit, |pieces, offset| {
            // SAFETY: every piece is a range of guest RAM, mapped read-write while `_ram` lives.
            unsafe { libc::preadv2(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int, offset, flags) }
        })
    }

    /// Writes the buffers to `file` at `offset`.
    pub fn write_to(&mut self, _ram: &GuestRam, file: &File, offset: u64) -> io::Result<u64> {
        self.transfer(offset, u64::MAX, |pieces, offset| {
            // SAFETY: as in `read_from`; the kernel only reads them here.
            unsafe { libc::pwritev2(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int, offset, 0) }
        })
    }

    fn transfer(
        &mut self,
        offset: u64,
        limit: u64,
        call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
    ) -> io::Result<u64> {
        let wanted = self.len.min(limit);
        let mut done = 0;
        while done < wanted {
            let at = offset
                .checked_add(done)
                .and_then(|at| libc::off_t::try_from(at).ok())
                .ok_or(io::ErrorKind::InvalidInput)?;
            let result = self.with_first(wanted - done, |pieces| call(pieces, at));
            if result < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            if result == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += result as u64;
            self.drop_start(result as usize);
        }
        Ok(done)
    }

    /// Calls `call` with the pieces of the first `limit` bytes.
    fn with_first(&mut self, limit: u64, call: impl FnOnce(&[libc::iovec]) -> isize) -> isize {
        let mut before = 0;
        let mut count = 0;
        for piece in &self.pieces {
            if before >= limit {
                break;
            }
            before += piece.iov_len as u64;
            count += 1;
        }
        let excess = usize::try_from(before.saturating_sub(limit)).unwrap_or(0);
        let Some(pieces) = self.pieces.get_mut(..count) else {
            return 0;
        };
        // The last one is shortened for the length of the call.
        if let Some(last) = pieces.last_mut() {
            last.iov_len -= excess;
        }
        let result = call(pieces);
        if let Some(last) = pieces.last_mut() {
            last.iov_len += excess;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn buffers(ram: &GuestRam, parts: &[(u64, usize)]) -> GuestBuffers {
        let mut buffers = GuestBuffers::default();
        for (address, len) in parts {
            buffers.push(ram, GuestAddress(*address), *len).unwrap();
        }
        buffers
    }

    #[test]
    fn requests_are_split_into_header_data_and_status() {
        let ram = crate::memory::allocate(1 << 20).unwrap();
        ram.write_slice(b"0123456789abcdefDATA", GuestAddress(0x1000)).unwrap();
        let mut all = buffers(&ram, &[(0x1000, 3), (0x1003, 15), (0x1012, 2), (0x2000, 1)]);
        assert_eq!(all.pop_byte(), Some(GuestAddress(0x2000)));
        let mut header = [0; 16];
        assert!(all.take_start(&ram, &mut header));
        assert_eq!(&header, b"0123456789abcdef");
        assert_eq!(all.len(), 4);
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(all.write_to(&ram, &file, 5).unwrap(), 4);
        let mut seen = [0; 4];
        file.read_exact_at(&mut seen, 5).unwrap();
        assert_eq!(&seen, b"DATA");
        assert!(all.is_empty());
        file.write_all(b"abcdefghi").unwrap();
        let mut into = buffers(&ram, &[(0x5000, 2), (0x6000, 3)]);
        assert_eq!(into.read_from(&ram, &file, 1, u64::MAX, false).unwrap(), 5);
        let mut seen = [0; 3];
        ram.read_slice(&mut seen, GuestAddress(0x6000)).unwrap();
        assert_eq!(&seen, b"def");
    }

    #[test]
    fn buffers_outside_memory_are_refused() {
        let ram = crate::memory::allocate(1 << 20).unwrap();
        let mut some = GuestBuffers::default();
        for (address, len) in [((1 << 20) - 2, 4), (u64::MAX - 1, 8), (1 << 40, 1)] {
            assert!(some.push(&ram, GuestAddress(address), len).is_err());
        }
        let mut many = GuestBuffers::default();
        for index in 0..MAX_PIECES {
            many.push(&ram, GuestAddress(index as u64), 1).unwrap();
        }
        assert_eq!(many.push(&ram, GuestAddress(0), 1), Err(BuffersError::TooMany));
    }
}
