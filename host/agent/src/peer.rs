//! The host's side of a connection that a worker thread serves: blocking, one frame at a time.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use pyro_agent_protocol::{
    DATA_CHUNK_BYTES, ErrorReply, FrameDecoder, GuestFrame, HostFrame, codes, encode_guest_data,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, shutdown};

use crate::environment::error;
use crate::stream::send;

/// How long a host may take to read the last frame of an operation whose input it was still sending.
const LINGER_SECONDS: i64 = 5;

/// Why an operation ends without its result.
#[derive(Debug)]
pub enum Fail {
    /// The host has left; nobody is to be told.
    Gone,
    /// What to answer.
    Reply(ErrorReply),
}

impl Fail {
    /// Returns a failure with this answer.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self::Reply(error(code, message))
    }
}

/// A connection, in blocking mode.
#[derive(Debug)]
pub struct Peer {
    fd: Arc<OwnedFd>,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    out: Vec<u8>,
}

impl Peer {
    /// Returns the host's side of `fd`, of which `decoder` holds what was read already.
    pub fn new(fd: Arc<OwnedFd>, decoder: FrameDecoder) -> Self {
        Self { fd, decoder, buffer: vec![0; DATA_CHUNK_BYTES + 16], out: Vec::new() }
    }

    /// Returns the next frame.
    ///
    /// # Errors
    /// [`Fail::Gone`] at the connection's end; an answer when the host does not send frames.
    pub fn next(&mut self) -> Result<HostFrame, Fail> {
        loop {
            match self.decoder.next_host() {
                Ok(Some(HostFrame::Unknown(_))) => continue,
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(reason) => return Err(Fail::new(codes::PROTOCOL_VIOLATION, reason.to_string())),
            }
            match recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((0, _)) => return Err(Fail::Gone),
                Ok((count, _)) => self.decoder.push(self.buffer.get(..count).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Fail::Gone),
            }
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// [`Fail::Gone`] when the host has left; an answer when the frame is too large.
    pub fn send(&mut self, frame: &GuestFrame) -> Result<(), Fail> {
        self.out.clear();
        if frame.encode(&mut self.out).is_err() {
            return Err(Fail::new(codes::INTERNAL, "the answer does not fit into a frame"));
        }
        self.send_out()
    }

    /// Sends bytes of what the operation gives out.
    ///
    /// # Errors
    /// [`Fail::Gone`] when the host has left.
    pub fn send_data(&mut self, bytes: &[u8]) -> Result<(), Fail> {
        self.out.clear();
        encode_guest_data(bytes, &mut self.out);
        self.send_out()
    }

    /// Fails when the host has closed its side.
    ///
    /// # Errors
    /// [`Fail::Gone`].
    pub fn check(&self) -> Result<(), Fail> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&*self.fd, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&now)) {
            Ok(count) if count > 0 => Err(Fail::Gone),
            _ => Ok(()),
        }
    }

    /// Sends the last frame. Input that is still on its way is dropped until the host closes, because a connection that is
    /// closed over unread bytes may lose what was sent before.
    pub fn finish(mut self, frame: &GuestFrame) {
        if self.send(frame).is_err() || shutdown(&self.fd, Shutdown::Write).is_err() {
            return;
        }
        let wait = Timespec { tv_sec: LINGER_SECONDS, tv_nsec: 0 };
        loop {
            let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
            if !poll(&mut fds, Some(&wait)).is_ok_and(|count| count > 0) {
                return;
            }
            match recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((count, _)) if count > 0 => {}
                Err(Errno::INTR | Errno::AGAIN) => {}
                _ => return,
            }
        }
    }

    fn send_out(&self) -> Result<(), Fail> {
        let mut rest = self.out.as_slice();
        while !rest.is_empty() {
            match send(self.fd.as_fd(), rest, SendFlags::empty()) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Fail::Gone),
            }
        }
        Ok(())
    }
}
