//! Frames as bytes.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::files::{FileChangeHead, FileEntry};
use crate::message::{Done, ErrorReply, Exited, GoingDown, HelloReply, Open, OpenWire, Started};
use crate::services::ServiceStatus;
use crate::terminals::TerminalStatus;
use crate::{DATA_CHUNK_BYTES, MAX_FRAME_BYTES};

/// The length field.
const HEADER_BYTES: usize = 4;

/// The kind byte. Host frames are below 0x80, guest frames at or above it.
mod kind {
    pub const OPEN: u8 = 0x01;
    pub const STDIN: u8 = 0x02;
    pub const STDIN_EOF: u8 = 0x03;
    pub const SIGNAL: u8 = 0x04;
    pub const DATA_IN: u8 = 0x05;
    pub const DATA_IN_EOF: u8 = 0x06;
    pub const CHANGE: u8 = 0x07;
    pub const HELLO_REPLY: u8 = 0x81;
    pub const ERROR: u8 = 0x82;
    pub const STARTED: u8 = 0x83;
    pub const STDOUT: u8 = 0x84;
    pub const STDERR: u8 = 0x85;
    pub const EXITED: u8 = 0x86;
    pub const STDIN_CREDIT: u8 = 0x87;
    pub const GOING_DOWN: u8 = 0x88;
    pub const DATA_OUT: u8 = 0x89;
    pub const ENTRIES: u8 = 0x8a;
    pub const TERMINAL: u8 = 0x8b;
    pub const SERVICE: u8 = 0x8c;
    pub const DONE: u8 = 0x8d;
    pub const CONNECTED: u8 = 0x8e;
}

/// A frame from the host to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFrame {
    /// The first frame: what to do.
    Open(Open),
    /// Bytes for the command's stdin.
    Stdin(Vec<u8>),
    /// The end of the command's stdin.
    StdinEof,
    /// A signal, by name (`SIGINT`, `INT`), for the command's process group. `SIGKILL` ends the whole process tree.
    /// Check names with [`signal_number`](crate::signal_number); an agent that does not know one ends the exec with an error.
    Signal(String),
    /// Bytes of what the operation takes in: an archive, a file's new content, what is typed.
    Data(Vec<u8>),
    /// The end of those bytes.
    DataEof,
    /// The next change of a set. When it has content, the content's bytes follow.
    Change(FileChangeHead),
    /// A frame of a later version, to be ignored.
    Unknown(u8),
}

/// A frame from the guest to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestFrame {
    /// The guest's facts.
    HelloReply(Box<HelloReply>),
    /// The operation failed; the last frame.
    Error(ErrorReply),
    /// The command runs.
    Started(Started),
    /// Bytes from the command's stdout.
    Stdout(Vec<u8>),
    /// Bytes from the command's stderr.
    Stderr(Vec<u8>),
    /// The command has ended; the last frame.
    Exited(Exited),
    /// So many more stdin bytes were passed on; see [`STDIN_WINDOW_BYTES`](crate::STDIN_WINDOW_BYTES).
    StdinCredit(u32),
    /// The guest is ending; the last frame.
    GoingDown(GoingDown),
    /// Bytes of what the operation gives out: an archive, a file's content, a terminal's output.
    Data(Vec<u8>),
    /// Entries of the file system.
    Entries(Vec<FileEntry>),
    /// A terminal.
    Terminal(Box<TerminalStatus>),
    /// A service.
    Service(Box<ServiceStatus>),
    /// The operation has succeeded; the last frame.
    Done(Done),
    /// The connection is made; what follows in both directions are its raw bytes.
    Connected,
    /// A frame of a later version, to be ignored.
    Unknown(u8),
}

/// Bytes that are not a frame, or a value that does not fit into one. The stream cannot be used further.
#[derive(Debug, Error)]
pub enum FrameError {
    /// A frame without a kind.
    #[error("frame of length 0")]
    Empty,
    /// A frame longer than [`MAX_FRAME_BYTES`].
    #[error("frame of {len} bytes, more than {max}")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A control frame whose JSON does not say what it must.
    #[error("malformed {name} frame: {reason}")]
    Malformed {
        /// The frame's name.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl HostFrame {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when the content does not fit; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Self::Open(open) => encode_json(kind::OPEN, "open", &OpenWire::from(open), out),
            Self::Stdin(bytes) => encode_raw(kind::STDIN, bytes, out),
            Self::StdinEof => encode_raw(kind::STDIN_EOF, &[], out),
            Self::Signal(name) => encode_raw(kind::SIGNAL, name.as_bytes(), out),
            Self::Data(bytes) => encode_raw(kind::DATA_IN, bytes, out),
            Self::DataEof => encode_raw(kind::DATA_IN_EOF, &[], out),
            Self::Change(change) => encode_json(kind::CHANGE, "change", change, out),
            Self::Unknown(kind) => encode_raw(*kind, &[], out),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        Ok(match kind {
            kind::OPEN => {
                let wire: OpenWire = decode_json("open", payload)?;
                let open = wire.into_open().map_err(|reason| malformed("open", reason))?;
                Self::Open(open)
            }
            kind::STDIN => Self::Stdin(payload.to_vec()),
            kind::STDIN_EOF => Self::StdinEof,
            kind::SIGNAL => {
                let name = std::str::from_utf8(payload).map_err(|_| malformed("signal", "name is not UTF-8"))?;
                Self::Signal(name.to_owned())
            }
            kind::DATA_IN => Self::Data(payload.to_vec()),
            kind::DATA_IN_EOF => Self::DataEof,
            kind::CHANGE => Self::Change(decode_json("change", payload)?),
            other => Self::Unknown(other),
        })
    }
}

impl GuestFrame {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when the content does not fit; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        match self {
            Self::HelloReply(reply) => encode_json(kind::HELLO_REPLY, "hello reply", reply, out),
            Self::Error(error) => encode_json(kind::ERROR, "error", error, out),
            Self::Started(started) => encode_json(kind::STARTED, "started", started, out),
            Self::Stdout(bytes) => encode_raw(kind::STDOUT, bytes, out),
            Self::Stderr(bytes) => encode_raw(kind::STDERR, bytes, out),
            Self::Exited(exited) => encode_json(kind::EXITED, "exited", exited, out),
            Self::StdinCredit(bytes) => encode_raw(kind::STDIN_CREDIT, &bytes.to_le_bytes(), out),
            Self::GoingDown(down) => encode_json(kind::GOING_DOWN, "going down", down, out),
            Self::Data(bytes) => encode_raw(kind::DATA_OUT, bytes, out),
            Self::Entries(entries) => encode_json(kind::ENTRIES, "entries", entries, out),
            Self::Terminal(terminal) => encode_json(kind::TERMINAL, "terminal", terminal, out),
            Self::Service(service) => encode_json(kind::SERVICE, "service", service, out),
            Self::Done(done) => encode_json(kind::DONE, "done", done, out),
            Self::Connected => encode_raw(kind::CONNECTED, &[], out),
            Self::Unknown(kind) => encode_raw(*kind, &[], out),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        Ok(match kind {
            kind::HELLO_REPLY => Self::HelloReply(Box::new(decode_json("hello reply", payload)?)),
            kind::ERROR => Self::Error(decode_json("error", payload)?),
            kind::STARTED => Self::Started(decode_json("started", payload)?),
            kind::STDOUT => Self::Stdout(payload.to_vec()),
            kind::STDERR => Self::Stderr(payload.to_vec()),
            kind::EXITED => Self::Exited(decode_json("exited", payload)?),
            kind::STDIN_CREDIT => {
                let bytes: [u8; 4] =
                    payload.try_into().map_err(|_| malformed("stdin credit", "payload is not 4 bytes"))?;
                Self::StdinCredit(u32::from_le_bytes(bytes))
            }
            kind::GOING_DOWN => Self::GoingDown(decode_json("going down", payload)?),
            kind::DATA_OUT => Self::Data(payload.to_vec()),
            kind::ENTRIES => Self::Entries(decode_json("entries", payload)?),
            kind::TERMINAL => Self::Terminal(Box::new(decode_json("terminal", payload)?)),
            kind::SERVICE => Self::Service(Box::new(decode_json("service", payload)?)),
            kind::DONE => Self::Done(decode_json("done", payload)?),
            kind::CONNECTED => Self::Connected,
            other => Self::Unknown(other),
        })
    }
}

/// Appends `bytes` to `out` as stdin frames of at most [`DATA_CHUNK_BYTES`]. No bytes, no frame.
pub fn encode_stdin(bytes: &[u8], out: &mut Vec<u8>) {
    encode_data(kind::STDIN, bytes, out);
}

/// Appends `bytes` to `out` as stdout frames of at most [`DATA_CHUNK_BYTES`]. No bytes, no frame.
pub fn encode_stdout(bytes: &[u8], out: &mut Vec<u8>) {
    encode_data(kind::STDOUT, bytes, out);
}

/// Appends `bytes` to `out` as stderr frames of at most [`DATA_CHUNK_BYTES`]. No bytes, no frame.
pub fn encode_stderr(bytes: &[u8], out: &mut Vec<u8>) {
    encode_data(kind::STDERR, bytes, out);
}

/// Appends `bytes` to `out` as a host's data frames of at most [`DATA_CHUNK_BYTES`]. No bytes, no frame.
pub fn encode_host_data(bytes: &[u8], out: &mut Vec<u8>) {
    encode_data(kind::DATA_IN, bytes, out);
}

/// Appends `bytes` to `out` as a guest's data frames of at most [`DATA_CHUNK_BYTES`]. No bytes, no frame.
pub fn encode_guest_data(bytes: &[u8], out: &mut Vec<u8>) {
    encode_data(kind::DATA_OUT, bytes, out);
}

/// Turns a byte stream into frames.
///
/// Push what was read, then take frames until there are none. Between pushes it holds less than one frame, so its
/// memory is bounded by [`MAX_FRAME_BYTES`] plus the largest push. After an error the stream is lost: every later call
/// returns an error too.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Where the next frame begins in `buffer`.
    start: usize,
}

impl FrameDecoder {
    /// Returns an empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next frame from a host, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// [`FrameError`] when the bytes are not a frame.
    pub fn next_host(&mut self) -> Result<Option<HostFrame>, FrameError> {
        self.next_with(HostFrame::decode)
    }

    /// Returns the next frame from a guest, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// [`FrameError`] when the bytes are not a frame.
    pub fn next_guest(&mut self) -> Result<Option<GuestFrame>, FrameError> {
        self.next_with(GuestFrame::decode)
    }

    /// Returns the number of bytes held that belong to no frame taken so far. After the end of a stream, a number
    /// above 0 means that a frame was cut.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len().saturating_sub(self.start)
    }

    /// Returns the bytes that belong to no frame taken so far: what follows [`GuestFrame::Connected`], or the frame that
    /// asked for it, is no frame.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.buffer.split_off(self.start.min(self.buffer.len()))
    }

    fn next_with<F>(&mut self, decode: fn(u8, &[u8]) -> Result<F, FrameError>) -> Result<Option<F>, FrameError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*header) as usize;
        if len > MAX_FRAME_BYTES {
            return Err(FrameError::TooLarge { len, max: MAX_FRAME_BYTES });
        }
        if len == 0 {
            return Err(FrameError::Empty);
        }
        let Some((&kind, payload)) = rest.get(..len).and_then(<[u8]>::split_first) else {
            return Ok(None);
        };
        // `start` moves only past good frames, so an error repeats.
        let frame = decode(kind, payload)?;
        self.start += HEADER_BYTES + len;
        Ok(Some(frame))
    }
}

fn malformed(name: &'static str, reason: impl ToString) -> FrameError {
    FrameError::Malformed { name, reason: reason.to_string() }
}

fn decode_json<'a, T: Deserialize<'a>>(name: &'static str, payload: &'a [u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|error| malformed(name, error))
}

fn encode_json<T: Serialize>(kind: u8, name: &'static str, value: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    out.push(kind);
    let result = serde_json::to_writer(&mut *out, value).map_err(|error| malformed(name, error));
    let len = out.len() - start - HEADER_BYTES;
    let result = result.and_then(|()| checked_len(len));
    match result {
        Ok(len) => {
            if let Some(header) = out.get_mut(start..start + HEADER_BYTES) {
                header.copy_from_slice(&len.to_le_bytes());
            }
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

fn encode_raw(kind: u8, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    let len = checked_len(payload.len() + 1)?;
    out.reserve(HEADER_BYTES + 1 + payload.len());
    out.extend_from_slice(&len.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(payload);
    Ok(())
}

fn encode_data(kind: u8, bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.chunks(DATA_CHUNK_BYTES) {
        // A chunk is below the frame limit, so its length always fits.
        let len = u32::try_from(chunk.len() + 1).unwrap_or(u32::MAX);
        out.reserve(HEADER_BYTES + 1 + chunk.len());
        out.extend_from_slice(&len.to_le_bytes());
        out.push(kind);
        out.extend_from_slice(chunk);
    }
}

fn checked_len(len: usize) -> Result<u32, FrameError> {
    match u32::try_from(len) {
        Ok(fits) if len <= MAX_FRAME_BYTES => Ok(fits),
        _ => Err(FrameError::TooLarge { len, max: MAX_FRAME_BYTES }),
    }
}
