//! Descriptor chains as guest memory, and system calls straight into it.
//!
//! The only `unsafe` code of the device is here: two system calls whose buffers are guest memory.
//! No reference to guest memory is ever made; the kernel gets raw addresses that vm-memory has
//! checked.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_queue::DescriptorChain;
use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

/// Most pieces of memory one chain may consist of. Linux uses up to 18 (a header and the
/// fragments of one socket buffer); a chain with more is not a packet.
pub(super) const MAX_SEGMENTS: usize = 64;

/// Most chains gathered for one read. With [`MAX_SEGMENTS`] this stays within the kernel's limit
/// of 1024 pieces per call.
pub(super) const MAX_GATHER: usize = 16;

/// Why a chain is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChainFault {
    /// A descriptor of the wrong direction.
    Direction,
    /// Memory that is not the guest's.
    Address,
    /// More than [`MAX_SEGMENTS`] pieces.
    TooManySegments,
    /// A link to a descriptor that cannot be followed.
    BrokenLink,
}

/// The memory of one descriptor chain.
pub(super) struct Buffers<'m, B: BitmapSlice> {
    slices: Vec<VolatileSlice<'m, B>>,
    len: usize,
}

/// Which side of a packet a chain must be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// The device reads it.
    FromGuest,
    /// The device writes it.
    ToGuest,
}

/// Walks `chain` once and resolves its memory.
pub(super) fn collect<'m, M>(
    mem: &'m M,
    mut chain: DescriptorChain<&'m M>,
    direction: Direction,
) -> Result<Buffers<'m, BS<'m, M::Bitmap>>, ChainFault>
where
    M: GuestMemory,
{
    let mut slices = Vec::with_capacity(4);
    let mut len = 0usize;
    let mut more = true;
    let (to_guest, access) = match direction {
        Direction::FromGuest => (false, Permissions::Read),
        Direction::ToGuest => (true, Permissions::Write),
    };
    for descriptor in chain.by_ref() {
        more = descriptor.has_next();
        if descriptor.is_write_only() != to_guest {
            return Err(ChainFault::Direction);
        }
        let pieces =
            mem.get_slices(descriptor.addr(), descriptor.len() as usize, access).map_err(|_| ChainFault::Address)?;
        for piece in pieces {
            let piece = piece.map_err(|_| ChainFault::Address)?;
            if slices.len() == MAX_SEGMENTS {
                return Err(ChainFault::TooManySegments);
            }
            // The iterator above refuses chains of 4 GiB and more, so this cannot overflow.
            len = len.saturating_add(piece.len());
            slices.push(piece);
        }
    }
    if more {
        return Err(ChainFault::BrokenLink);
    }
    Ok(Buffers { slices, len })
}

impl<'m, B: BitmapSlice> Buffers<'m, B> {
    /// Returns the bytes the chain holds.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Copies `out.len()` bytes from the start of the chain. False when the chain is shorter.
    pub(super) fn read_start(&self, out: &mut [u8]) -> bool {
        let mut rest = out;
        for slice in &self.slices {
            if rest.is_empty() {
                break;
            }
            let copied = slice.copy_to(rest);
            rest = rest.get_mut(copied..).unwrap_or_default();
        }
        rest.is_empty()
    }

    /// Copies `bytes` to the start of the chain. False when the chain is shorter.
    pub(super) fn write_start(&self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        for slice in &self.slices {
            if rest.is_empty() {
                break;
            }
            let count = slice.len().min(rest.len());
            let (now, later) = rest.split_at(count);
            slice.copy_from(now);
            rest = later;
        }
        rest.is_empty()
    }

    /// Appends to `out` the memory of at most `len` bytes from `offset` on.
    pub(super) fn range(&self, offset: usize, len: usize, out: &mut Vec<VolatileSlice<'m, B>>) {
        let mut skip = offset;
        let mut left = len;
        for slice in &self.slices {
            if left == 0 {
                return;
            }
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let count = left.min(slice.len() - skip);
            if let Ok(part) = slice.subslice(skip, count) {
                out.push(part);
            }
            skip = 0;
            left -= count;
        }
    }
}

/// What one read from a host stream brought.
pub(super) struct Received {
    /// Bytes read; 0 at the end of the stream.
    pub(super) len: usize,
    /// The stream is known to have nothing more for now.
    pub(super) drained: bool,
}

/// Reads from a host stream into guest memory, without waiting.
pub(super) fn receive<B: BitmapSlice>(stream: BorrowedFd<'_>, into: &[VolatileSlice<'_, B>]) -> io::Result<Received> {
    let (mut iovecs, room) = iovecs(into);
    let mut message = message(&mut iovecs);
    // SAFETY: every iovec points at guest memory of the stated length that stays mapped while
    // `into` borrows it (`ptr_guard_mut` is a plain pointer without the Xen backend, which is off),
    // and guest memory is only ever reached by raw copies. `message` outlives the call and names
    // no other buffer.
    let result = retry(|| unsafe {
        libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC)
    })?;
    let mut dirty = result;
    for slice in into {
        let count = dirty.min(slice.len());
        if count == 0 {
            break;
        }
        slice.bitmap().mark_dirty(0, count);
        dirty -= count;
    }
    // A short read means an empty stream, except that the kernel stops early at a message that
    // carried descriptors, which it reports as control data that was cut off.
    let drained = result < room && message.msg_flags & libc::MSG_CTRUNC == 0;
    Ok(Received { len: result, drained })
}

/// Writes guest memory to a host stream, without waiting. Returns the bytes written.
pub(super) fn send<B: BitmapSlice>(stream: BorrowedFd<'_>, from: &[VolatileSlice<'_, B>]) -> io::Result<usize> {
    let (mut iovecs, _) = iovecs(from);
    let message = message(&mut iovecs);
    // SAFETY: as in `receive`, and the kernel only reads.
    retry(|| unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

fn iovecs<B: BitmapSlice>(slices: &[VolatileSlice<'_, B>]) -> (Vec<libc::iovec>, usize) {
    let mut room = 0usize;
    let iovecs = slices
        .iter()
        .map(|slice| {
            room = room.saturating_add(slice.len());
            libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
        })
        .collect();
    (iovecs, room)
}

fn message(iovecs: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid `msghdr`: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    message
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
