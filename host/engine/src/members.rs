//! Reading the members of a tar that a guest, or anybody else, has made.
//!
//! The reader of the `tar` crate takes what stands before a member (long names, PAX records, the map of a sparse file)
//! into memory as long as its header says. So what it may read from one member to the next is counted below it, where
//! no record of the tar can change what is counted.

use std::cell::Cell;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::rc::Rc;

/// Most bytes of headers before the content of one member: its own, long names, PAX records. Linux bounds a name with
/// 4 KiB, and the attributes that PAX records hold with 64 KiB each.
pub const MAX_MEMBER_HEADERS: u64 = 1 << 20;

/// Bytes read at a time.
const BUFFER: usize = 1 << 16;

/// A tar as [`for_each_member`] reads it.
#[derive(Debug)]
pub struct BoundedTar<R> {
    inner: BufReader<R>,
    position: u64,
    length: u64,
    /// How much may be read, until the content of the next member.
    left: Rc<Cell<u64>>,
}

/// Hands every member of the tar to `visit`, from the tar's start and in its order. `failed` makes an error of what the
/// tar does wrong: headers of more than [`MAX_MEMBER_HEADERS`], and a member that ends behind the tar, are among it.
///
/// # Errors
/// Those of `failed` and `visit`.
pub fn for_each_member<R: Read + Seek, E>(
    mut tar: R,
    failed: impl Fn(io::Error) -> E,
    mut visit: impl FnMut(&mut tar::Entry<'_, BoundedTar<R>>) -> Result<(), E>,
) -> Result<(), E> {
    let length = tar.seek(SeekFrom::End(0)).and_then(|length| tar.rewind().map(|()| length)).map_err(&failed)?;
    let left = Rc::new(Cell::new(0));
    let inner = BufReader::with_capacity(BUFFER, tar);
    let mut archive = tar::Archive::new(BoundedTar { inner, position: 0, length, left: Rc::clone(&left) });
    // With seeks, nothing of a content is read on the way to the next member.
    let mut entries = archive.entries_with_seek().map_err(&failed)?;
    loop {
        left.set(MAX_MEMBER_HEADERS);
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(&failed)?;
        // These are a member to the reader, and headers to everybody else.
        if entry.header().entry_type().is_pax_global_extensions() && entry.size() > MAX_MEMBER_HEADERS {
            return Err(failed(too_long()));
        }
        left.set(u64::MAX);
        visit(&mut entry)?;
    }
}

fn too_long() -> io::Error {
    let message = format!("a member has more than {} KiB of headers", MAX_MEMBER_HEADERS >> 10);
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl<R: Read> Read for BoundedTar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(too_long());
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.left.set(left - count as u64);
        self.position += count as u64;
        Ok(count)
    }
}

impl<R: Seek> Seek for BoundedTar<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let behind = || io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of a member");
        let position = match to {
            // What is buffered stays so: small members lie close together.
            SeekFrom::Current(by) => {
                let position = self.position.checked_add_signed(by).ok_or_else(behind)?;
                // The next read would take it for the end of the tar.
                if position > self.length {
                    return Err(behind());
                }
                self.inner.seek_relative(by)?;
                position
            }
            to => self.inner.seek(to)?,
        };
        self.position = position;
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tar::{EntryType, Header};

    use super::*;

    fn put(tar: &mut Vec<u8>, mut header: Header, kind: EntryType, size: u64, content: &[u8]) {
        header.as_old_mut().name[..1].copy_from_slice(b"m");
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }

    /// Kind and size of each member, and how far the tar was read.
    fn members(tar: Vec<u8>) -> (io::Result<Vec<(EntryType, u64)>>, u64) {
        struct Counted(Cursor<Vec<u8>>, Rc<Cell<u64>>);
        impl Read for Counted {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.read(buffer).inspect(|count| self.1.set(self.1.get() + *count as u64))
            }
        }
        impl Seek for Counted {
            fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
                self.0.seek(to)
            }
        }
        let (mut found, read) = (Vec::new(), Rc::new(Cell::new(0)));
        let done = for_each_member(
            Counted(Cursor::new(tar), Rc::clone(&read)),
            |error| error,
            |entry| {
                found.push((entry.header().entry_type(), entry.size()));
                Ok(())
            },
        );
        (done.map(|()| found), read.get())
    }

    #[test]
    fn headers_that_are_too_long_are_not_read() {
        let long = vec![0; 8 << 20];
        let size = long.len() as u64;
        let mut cases = Vec::new();
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader] {
            let mut tar = Vec::new();
            put(&mut tar, Header::new_gnu(), kind, size, &long);
            put(&mut tar, Header::new_gnu(), EntryType::Regular, 1, b"x");
            cases.push(tar);
        }
        // To a reader of the old headers alone, the long name is content of the member before it.
        let mut tar = Vec::new();
        put(&mut tar, Header::new_ustar(), EntryType::XHeader, 9, b"9 size=0\n");
        put(&mut tar, Header::new_ustar(), EntryType::Regular, 512 + size, b"");
        put(&mut tar, Header::new_gnu(), EntryType::GNULongName, size, &long);
        put(&mut tar, Header::new_gnu(), EntryType::Regular, 0, b"");
        cases.push(tar);
        // The map of a sparse file goes on and on.
        let mut sparse = Header::new_gnu();
        sparse.as_gnu_mut().unwrap().isextended[0] = 1;
        let mut tar = Vec::new();
        let mut more = tar::GnuExtSparseHeader::new();
        more.isextended[0] = 1;
        put(&mut tar, sparse, EntryType::GNUSparse, 0, &more.as_bytes().repeat(8 << 11));
        cases.push(tar);
        for (at, mut tar) in cases.into_iter().enumerate() {
            tar.extend([0; 1024]);
            let (found, read) = members(tar);
            assert_eq!(found.unwrap_err().to_string(), "a member has more than 1024 KiB of headers", "{at}");
            assert!(read < 2 << 20, "{at}: {read} bytes are read");
        }
    }

    #[test]
    fn contents_are_not_counted_as_headers() {
        let mut tar = Vec::new();
        let content = vec![7; 3 << 20];
        for _ in 0..2 {
            put(&mut tar, Header::new_gnu(), EntryType::GNULongName, 300, &[b'n'; 300]);
            put(&mut tar, Header::new_gnu(), EntryType::Regular, content.len() as u64, &content);
        }
        put(&mut tar, Header::new_ustar(), EntryType::XGlobalHeader, 9, b"9 size=0\n");
        // The size is the record's where the header has no room for it.
        put(&mut tar, Header::new_ustar(), EntryType::XHeader, 9, b"9 size=5\n");
        put(&mut tar, Header::new_ustar(), EntryType::Regular, 0, b"12345");
        let whole = tar.len();
        tar.extend([0; 1024]);
        let size = content.len() as u64;
        let all = [
            (EntryType::Regular, size),
            (EntryType::Regular, size),
            (EntryType::XGlobalHeader, 9),
            (EntryType::Regular, 5),
        ];
        let (found, read) = members(tar.clone());
        assert_eq!(found.unwrap(), all);
        assert!(read < 1 << 20, "{read} bytes are read");
        for (at, is_cut) in [(whole, false), (whole - 1, true), (1 << 20, true), (4 << 20, true)] {
            let found = members(tar[..at].to_vec()).0;
            assert_eq!(found.is_err(), is_cut, "{at}: {found:?}");
        }
    }
}
