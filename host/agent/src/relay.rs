//! A connection to a port of the guest's loopback, relayed byte by byte.
//!
//! Each direction ends on its own: the end of one side's bytes is passed on to the other, which may go on sending.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use pyro_agent_protocol::{DATA_CHUNK_BYTES, ErrorReply, GuestFrame, codes};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, connect, recv, shutdown, socket_with,
    sockopt,
};

use crate::environment::error;
use crate::stream::send;

/// How long a program that listens may take to accept.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// A connection that is being made.
#[derive(Debug)]
pub struct Connecting {
    port: u16,
    socket: OwnedFd,
    ready: bool,
    until: Instant,
}

/// Two connections whose bytes are passed on.
#[derive(Debug)]
pub struct Relay {
    host: Side,
    guest: Side,
    broken: bool,
}

#[derive(Debug)]
struct Side {
    fd: OwnedFd,
    readable: bool,
    writable: bool,
    /// Bytes for it that it has not taken yet.
    out: Vec<u8>,
    sent: usize,
    /// True when its end was read.
    ended: bool,
    /// True when it was told the end of the other's bytes.
    told: bool,
}

impl Connecting {
    /// Starts to connect to `port`.
    ///
    /// # Errors
    /// What to answer.
    pub fn start(port: u16, now: Instant) -> Result<Self, ErrorReply> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
            .map_err(|errno| error(codes::INTERNAL, format!("cannot make a socket: {errno}")))?;
        // Small answers are not held back.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let ready = match connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
            Ok(()) => true,
            Err(Errno::INPROGRESS | Errno::INTR) => false,
            Err(errno) => return Err(not_connected(port, errno)),
        };
        Ok(Self { port, socket, ready, until: now + CONNECT_WAIT })
    }

    /// Returns the socket, to be watched.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Notes that the socket is ready.
    pub fn on_event(&mut self) {
        self.ready = true;
    }

    /// Returns the last moment.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Returns whether the connection is made.
    ///
    /// # Errors
    /// What to answer when it never will be.
    pub fn check(&mut self, now: Instant) -> Result<bool, ErrorReply> {
        if !std::mem::take(&mut self.ready) {
            return if now < self.until { Ok(false) } else { Err(not_connected(self.port, Errno::TIMEDOUT)) };
        }
        match sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => {}
            Ok(Err(errno)) | Err(errno) => return Err(not_connected(self.port, errno)),
        }
        // The first event may say no more than that the socket is new.
        match rustix::net::getpeername(&self.socket) {
            Ok(_) => Ok(true),
            Err(Errno::NOTCONN) => Ok(false),
            Err(errno) => Err(not_connected(self.port, errno)),
        }
    }

    /// Returns a relay between the connection and `host`, which sent `first` already.
    pub fn relay(self, host: OwnedFd, first: Vec<u8>) -> Relay {
        let mut answer = Vec::new();
        // A frame without content always fits.
        let _ = GuestFrame::Connected.encode(&mut answer);
        let side = |fd, out| Side { fd, readable: true, writable: true, out, sent: 0, ended: false, told: false };
        Relay { host: side(host, answer), guest: side(self.socket, first), broken: false }
    }
}

impl Relay {
    /// Notes that a descriptor is ready.
    pub fn on_event(&mut self, of_host: bool, readable: bool, writable: bool) {
        let side = if of_host { &mut self.host } else { &mut self.guest };
        side.readable |= readable;
        side.writable |= writable;
    }

    /// Moves what can be moved. Returns true when another call may move more.
    pub fn pump(&mut self, scratch: &mut [u8]) -> bool {
        let mut progress = pump(&mut self.host, &mut self.guest, scratch, &mut self.broken);
        progress |= pump(&mut self.guest, &mut self.host, scratch, &mut self.broken);
        progress
    }

    /// True when both directions have ended, or one side is gone.
    pub fn is_done(&self) -> bool {
        self.broken || (self.host.told && self.guest.told)
    }
}

fn pump(from: &mut Side, to: &mut Side, scratch: &mut [u8], broken: &mut bool) -> bool {
    let mut progress = false;
    if to.out.is_empty() && from.readable && !from.ended && !*broken {
        let room = scratch.len().min(DATA_CHUNK_BYTES);
        match recv(&from.fd, scratch.get_mut(..room).unwrap_or_default(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => from.ended = true,
            Ok((count, _)) => to.out.extend_from_slice(scratch.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN) => from.readable = false,
            Err(Errno::INTR) => {}
            Err(_) => *broken = true,
        }
        progress = from.readable;
    }
    while to.writable && to.sent < to.out.len() && !*broken {
        match send(to.fd.as_fd(), to.out.get(to.sent..).unwrap_or_default(), SendFlags::DONTWAIT) {
            Ok(count) => {
                to.sent += count;
                progress = true;
            }
            Err(Errno::AGAIN) => to.writable = false,
            Err(Errno::INTR) => {}
            Err(_) => *broken = true,
        }
    }
    if to.sent >= to.out.len() {
        to.out.clear();
        to.sent = 0;
        if from.ended && !to.told {
            to.told = true;
            let _ = shutdown(&to.fd, Shutdown::Write);
            progress = true;
        }
    }
    progress && !*broken
}

fn not_connected(port: u16, errno: Errno) -> ErrorReply {
    match errno {
        Errno::CONNREFUSED => error(codes::NOT_FOUND, format!("nothing listens on port {port} of the guest")),
        Errno::TIMEDOUT => error(codes::IO, format!("port {port} of the guest did not accept a connection in time")),
        errno => error(codes::IO, format!("cannot connect to port {port} of the guest: {errno}")),
    }
}
