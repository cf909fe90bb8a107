//! Bytes that the host holds.

use pyro_plugin_sdk::host::blobs::Blob;
use pyro_tree::RangeReader;

/// Most bytes that one read of a blob returns.
const MAX_READ: u32 = 1 << 20;

/// Reads and seeks in a blob.
pub type BlobReader = RangeReader<Box<dyn FnMut(u64, u32) -> Vec<u8>>>;

/// Returns a reader of a blob.
pub fn reader(blob: Blob) -> BlobReader {
    let size = blob.size();
    RangeReader::new(size, Box::new(move |offset, length| blob.read(offset, length)))
}

/// Returns at most `limit` bytes from the start of a blob.
pub fn bytes(blob: &Blob, limit: u64) -> Vec<u8> {
    let wanted = blob.size().min(limit);
    let mut out = Vec::new();
    while (out.len() as u64) < wanted {
        let left = u32::try_from(wanted - out.len() as u64).unwrap_or(MAX_READ).min(MAX_READ);
        let piece = blob.read(out.len() as u64, left);
        if piece.is_empty() {
            break;
        }
        out.extend_from_slice(&piece);
    }
    out
}
