//! Bytes the host keeps for a component: in memory, or as a part of a file that never passes through memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use pyro_engine::Content;

/// Immutable bytes behind a handle.
#[derive(Clone, Debug)]
pub struct Blob(Data);

#[derive(Clone, Debug)]
enum Data {
    Memory(Bytes),
    File { file: Arc<File>, offset: u64, length: u64 },
}

impl Blob {
    /// Bytes in memory; whoever makes one accounts for it with `CallState::hold`.
    pub(crate) fn memory(bytes: Bytes) -> Blob {
        Blob(Data::Memory(bytes))
    }

    /// The whole of a file, which nobody writes any more.
    pub(crate) fn file(file: File) -> io::Result<Blob> {
        let length = file.metadata()?.len();
        Ok(Blob(Data::File { file: Arc::new(file), offset: 0, length }))
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        match &self.0 {
            Data::Memory(bytes) => bytes.len() as u64,
            Data::File { length, .. } => *length,
        }
    }

    /// Bytes of memory that it holds.
    pub(crate) fn held(&self) -> usize {
        match &self.0 {
            Data::Memory(bytes) => bytes.len(),
            Data::File { .. } => 0,
        }
    }

    /// Whether it holds a file open.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.0, Data::File { .. })
    }

    /// Returns up to `len` bytes from `at`: fewer at the end, none past it. A file that has become shorter ends early.
    pub(crate) fn read(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        match &self.0 {
            Data::Memory(bytes) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                let end = start.saturating_add(len).min(bytes.len());
                Ok(bytes.get(start..end).unwrap_or_default().to_vec())
            }
            Data::File { file, offset, length } => {
                let left = length.saturating_sub(at);
                let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
                let mut buffer = vec![0; len];
                let mut filled = 0;
                while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                    match file.read_at(rest, offset.saturating_add(at).saturating_add(filled as u64)) {
                        Ok(0) => break,
                        Ok(count) => filled += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                buffer.truncate(filled);
                Ok(buffer)
            }
        }
    }

    /// The same bytes, on their way into a guest.
    pub(crate) fn content(&self) -> Content {
        match &self.0 {
            Data::Memory(bytes) => Content::Bytes(bytes.clone()),
            Data::File { file, offset, length } => {
                Content::File { file: Arc::clone(file), offset: *offset, length: *length }
            }
        }
    }

    /// An open file with these bytes from its start: the blob's own, or one without a name that they are written to.
    pub(crate) fn into_file(self) -> io::Result<File> {
        match self.0 {
            Data::File { file, offset: 0, length } if file.metadata()?.len() == length => {
                // A description of its own: a reader may move the cursor.
                File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*file)))
            }
            _ => {
                let mut file = tempfile::tempfile()?;
                self.copy_into(&mut file, 0, self.len())?;
                io::Seek::rewind(&mut file)?;
                Ok(file)
            }
        }
    }

    /// Appends a part of it to a file.
    pub(crate) fn copy_into(&self, into: &mut impl io::Write, from: u64, length: u64) -> io::Result<()> {
        let end = from.saturating_add(length).min(self.len());
        let mut at = from;
        while at < end {
            let chunk = self.read(at, usize::try_from(end - at).unwrap_or(usize::MAX).min(COPY_CHUNK))?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            into.write_all(&chunk)?;
            at += chunk.len() as u64;
        }
        Ok(())
    }
}

/// Bytes copied at a time.
const COPY_CHUNK: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_and_files_read_alike() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        for blob in [Blob::memory(Bytes::from_static(b"0123456789")), Blob::file(file).unwrap()] {
            assert_eq!(blob.len(), 10);
            assert_eq!(blob.read(0, 4).unwrap(), b"0123");
            assert_eq!(blob.read(8, 4).unwrap(), b"89");
            assert_eq!(blob.read(10, 4).unwrap(), b"");
            assert_eq!(blob.read(u64::MAX, usize::MAX).unwrap(), b"");
            let mut copy = Vec::new();
            blob.copy_into(&mut copy, 3, u64::MAX).unwrap();
            assert_eq!(copy, b"3456789");
            let mut whole = String::new();
            blob.into_file().unwrap().read_to_string(&mut whole).unwrap();
            assert_eq!(whole, "0123456789");
        }
    }

    #[test]
    fn a_file_that_has_become_shorter_is_not_invented() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let blob = Blob::file(file.try_clone().unwrap()).unwrap();
        file.set_len(4).unwrap();
        assert_eq!(blob.read(0, 10).unwrap().len(), 4);
        assert!(blob.copy_into(&mut Vec::new(), 0, 10).is_err());
    }
}
