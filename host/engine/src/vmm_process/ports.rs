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
    time::{Duration, Instant},
};

use pyro_agent_protocol::AGENT_PORT;
use pyro_vmm::vsock::VsockHandle;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};

use crate::{
    error::{EngineError, ErrorCode},
    guest::ports::{tcp_answer, tcp_answer_length, tcp_request},
    spec::PublishedPort,
};

/// Ports of one machine.
const MAX_PORTS: usize = 64;
/// Connections through all ports of one machine; more wait in the listeners' queues.
const MAX_CONNECTIONS: usize = 128;
/// Connections through one port: a server that hangs leaves room for the others.
const MAX_OF_PORT: usize = MAX_CONNECTIONS / 2;
/// Longest name of an owner, in bytes.
const MAX_OWNER: usize = 128;
/// How long a client that has said everything waits for a byte of its answer. Whether it still waits cannot be seen: one
/// that has closed its socket looks the same until something is sent to it.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
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
    /// Becomes readable when one has ended, or may be cut to make room.
    news: Arc<OwnedFd>,
}

struct Port {
    info: PublishedPort,
    listener: TcpListener,
    connections: Arc<Connections>,
}

/// A port's connections.
#[derive(Default)]
struct Connections {
    all: Mutex<(u64, BTreeMap<u64, Connection>)>,
}

struct Connection {
    /// The client's end, to be cut.
    client: TcpStream,
    /// Since when no byte has moved, of one whose client has said everything.
    silent_since: Option<Instant>,
    /// It was cut, and ends.
    cut: bool,
}

impl Ports {
    /// # Errors
    /// What the system says.
    pub(crate) fn new() -> io::Result<Self> {
        let news = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { ports: Vec::new(), open: Arc::default(), news: Arc::new(news) })
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
        port.connections.lock().1.values_mut().for_each(Connection::cut);
        Ok(())
    }

    /// Returns the published ports, in the order they were published.
    pub(crate) fn list(&self) -> Vec<PublishedPort> {
        self.ports.iter().map(|port| port.info.clone()).collect()
    }

    /// Returns what is to be polled for reading: the listeners that there is or can be made room for, and what tells of
    /// more room.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listeners = self.ports.iter().filter(|port| !matches!(self.room(port), Room::None));
        listeners.map(|port| port.listener.as_fd()).chain([self.news.as_fd()])
    }

    /// Accepts whoever waits.
    pub(crate) fn accept(&self, vsock: &VsockHandle) {
        let vsock = vsock.clone();
        self.accept_for(&move |port| connect(&vsock, port));
    }

    /// Accepts whoever waits; `reach` connects to a port of the guest.
    fn accept_for(&self, reach: &(impl Fn(u16) -> Result<UnixStream, EngineError> + Clone + Send + 'static)) {
        let _ = rustix::io::read(&self.news, &mut [0; 8]);
        for port in &self.ports {
            loop {
                match self.room(port) {
                    Room::Free => {}
                    // Its place is free when its thread has ended, which tells.
                    Room::Cut(connections, number) if port.is_awaited() => {
                        if let Some(connection) = connections.lock().1.get_mut(&number) {
                            connection.cut();
                        }
                        break;
                    }
                    Room::Cut(..) | Room::None => break,
                }
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
                let place = Place { open: Arc::clone(&self.open), news: Arc::clone(&self.news) };
                let (connections, reach, guest_port) =
                    (Arc::clone(&port.connections), reach.clone(), port.info.guest_port);
                // Before the thread runs: one that is withdrawn meanwhile must find this connection to cut.
                let Ok(number) = connections.add(&client) else { continue };
                let begun = std::thread::Builder::new().name("port".to_owned()).stack_size(STACK).spawn(move || {
                    let silent = |since| {
                        let known = connections
                            .lock()
                            .1
                            .get_mut(&number)
                            .and_then(|connection| connection.silent_since.replace(since));
                        if known.is_none() {
                            place.tell();
                        }
                    };
                    serve(&client, guest_port, reach, silent);
                    connections.lock().1.remove(&number);
                });
                if let Err(e) = begun {
                    port.connections.lock().1.remove(&number);
                    tracing::warn!(error = %e, "a connection gets no thread");
                }
            }
        }
    }

    /// Returns what there is for another connection through a port.
    fn room(&self, port: &Port) -> Room<'_> {
        let full = self.open.load(Ordering::Acquire) >= MAX_CONNECTIONS;
        let own = self.ports.iter().filter(|other| std::ptr::eq(*other, port));
        if port.connections.lock().1.len() >= MAX_OF_PORT {
            return longest_silent(own);
        }
        if full { longest_silent(self.ports.iter()) } else { Room::Free }
    }
}

/// What there is for another connection.
enum Room<'a> {
    /// A place.
    Free,
    /// The place of one that can be cut.
    Cut(&'a Connections, u64),
    /// None, or one that was cut is about to end.
    None,
}

/// Returns the connection of these ports that has been silent longest, if none of theirs was cut already.
fn longest_silent<'a>(ports: impl Iterator<Item = &'a Port>) -> Room<'a> {
    let mut longest: Option<(Instant, &Connections, u64)> = None;
    for port in ports {
        for (number, connection) in &port.connections.lock().1 {
            if connection.cut {
                return Room::None;
            }
            if let Some(since) = connection.silent_since
                && longest.is_none_or(|(longest, ..)| since < longest)
            {
                longest = Some((since, &port.connections, *number));
            }
        }
    }
    longest.map_or(Room::None, |(_, connections, number)| Room::Cut(connections, number))
}

impl Port {
    /// Whether a client waits to be accepted.
    fn is_awaited(&self) -> bool {
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl Connection {
    fn cut(&mut self) {
        self.cut = true;
        let _ = self.client.shutdown(Shutdown::Both);
    }
}

/// One of the connections that there may be.
struct Place {
    open: Arc<AtomicUsize>,
    news: Arc<OwnedFd>,
}

impl Place {
    fn tell(&self) {
        // Fails only when the counter is full, and then the descriptor is readable anyway.
        let _ = rustix::io::write(&self.news, &1_u64.to_ne_bytes());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.tell();
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Connection>)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection and returns its number.
    fn add(&self, client: &TcpStream) -> io::Result<u64> {
        let connection = Connection { client: client.try_clone()?, silent_since: None, cut: false };
        let mut all = self.lock();
        all.0 += 1;
        let number = all.0;
        all.1.insert(number, connection);
        Ok(number)
    }
}

fn serve(
    client: &TcpStream,
    guest_port: u16,
    reach: impl Fn(u16) -> Result<UnixStream, EngineError>,
    silent: impl FnMut(Instant),
) {
    // A client that the guest does not want sees its connection closed, as with any proxy.
    match reach(guest_port) {
        Ok(guest) => {
            if let Err(e) = relay(client, &guest, SILENCE_LIMIT, silent) {
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

/// Passes bytes both ways until both directions have ended, each in its own time, or until nothing has moved for `limit`
/// after the client has said everything; `silent` hears since when that is.
fn relay(client: &TcpStream, guest: &UnixStream, limit: Duration, mut silent: impl FnMut(Instant)) -> io::Result<()> {
    client.set_nonblocking(true)?;
    guest.set_nonblocking(true)?;
    let _ = client.set_nodelay(true);
    let mut inward = Direction::new();
    let mut outward = Direction::new();
    let mut silent_since: Option<Instant> = None;
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
        let left = silent_since.map(|since| limit.saturating_sub(since.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let wait = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        // One that has said everything and has hung up takes nothing either.
        let gone = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP);
        if polled.zip(&fds).any(|((_, wanted, _), fd)| wanted.is_empty() && gone(fd)) {
            return Ok(());
        }
        let mut moved = inward.pass(client, guest, |guest| guest.shutdown(Shutdown::Write))?;
        moved |= outward.pass(guest, client, |client| client.shutdown(Shutdown::Write))?;
        if inward.ended && (moved || silent_since.is_none()) {
            let now = Instant::now();
            silent_since = Some(now);
            silent(now);
        }
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

    /// Passes on what can be passed without waiting. Returns whether a byte was.
    fn pass<R, W>(&mut self, mut from: &R, mut to: &W, end: impl FnOnce(&W) -> io::Result<()>) -> io::Result<bool>
    where
        for<'a> &'a R: Read,
        for<'a> &'a W: Write,
    {
        let mut moved = false;
        while !self.ended {
            if self.is_empty() {
                match from.read(&mut self.buffer) {
                    Ok(0) => {
                        self.ended = true;
                        return match end(to) {
                            Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(e),
                            _ => Ok(moved),
                        };
                    }
                    Ok(count) => (self.from, self.to) = (0, count),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(moved),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(e),
                }
            }
            match to.write(self.buffer.get(self.from..self.to).unwrap_or_default()) {
                Ok(count) => {
                    self.from += count;
                    moved = true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(moved),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(moved)
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
        let limit = Duration::from_millis(300);
        (client, inside, std::thread::spawn(move || relay(&accepted, &guest, limit, |_| ())))
    }

    #[test]
    fn a_client_that_has_said_everything_waits_only_so_long() {
        let (client, mut inside, relay) = relayed();
        client.shutdown(Shutdown::Write).unwrap();
        // As long as something comes it goes on.
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(100));
            inside.write_all(b"x").unwrap();
        }
        assert!(!relay.is_finished());
        let begun = Instant::now();
        assert_eq!(relay.join().unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_millis(200));
        drop((client, inside));

        // One that may still say something waits as long as it likes.
        let (client, inside, relay) = relayed();
        std::thread::sleep(Duration::from_millis(600));
        assert!(!relay.is_finished());
        drop((client, inside));
        let _ = relay.join().unwrap();
    }

    /// A server that takes connections and never says a word: the guest's ends are kept.
    fn hung() -> impl Fn(u16) -> Result<UnixStream, EngineError> + Clone + Send + 'static {
        let kept = Arc::new(Mutex::new(Vec::new()));
        move |_| {
            let (guest, inside) = UnixStream::pair().unwrap();
            kept.lock().unwrap().push(inside);
            Ok(guest)
        }
    }

    /// Turns the loop until `done`, for a while at most.
    fn turn_until(
        ports: &Ports,
        reach: &(impl Fn(u16) -> Result<UnixStream, EngineError> + Clone + Send + 'static),
        done: impl Fn() -> bool,
    ) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{} connections", ports.open.load(Ordering::Acquire));
            let mut fds: Vec<PollFd<'_>> =
                ports.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 })).unwrap() > 0 {
                drop(fds);
                ports.accept_for(reach);
            }
        }
    }

    #[test]
    fn a_hung_server_leaves_room_for_others_and_for_who_comes_after_its_clients() {
        let mut ports = Ports::new().unwrap();
        let published: Vec<u16> = (0..3).map(|_| ports.publish(80, None, None).unwrap().host_port).collect();
        let (ports, reach) = (&ports, hung());
        let dial = |at: usize| TcpStream::connect((Ipv4Addr::LOCALHOST, published[at])).unwrap();
        let count = |at: usize| ports.ports[at].connections.lock().1.len();

        // One port takes half of the places and no more.
        let mut clients: Vec<TcpStream> = (0..MAX_OF_PORT + 3).map(|_| dial(0)).collect();
        turn_until(ports, &reach, || count(0) == MAX_OF_PORT);
        clients.extend((0..5).map(|_| dial(1)));
        turn_until(ports, &reach, || count(1) == 5);
        assert_eq!(count(0), MAX_OF_PORT);

        // All places are taken, by clients that are there.
        clients.extend((5..MAX_OF_PORT).map(|_| dial(1)));
        turn_until(ports, &reach, || count(1) == MAX_OF_PORT);
        let late = dial(2);
        for _ in 0..10 {
            ports.accept_for(&reach);
        }
        assert_eq!(count(2), 0);

        // When they have gone the server hangs as before: who comes gets the places of theirs.
        drop(clients);
        turn_until(ports, &reach, || count(2) == 1);
        let later = dial(2);
        turn_until(ports, &reach, || count(2) == 2);
        assert!(ports.open.load(Ordering::Acquire) <= MAX_CONNECTIONS);
        // And not one more of theirs is cut while nobody comes.
        turn_until(ports, &reach, || ports.ports.iter().all(|port| !port.is_awaited()));
        assert!(count(0) + count(1) >= MAX_CONNECTIONS - 3, "{} and {}", count(0), count(1));
        drop((late, later));
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
