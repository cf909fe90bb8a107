//! How it is found out that a service is ready.

use pyro_plugin_guest::{invalid, path};
use pyro_plugin_sdk::ToolError;

/// One way to find it out.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// A file exists.
    File(String),
    /// A connection succeeds: the target as given, host and port.
    Tcp(String, String, u16),
    /// A GET answers 200 to 399.
    Http(String),
    /// A shell line ends with 0.
    Command(String),
}

impl Probe {
    /// Makes the probe of a call's arguments.
    ///
    /// # Errors
    /// More than one, a malformed address, a path outside the workspace.
    pub fn new(
        file: Option<&str>,
        tcp: Option<&str>,
        http: Option<&str>,
        command: Option<&str>,
    ) -> Result<Option<Probe>, ToolError> {
        let given = [("file", file), ("tcp", tcp), ("http", http), ("command", command)];
        let mut given = given.into_iter().filter_map(|(kind, target)| target.map(|target| (kind, target)));
        let Some((kind, target)) = given.next() else {
            return Ok(None);
        };
        if let Some((other, _)) = given.next() {
            return Err(invalid(format!("ready_{kind} and ready_{other} cannot be used together")));
        }
        let target = if kind == "file" { path(target)? } else { target.trim().to_owned() };
        Probe::read(kind, &target).map(Some).ok_or_else(|| {
            invalid(match kind {
                "tcp" => format!("ready_tcp '{target}' must be HOST:PORT"),
                "http" => format!("ready_http '{target}' must be an http:// URL"),
                _ => format!("ready_{kind} must not be empty"),
            })
        })
    }

    /// The probe of a noted kind and target.
    pub fn read(kind: &str, target: &str) -> Option<Probe> {
        if target.is_empty() {
            return None;
        }
        match kind {
            "file" => Some(Probe::File(target.to_owned())),
            "command" => Some(Probe::Command(target.to_owned())),
            "http" => is_http(target).then(|| Probe::Http(target.to_owned())),
            "tcp" => {
                let (host, port) = target.rsplit_once(':')?;
                let port = port.parse().ok().filter(|port| *port > 0)?;
                let host = host.strip_prefix('[').map_or(Some(host), |inner| inner.strip_suffix(']'))?;
                (!host.is_empty()).then(|| Probe::Tcp(target.to_owned(), host.to_owned(), port))
            }
            _ => None,
        }
    }

    /// Its word in results.
    pub fn kind(&self) -> &'static str {
        match self {
            Probe::File(_) => "file",
            Probe::Tcp(..) => "tcp",
            Probe::Http(_) => "http",
            Probe::Command(_) => "command",
        }
    }

    /// What it looks at, as it was given.
    pub fn target(&self) -> &str {
        match self {
            Probe::File(target) | Probe::Tcp(target, ..) | Probe::Http(target) | Probe::Command(target) => target,
        }
    }
}

/// Whether the guest's agent takes an address: it says so only once the service runs.
fn is_http(address: &str) -> bool {
    const SCHEME: &str = "http://";
    if address.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return false;
    }
    let Some((start, rest)) = address.split_at_checked(SCHEME.len()) else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let parts = match authority.strip_prefix('[') {
        Some(inner) => inner.split_once(']').map(|(host, port)| (host, port.strip_prefix(':').unwrap_or(port))),
        None => Some(authority.split_once(':').unwrap_or((authority, ""))),
    };
    start.eq_ignore_ascii_case(SCHEME)
        && !authority.contains('@')
        && parts.is_some_and(|(host, port)| !host.is_empty() && (port.is_empty() || port.parse::<u16>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same addresses as in the agent's `probe.rs`.
    #[test]
    fn an_address_is_refused_before_anything_is_started() {
        let http = |target| Probe::new(None, None, Some(target), None);
        for good in
            ["http://localhost", "HTTP://127.0.0.1:8080/a?b=c#d", "http://[::1]:81?x", "http://[::1]/", "http://a:#x"]
        {
            assert_eq!(http(good), Ok(Some(Probe::Http(good.to_owned()))), "{good}");
        }
        for bad in
            ["https://x", "x", "", "http://", "http:///x", "http://a:99999", "http://a b", "http://u@h", "http://[::1"]
        {
            let error = http(bad).unwrap_err();
            assert_eq!(error.code, "invalid_argument", "{bad}");
        }
        assert!(http("http://a/\r\nX: y").is_err());
    }

    #[test]
    fn one_probe_is_made_of_the_arguments() {
        assert_eq!(Probe::new(None, None, None, None), Ok(None));
        assert_eq!(Probe::new(Some("ready"), None, None, None).unwrap(), Some(Probe::File("/workspace/ready".into())));
        let tcp = |target| Probe::new(None, Some(target), None, None).ok().flatten();
        assert_eq!(tcp("localhost:80"), Some(Probe::Tcp("localhost:80".into(), "localhost".into(), 80)));
        assert_eq!(tcp("[::1]:80"), Some(Probe::Tcp("[::1]:80".into(), "::1".into(), 80)));
        for bad in ["80", ":80", "a:0", "a:70000", "a:x", ""] {
            assert_eq!(tcp(bad), None, "{bad}");
        }
        assert!(Probe::new(None, None, Some("https://x"), None).is_err());
        assert!(Probe::new(Some("../x"), None, None, None).is_err());
        assert!(Probe::new(None, Some("a:1"), None, Some("true")).unwrap_err().message.contains("together"));
    }
}
