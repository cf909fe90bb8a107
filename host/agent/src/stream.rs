//! One connection as a stream of frames, non-blocking in both directions.
//!
//! The epoll registration is edge-triggered: `readable` and `writable` remember what the kernel last said, and are
//! cleared when a call would block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyro_agent_protocol::{FrameDecoder, FrameError, GuestFrame, HostFrame};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// Output is taken from a command only while fewer bytes than this wait to be sent.
const OUT_HIGH_BYTES: usize = 64 * 1024;

/// A piece of what is sent that Linux finds memory for even when no two free pages are in a row.
const SMALL_PIECE_BYTES: usize = 4096;

/// One of the protocol's encoders of bytes: appends a frame.
pub type Encode = fn(&[u8], &mut Vec<u8>);

/// A connection.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    decoder: FrameDecoder,
    /// Bytes that the decoder has and the socket still holds.
    peeked: usize,
    out: Vec<u8>,
    /// How much of `out` was sent.
    sent: usize,
    /// True until a read would block.
    pub readable: bool,
    /// True until a write would block.
    pub writable: bool,
    /// True when the peer's end was read, or the connection is broken.
    pub gone: bool,
    /// True when the kernel said that the peer has closed its side; bytes may still be unread.
    pub hung_up: bool,
}

impl Stream {
    /// Returns a stream over a connected, non-blocking socket.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            decoder: FrameDecoder::new(),
            peeked: 0,
            out: Vec::new(),
            sent: 0,
            readable: true,
            writable: true,
            gone: false,
            hung_up: false,
        }
    }

    /// Returns the socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the socket, and what was read from it that belongs to no frame taken so far.
    pub fn into_parts(self) -> (OwnedFd, FrameDecoder) {
        (self.fd, self.decoder)
    }

    /// Returns the next frame that was received completely.
    ///
    /// # Errors
    /// When the peer does not send frames.
    pub fn next_frame(&mut self) -> Result<Option<HostFrame>, FrameError> {
        self.decoder.next_host()
    }

    /// Reads once. Returns true when bytes came. `peek` leaves them in the socket until [`take_peeked`](Self::take_peeked)
    /// or the next read.
    pub fn receive(&mut self, scratch: &mut [u8], peek: bool) -> bool {
        if self.readable {
            self.take_peeked(scratch);
        }
        let flags = if peek { RecvFlags::DONTWAIT | RecvFlags::PEEK } else { RecvFlags::DONTWAIT };
        while self.readable && !self.gone {
            match rustix::net::recv(&self.fd, &mut *scratch, flags) {
                Ok((0, _)) => self.gone = true,
                Ok((count, _)) => {
                    self.decoder.push(scratch.get(..count).unwrap_or_default());
                    self.peeked = if peek { count } else { 0 };
                    // A short read has emptied the stream, and what comes later is an event again: epoll(7).
                    self.readable = count == scratch.len();
                    return true;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Err(_) => self.gone = true,
            }
        }
        false
    }

    /// Takes what was peeked out of the socket. Linux tells the host of a vsock that is empty again, in a packet of its
    /// own; just before an answer it goes out together with that.
    pub fn take_peeked(&mut self, scratch: &mut [u8]) {
        while self.peeked > 0 && !self.gone {
            let wanted = self.peeked.min(scratch.len());
            match rustix::net::recv(&self.fd, scratch.get_mut(..wanted).unwrap_or_default(), RecvFlags::DONTWAIT) {
                Ok((count, _)) if count > 0 => self.peeked = self.peeked.saturating_sub(count),
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => self.gone = true,
            }
        }
    }

    /// Queues a frame. One that does not fit is replaced by what does: an error frame without its message.
    pub fn queue(&mut self, frame: &GuestFrame) {
        if frame.encode(&mut self.out).is_err() {
            let code = pyro_agent_protocol::codes::INTERNAL.to_owned();
            let message = "the answer does not fit into a frame".to_owned();
            let error = pyro_agent_protocol::ErrorReply { code, message };
            let _ = GuestFrame::Error(error).encode(&mut self.out);
        }
    }

    /// Queues output.
    pub fn queue_data(&mut self, bytes: &[u8], encode: Encode) {
        encode(bytes, &mut self.out);
    }

    /// True when the host keeps up, so more output may be queued.
    pub fn has_room(&self) -> bool {
        self.pending() < OUT_HIGH_BYTES
    }

    /// Returns how many bytes wait to be sent.
    pub fn pending(&self) -> usize {
        self.out.len() - self.sent
    }

    /// True when nothing waits to be sent.
    pub fn is_flushed(&self) -> bool {
        self.sent >= self.out.len()
    }

    /// Sends what can be sent now. Returns true when bytes went out.
    pub fn flush(&mut self) -> bool {
        let mut progress = false;
        while self.writable && !self.gone && !self.is_flushed() {
            let rest = self.out.get(self.sent..).unwrap_or_default();
            match send(self.fd.as_fd(), rest, SendFlags::DONTWAIT) {
                Ok(count) => {
                    self.sent += count;
                    progress = true;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => self.gone = true,
            }
        }
        if self.is_flushed() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > OUT_HIGH_BYTES {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        progress
    }
}

/// Sends bytes over a connection and returns how many it took, without a signal when it is broken.
///
/// Linux copies what is sent over a vsock, up to 64 KiB at once, into one piece of memory. In a guest whose free memory is
/// in smaller pieces that fails with `ENOMEM`, although the connection is sound; it is then sent in small pieces.
///
/// # Errors
/// As `send(2)`'s.
pub fn send(connection: BorrowedFd<'_>, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
    let flags = flags | SendFlags::NOSIGNAL;
    match rustix::net::send(connection, bytes, flags) {
        Err(Errno::NOMEM) => {}
        result => return result,
    }
    let mut sent = 0;
    for piece in bytes.chunks(SMALL_PIECE_BYTES) {
        match rustix::net::send(connection, piece, flags) {
            Ok(count) => sent += count,
            Err(errno) if sent == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(sent)
}
