//! Ports of the host that lead into the guest.
//!
//! A listener on 127.0.0.1 belongs to the loop, which accepts. Each connection has a thread of its own that asks the
//! guest agent for a connection to the guest's loopback and then passes bytes both ways. Everything is bounded, because
//! whoever can reach the listener may open as many connections as they like.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pyro_agent_protocol::AGENT_PORT;
use pyro_vmm::vsock::VsockHandle;
use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};

use crate::{
    error::{EngineError, ErrorCode},
    guest::ports::{tcp_answer, tcp_answer_length, tcp_request},
    spec::PublishedPort,
};

/// Ports of one machine.
const MAX_PORTS: usize = 64;
/// Connections through all ports of one machine; more wait in the listeners' queues.
const MAX_CONNECTIONS: usize = 128;
/// Longest name of an owner, in bytes.
const MAX_OWNER: usize = 128;
/// How long the guest may take to connect to its own port.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes on their way in one direction.
const BUFFER: usize = 32 * 1024;
/// A relay's thread keeps its buffers on the heap.
const STACK: usize = 128 * 1024;

/// The published ports of a machine.
pub(crate) struct Ports {
    ports: Vec<Port>,
    /// How many connections there are.
    open: Arc<AtomicUsize>,
    /// Becomes readable when one has ended.
    ended: Arc<OwnedFd>,
}

struct Port {
    info: PublishedPort,
    listener: TcpListener,
    connections: Arc<Connections>,
}

/// The clients' ends of a port's connections, to be cut when it is withdrawn.
#[derive(Default)]
struct Connections {
    streams: Mutex<(u64, BTreeMap<u64, TcpStream>)>,
}

impl Ports {
    /// # Errors
    /// What the system says.
    pub(crate) fn new() -> io::Result<Self> {
        let ended = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { ports: Vec::new(), open: Arc::default(), ended: Arc::new(ended) })
    }

    /// Listens on a port of 127.0.0.1.
    ///
    /// # Errors
    /// `invalid_argument`, `limit_exceeded`, `already_exists` when the host's port is taken, `denied` when only a
    /// privileged process may have it, `io`.
    pub(crate) fn publish(
        &mut self,
        guest_port: u16,
        host_port: Option<u16>,
        owner: Option<String>,
    ) -> Result<PublishedPort, EngineError> {
        if guest_port == 0 || host_port == Some(0) {
            return Err(EngineError::new(ErrorCode::InvalidArgument, "0 is no port").with_hint("pass 1 to 65535"));
        }
        if let Some(owner) = owner.as_ref().filter(|owner| owner.len() > MAX_OWNER) {
            return Err(EngineError::new(
                ErrorCode::InvalidArgument,
                format!("the owner's name has {} bytes, and at most {MAX_OWNER} are kept", owner.len()),
            ));
        }
        if self.ports.len() >= MAX_PORTS {
            return Err(EngineError::new(
                ErrorCode::LimitExceeded,
                format!("{MAX_PORTS} ports of this machine are published already"),
            )
            .with_hint("unpublish one that is not needed")
            .retry_may_help());
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, host_port.unwrap_or(0)))
            .map_err(|e| not_bound(host_port.unwrap_or(0), &e))?;
        let failed = |e: &io::Error| EngineError::io("publish a port", e);
        listener.set_nonblocking(true).map_err(|e| failed(&e))?;
        let host_port = listener.local_addr().map_err(|e| failed(&e))?.port();
        let info = PublishedPort { guest_port, host: Ipv4Addr::LOCALHOST.to_string(), host_port, owner };
        self.ports.push(Port { info: info.clone(), listener, connections: Arc::default() });
        Ok(info)
    }

    /// Stops listening and cuts the port's connections.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) fn unpublish(&mut self, host_port: u16) -> Result<(), EngineError> {
        let at = self.ports.iter().position(|port| port.info.host_port == host_port).ok_or_else(|| {
            EngineError::new(ErrorCode::NotFound, format!("port {host_port} of this machine is not published"))
                .with_hint("port_list shows the published ports")
        })?;
        let port = self.ports.remove(at);
        for stream in port.connections.lock().1.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    /// Returns the published ports, in the order they were published.
    pub(crate) fn list(&self) -> Vec<PublishedPort> {
        self.ports.iter().map(|port| port.info.clone()).collect()
    }

    /// Returns what is to be polled for reading: the listeners while there is room for a connection, and what tells that
    /// there is room again.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let room = self.open.load(Ordering::Acquire) < MAX_CONNECTIONS;
        let listeners = self.ports.iter().filter(move |_| room).map(|port| port.listener.as_fd());
        listeners.chain([self.ended.as_fd()])
    }

    /// Accepts whoever waits.
    pub(crate) fn accept(&self, vsock: &VsockHandle) {
        let _ = rustix::io::read(&self.ended, &mut [0; 8]);
        for port in &self.ports {
            while self.open.load(Ordering::Acquire) < MAX_CONNECTIONS {
                let client = match port.listener.accept() {
                    Ok((client, _)) => client,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => {
                        tracing::warn!(port = port.info.host_port, error = %e, "a connection could not be accepted");
                        break;
                    }
                };
                self.open.fetch_add(1, Ordering::AcqRel);
                let place = Place { open: Arc::clone(&self.open), ended: Arc::clone(&self.ended) };
                let (connections, vsock, guest_port) =
                    (Arc::clone(&port.connections), vsock.clone(), port.info.guest_port);
                // Before the thread runs: one that is withdrawn meanwhile must find this connection to cut.
                let Ok(number) = connections.add(&client) else { continue };
                let begun = std::thread::Builder::new().name("port".to_owned()).stack_size(STACK).spawn(move || {
                    let _place = place;
                    serve(&client, &vsock, guest_port);
                    connections.lock().1.remove(&number);
                });
                if let Err(e) = begun {
                    port.connections.lock().1.remove(&number);
                    tracing::warn!(error = %e, "a connection gets no thread");
                }
            }
        }
    }
}

/// One of the connections that there may be.
struct Place {
    open: Arc<AtomicUsize>,
    ended: Arc<OwnedFd>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        // Fails only when the counter is full, and then the descriptor is readable anyway.
        let _ = rustix::io::write(&self.ended, &1_u64.to_ne_bytes());
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, TcpStream>)> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection and returns its number.
    fn add(&self, client: &TcpStream) -> io::Result<u64> {
        let end = client.try_clone()?;
        let mut streams = self.lock();
        streams.0 += 1;
        let number = streams.0;
        streams.1.insert(number, end);
        Ok(number)
    }
}

fn serve(client: &TcpStream, vsock: &VsockHandle, guest_port: u16) {
    // A client that the guest does not want sees its connection closed, as with any proxy.
    match connect(vsock, guest_port) {
        Ok(guest) => {
            if let Err(e) = relay(client, &guest) {
                tracing::debug!(port = guest_port, error = %e, "a connection was cut");
            }
        }
        Err(error) => tracing::debug!(port = guest_port, %error, "the guest took no connection"),
    }
}

/// Connects to a port of the guest's loopback.
fn connect(vsock: &VsockHandle, port: u16) -> Result<UnixStream, EngineError> {
    let failed = |e: io::Error| EngineError::io("connect to the guest", &e);
    let mut stream =
        vsock.connect_wait(AGENT_PORT).map_err(|e| EngineError::new(ErrorCode::NotStarted, e.to_string()))?;
    stream.set_read_timeout(Some(CONNECT_LIMIT)).map_err(failed)?;
    stream.write_all(&tcp_request(port)?).map_err(failed)?;
    // Not a byte more than the answer: what follows is the connection's.
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).map_err(failed)?;
    frame.resize(4 + tcp_answer_length(&frame)?, 0);
    stream.read_exact(frame.get_mut(4..).unwrap_or_default()).map_err(failed)?;
    tcp_answer(&frame)?;
    Ok(stream)
}

/// Passes bytes both ways until both directions have ended, each in its own time.
fn relay(client: &TcpStream, guest: &UnixStream) -> io::Result<()> {
    client.set_nonblocking(true)?;
    guest.set_nonblocking(true)?;
    let _ = client.set_nodelay(true);
    let mut inward = Direction::new();
    let mut outward = Direction::new();
    while !(inward.ended && outward.ended) {
        // What each side is waited for. A side whose own bytes are still to be delivered is not looked at until they are,
        // or its end would wake every poll.
        let of = |reads: &Direction, writes: &Direction| {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, !reads.ended && reads.is_empty());
            wanted.set(PollFlags::OUT, !writes.ended && !writes.is_empty());
            wanted
        };
        let sides = [
            (client.as_fd(), of(&inward, &outward), inward.ended),
            (guest.as_fd(), of(&outward, &inward), outward.ended),
        ];
        let polled = sides.iter().filter(|(_, wanted, ended)| *ended || !wanted.is_empty());
        let mut fds: Vec<PollFd<'_>> =
            polled.clone().map(|(fd, wanted, _)| PollFd::from_borrowed_fd(*fd, *wanted)).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        // One that has said everything and has hung up takes nothing either.
        let gone = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP);
        if polled.zip(&fds).any(|((_, wanted, _), fd)| wanted.is_empty() && gone(fd)) {
            return Ok(());
        }
        inward.pass(client, guest, |guest| guest.shutdown(Shutdown::Write))?;
        outward.pass(guest, client, |client| client.shutdown(Shutdown::Write))?;
    }
    Ok(())
}

struct Direction {
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    ended: bool,
}

impl Direction {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER], from: 0, to: 0, ended: false }
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// Passes on what can be passed without waiting.
    fn pass<R, W>(&mut self, mut from: &R, mut to: &W, end: impl FnOnce(&W) -> io::Result<()>) -> io::Result<()>
    where
        for<'a> &'a R: Read,
        for<'a> &'a W: Write,
    {
        while !self.ended {
            if self.is_empty() {
                match from.read(&mut self.buffer) {
                    Ok(0) => {
                        self.ended = true;
                        return match end(to) {
                            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
                            done => done,
                        };
                    }
                    Ok(count) => (self.from, self.to) = (0, count),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(e),
                }
            }
            match to.write(self.buffer.get(self.from..self.to).unwrap_or_default()) {
                Ok(count) => self.from += count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn not_bound(port: u16, error: &io::Error) -> EngineError {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            EngineError::new(ErrorCode::AlreadyExists, format!("port {port} of 127.0.0.1 is in use"))
                .with_hint("choose another host_port, or none to get a free one")
        }
        io::ErrorKind::PermissionDenied => {
            EngineError::new(ErrorCode::Denied, format!("port {port} of 127.0.0.1 is for privileged programs"))
                .with_hint("choose a host_port of 1024 or more")
        }
        _ => EngineError::io(format_args!("listen on port {port} of 127.0.0.1"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_and_given_back() {
        let mut ports = Ports::new().unwrap();
        let first = ports.publish(80, None, Some("web".to_owned())).unwrap();
        assert_eq!((first.guest_port, first.host.as_str(), first.owner.as_deref()), (80, "127.0.0.1", Some("web")));
        assert_ne!(first.host_port, 0);
        let error = ports.publish(81, Some(first.host_port), None).unwrap_err();
        assert_eq!(error.code(), ErrorCode::AlreadyExists, "{error}");
        assert_eq!(ports.publish(0, None, None).unwrap_err().code(), ErrorCode::InvalidArgument);
        assert_eq!(ports.publish(1, None, Some("x".repeat(129))).unwrap_err().code(), ErrorCode::InvalidArgument);
        assert_eq!(ports.list().as_slice(), std::slice::from_ref(&first));
        ports.unpublish(first.host_port).unwrap();
        assert_eq!(ports.unpublish(first.host_port).unwrap_err().code(), ErrorCode::NotFound);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, first.host_port)).is_err());
        for _ in 0..MAX_PORTS {
            ports.publish(80, None, None).unwrap();
        }
        assert_eq!(ports.publish(80, None, None).unwrap_err().code(), ErrorCode::LimitExceeded);
    }

    /// Returns a client, its relay's thread, and the guest's end.
    fn relayed() -> (TcpStream, UnixStream, std::thread::JoinHandle<io::Result<()>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        let (guest, inside) = UnixStream::pair().unwrap();
        (client, inside, std::thread::spawn(move || relay(&accepted, &guest)))
    }

    #[test]
    fn bytes_pass_both_ways_and_each_way_ends_alone() {
        let (mut client, mut inside, relay) = relayed();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        let echo = std::thread::spawn(move || {
            let mut received = Vec::new();
            inside.read_to_end(&mut received).unwrap();
            inside.write_all(&received).unwrap();
            // Dropped here, after the client's end was seen.
        });
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        assert_eq!(back, sent);
        echo.join().unwrap();
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn what_a_side_left_behind_is_still_delivered() {
        let (mut client, mut inside, relay) = relayed();
        let sent = vec![7; 3_000_000];
        let server = std::thread::spawn(move || inside.write_all(&sent).unwrap());
        // The server has ended before the client reads most of it.
        std::thread::sleep(Duration::from_millis(100));
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 3_000_000);
        server.join().unwrap();
        drop(client);
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn a_side_that_goes_away_ends_the_relay() {
        let (client, inside, relay) = relayed();
        drop(inside);
        drop(client);
        let _ = relay.join().unwrap();

        // Withdrawn, while the guest's program says nothing and does not hang up.
        let (client, inside, relay) = relayed();
        client.shutdown(Shutdown::Both).unwrap();
        drop(client);
        std::thread::sleep(Duration::from_millis(50));
        let mut inside_end = inside.try_clone().unwrap();
        assert_eq!(inside_end.read(&mut [0; 1]).unwrap(), 0);
        let _ = inside_end.write_all(b"late");
        let _ = inside_end.write_all(b"later");
        drop((inside, inside_end));
        let _ = relay.join().unwrap();

        // Nobody takes what the relay holds.
        let (client, mut inside, relay) = relayed();
        inside.set_nonblocking(true).unwrap();
        while inside.write(&[0; 65536]).is_ok() {}
        drop(client);
        let _ = relay.join().unwrap();
    }
}
