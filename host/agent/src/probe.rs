//! Probes: whether something is ready. Each is one attempt, made by a worker.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use pyro_agent_protocol::{Done, Readiness, codes};

use crate::peer::Fail;

const TCP_LIMIT: Duration = Duration::from_secs(1);
const HTTP_LIMIT: Duration = Duration::from_secs(2);
/// A status line is shorter.
const ANSWER_BYTES: usize = 4096;

/// Tries once.
///
/// # Errors
/// What to answer when there is nothing to try.
pub fn probe(what: &Readiness) -> Result<Done, Fail> {
    let ready = match what {
        Readiness::File(path) => {
            if !path.starts_with('/') {
                return Err(invalid(format!("path {path:?} is not absolute")));
            }
            std::fs::metadata(path).is_ok()
        }
        Readiness::Tcp(host, port) => connect(host, *port, Instant::now() + TCP_LIMIT).is_some(),
        Readiness::Http(address) => {
            let address =
                Address::parse(address).ok_or_else(|| invalid(format!("{address:?} is no http:// address")))?;
            status(&address, Instant::now() + HTTP_LIMIT).is_some_and(|status| (200..400).contains(&status))
        }
    };
    Ok(Done { ready, ..Done::default() })
}

struct Address<'a> {
    host: &'a str,
    port: u16,
    /// As it is written, for the header.
    authority: &'a str,
    /// With its query.
    path: &'a str,
}

impl<'a> Address<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return None;
        }
        let (start, rest) = text.split_at_checked("http://".len())?;
        if !start.eq_ignore_ascii_case("http://") {
            return None;
        }
        let rest = rest.split('#').next()?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map(|(host, port)| (host, port.strip_prefix(':').unwrap_or(port)))?,
            None => authority.split_once(':').unwrap_or((authority, "")),
        };
        if host.is_empty() || authority.contains('@') {
            return None;
        }
        let port = if port.is_empty() { 80 } else { port.parse().ok()? };
        Some(Self { host, port, authority, path })
    }
}

fn connect(host: &str, port: u16, until: Instant) -> Option<TcpStream> {
    let name = host.to_owned();
    let addresses = within(until, move || (name.as_str(), port).to_socket_addrs().ok())??;
    addresses.into_iter().find_map(|address| TcpStream::connect_timeout(&address, left(until)?).ok())
}

/// Returns what `look_up` returns, if it does so in time. A resolver has limits of its own, which are longer than ours and
/// cannot be set: what comes too late is for nobody.
fn within<T: Send + 'static>(until: Instant, look_up: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, found) = mpsc::sync_channel(1);
    let name = thread::Builder::new().name("resolver".to_owned());
    name.spawn(move || sender.send(look_up())).ok()?;
    found.recv_timeout(left(until)?).ok()
}

fn status(address: &Address<'_>, until: Instant) -> Option<u16> {
    let mut stream = connect(address.host, address.port, until)?;
    let slash = if address.path.starts_with('/') { "" } else { "/" };
    let request = format!(
        "GET {slash}{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: pyro\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        address.path, address.authority
    );
    stream.set_write_timeout(Some(left(until)?)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    while !answer.contains(&b'\n') && answer.len() < ANSWER_BYTES {
        stream.set_read_timeout(Some(left(until)?)).ok()?;
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => answer.extend_from_slice(buffer.get(..count)?),
            // A read with a timeout is not begun again by the kernel.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    status_of(&answer)
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|byte| *byte == b'\n').next()?).ok()?;
    let mut words = line.strip_prefix("HTTP/1.")?.split_ascii_whitespace();
    words.next()?;
    words.next().filter(|status| status.len() == 3)?.parse().ok()
}

/// Returns the time that is left; none is no timeout to the system.
fn left(until: Instant) -> Option<Duration> {
    Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
}

fn invalid(message: String) -> Fail {
    Fail::new(codes::INVALID_ARGUMENT, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(String, u16, String)> {
        Address::parse(text).map(|address| (address.host.to_owned(), address.port, address.path.to_owned()))
    }

    #[test]
    fn addresses_are_taken_apart() {
        let of = |host: &str, port, path: &str| Some((host.to_owned(), port, path.to_owned()));
        assert_eq!(parsed("http://localhost"), of("localhost", 80, ""));
        assert_eq!(parsed("HTTP://127.0.0.1:8080/a?b=c#d"), of("127.0.0.1", 8080, "/a?b=c"));
        assert_eq!(parsed("http://[::1]:81?x"), of("::1", 81, "?x"));
        assert_eq!(parsed("http://[::1]/"), of("::1", 80, "/"));
        for bad in
            ["https://x", "x", "", "http://", "http:///x", "http://a:99999", "http://a b", "http://u@h", "http://[::1"]
        {
            assert_eq!(parsed(bad), None, "{bad}");
        }
        assert_eq!(parsed("http://a/\r\nX: y"), None);
    }

    #[test]
    fn a_name_that_nobody_answers_for_takes_no_longer_than_the_probe() {
        let began = Instant::now();
        let until = began + Duration::from_millis(50);
        assert_eq!(within(until, || thread::sleep(Duration::from_secs(5))), None);
        assert!(began.elapsed() < Duration::from_secs(2));
        assert_eq!(within(Instant::now() + Duration::from_secs(20), || 7), Some(7));
    }

    #[test]
    fn only_a_status_line_has_a_status() {
        assert_eq!(status_of(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(204));
        assert_eq!(status_of(b"HTTP/1.0 500\r\n"), Some(500));
        for bad in [&b""[..], b"\xff", b"HTTP/1.1", b"HTTP/1.1 20\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n"] {
            assert_eq!(status_of(bad), None);
        }
    }
}
