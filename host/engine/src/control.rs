//! What is said on a VM process's sockets.
//!
//! A client sends one JSON line and gets one JSON line back. After a good reply to `connect` the same socket carries
//! the raw bytes of the guest connection. Two kinds of socket also get events, one JSON line each: the channel to the
//! process that made the machine (standard input of the VM process) and sockets that sent `hold` or `watch`.
//!
//! Lines are bounded, and a line that is not understood is answered with an error, never with silence.

use serde::{Deserialize, Serialize};

use crate::{
    error::{EngineError, ErrorCode},
    spec::{BootTimings, MachineInfo, PublishedPort, Statistics},
};

/// Longest request line in bytes, newline included. Requests are a handful of fields.
pub(crate) const MAX_REQUEST: usize = 4096;
/// Longest reply or event line in bytes, newline included. An event may carry the end of a guest's console.
pub(crate) const MAX_REPLY: usize = 64 * 1024;

/// A request to a VM process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Connect to a vsock port of the guest.
    Connect {
        /// The guest's port.
        port: u32,
    },
    /// Describe the machine.
    Status,
    /// Say what is known, keep an owned machine alive as long as this socket is open, and send events.
    Hold,
    /// Say what is known, and send events.
    Watch,
    /// End the machine; the reply comes when nothing of it is left but the process that sends it.
    Kill,
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs run again.
    Resume,
    /// Move the end of the machine's time.
    Extend {
        /// Unix seconds.
        expires_at: f64,
    },
    /// Listen on 127.0.0.1 for connections to a port of the guest's loopback.
    Publish {
        /// The guest's port.
        guest_port: u16,
        /// The host's port; without one, any that is free.
        host_port: Option<u16>,
        /// Whose it is.
        owner: Option<String>,
    },
    /// Take a published port back, and cut its connections.
    Unpublish {
        /// The host's port.
        host_port: u16,
    },
    /// List the published ports.
    Published,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "made, written and dropped, one at a time")]
pub(crate) enum Reply {
    /// Done.
    Ok(OkBody),
    /// Not done.
    Error(EngineError),
}

/// What a good reply carries.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct OkBody {
    /// Answer to `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineInfo>,
    /// Answer to `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<BootTimings>,
    /// Answer to `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
    /// Answer to `publish` and `published`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
}

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The agent answered.
    Ready {
        /// Where the time went, as far as the VM process knows.
        timings: BootTimings,
        /// The machine, now running.
        machine: MachineInfo,
    },
    /// What is known about the machine has changed.
    Changed {
        /// The machine as it is now.
        machine: MachineInfo,
    },
    /// The machine is gone, and this is the last line.
    Ended {
        /// Why, as the error that those who still use it get.
        error: EngineError,
    },
}

/// Renders a line, newline included. Too long a line is shortened to an error that says so.
pub(crate) fn line(value: &impl Serialize) -> Vec<u8> {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            bytes
        }
        // Only maps with keys that are not strings fail, and there are none above.
        Err(_) => b"{\"error\":{\"code\":\"internal\",\"message\":\"a reply could not be rendered\"}}\n".to_vec(),
    }
}

/// Collects the bytes of one line at a time.
#[derive(Debug)]
pub(crate) struct LineBuffer {
    bytes: Vec<u8>,
    limit: usize,
}

impl LineBuffer {
    /// Makes a buffer for lines of up to `limit` bytes, newline included.
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Adds what was read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the first complete line, without its newline.
    ///
    /// # Errors
    /// `invalid_argument` when the line is longer than the limit.
    pub(crate) fn take(&mut self) -> Result<Option<Vec<u8>>, EngineError> {
        let too_long =
            || EngineError::new(ErrorCode::InvalidArgument, format!("a line is longer than {} bytes", self.limit));
        match self.bytes.iter().position(|&byte| byte == b'\n') {
            Some(end) if end < self.limit => {
                let rest = self.bytes.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                line.pop();
                Ok(Some(line))
            }
            Some(_) => Err(too_long()),
            None if self.bytes.len() >= self.limit => Err(too_long()),
            None => Ok(None),
        }
    }

    /// Takes whatever follows the lines taken so far.
    pub(crate) fn into_rest(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads a request line.
///
/// # Errors
/// `invalid_argument` for anything that is not exactly one known request.
pub(crate) fn parse_request(line: &[u8]) -> Result<Request, EngineError> {
    serde_json::from_slice(line)
        .map_err(|e| EngineError::new(ErrorCode::InvalidArgument, format!("control request not understood: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_form() {
        assert_eq!(parse_request(br#"{"op":"connect","port":1024}"#).unwrap(), Request::Connect { port: 1024 });
        assert_eq!(parse_request(br#"{"op":"hold"}"#).unwrap(), Request::Hold);
        assert_eq!(line(&Request::Connect { port: 7 }), b"{\"op\":\"connect\",\"port\":7}\n");
        assert_eq!(line(&Reply::Ok(OkBody::default())), b"{\"ok\":{}}\n");
    }

    #[test]
    fn hostile_lines_are_errors() {
        let cases: &[&[u8]] = &[
            b"",
            b"null",
            b"[]",
            b"{}",
            b"{\"op\":\"connect\"}",
            b"{\"op\":\"connect\",\"port\":-1}",
            b"{\"op\":\"connect\",\"port\":4294967296}",
            b"{\"op\":\"connect\",\"port\":1,\"port\":2}",
            b"{\"op\":\"connect\",\"port\":1,\"more\":2}",
            b"{\"op\":\"explode\"}",
            b"{\"op\":\"kill\"}{\"op\":\"kill\"}",
            b"\xff\xfe",
            b"\x00\x00\x00",
            &[b'['; 4000],
        ];
        for case in cases {
            let error = parse_request(case).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{}", String::from_utf8_lossy(case));
        }
    }

    #[test]
    fn lines_are_cut_where_they_end() {
        let mut buffer = LineBuffer::new(8);
        buffer.push(b"abc");
        assert_eq!(buffer.take().unwrap(), None);
        buffer.push(b"\nde\nrest");
        assert_eq!(buffer.take().unwrap().unwrap(), b"abc");
        assert_eq!(buffer.take().unwrap().unwrap(), b"de");
        assert_eq!(buffer.take().unwrap(), None);
        assert_eq!(buffer.into_rest(), b"rest");
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let mut buffer = LineBuffer::new(8);
        buffer.push(b"1234567");
        assert_eq!(buffer.take().unwrap(), None);
        buffer.push(b"8");
        assert!(buffer.take().is_err());

        let mut buffer = LineBuffer::new(8);
        buffer.push(b"12345678\n");
        assert!(buffer.take().is_err());

        let mut buffer = LineBuffer::new(8);
        buffer.push(b"1234567\n");
        assert_eq!(buffer.take().unwrap().unwrap(), b"1234567");
    }
}
