//! The frames that the host and the guest agent exchange.
//!
//! Every operation has its own stream connection (vsock in a microVM, a socket pair in tests). The host opens it to
//! [`AGENT_PORT`], sends one [`HostFrame::Open`] that names the operation, and reads [`GuestFrame`]s until the last one
//! of that operation. Dropping the connection cancels the operation, and so does closing only the host's writing side:
//! keep it open until the last frame; `StdinEof` is what ends a command's stdin.
//!
//! ```text
//! frame    := length:u32le kind:u8 payload      length counts kind and payload, 1..=MAX_FRAME_BYTES
//! payload  := JSON object (control) | raw bytes (data)
//!
//! hello    host: Open(hello)                     guest: HelloReply
//! exec     host: Open(exec) (Stdin | StdinEof | Signal)*
//!          guest: Started (Stdout | Stderr | StdinCredit)* Exited
//! shutdown host: Open(shutdown)                  guest: GoingDown
//! any      guest: Error ends the operation; before Started it means that nothing was started
//! ready    the agent connects to READY_PORT of the host and sends one HelloReply
//! ```
//!
//! Compatibility: receivers ignore JSON members and frame kinds they do not know, so both may be added. Anything else
//! needs a new protocol number, which `Open` carries.
//!
//! Deliberately absent: sockets, threads and async. [`FrameDecoder`] takes bytes as they come; encoding appends to a
//! `Vec<u8>`. Decoding never panics and never holds more than one frame and what the caller last pushed.

mod frame;
mod message;
mod signal;

pub use frame::{FrameDecoder, FrameError, GuestFrame, HostFrame, encode_stderr, encode_stdin, encode_stdout};
pub use message::{
    BootStep, ErrorReply, ExecRequest, Exited, GoingDown, HelloReply, HelloRequest, Op, Open, Program, Seed,
    ShutdownMode, ShutdownRequest, Started, codes,
};
pub use signal::{signal_name, signal_number};

/// The protocol number this crate speaks.
pub const PROTOCOL: u32 = 1;
/// The oldest protocol number this crate still speaks.
pub const PROTOCOL_MIN: u32 = 1;

/// The vsock port on which the guest agent listens.
pub const AGENT_PORT: u32 = 1024;
/// The vsock port of the host to which the agent connects once, when it is ready.
pub const READY_PORT: u32 = 1025;

/// The largest value of a frame's length field, in bytes: room for a request with a large argument list.
/// It bounds what a peer can make the other side hold.
pub const MAX_FRAME_BYTES: usize = 256 * 1024 + 16;
/// The most data bytes a sender puts into one data frame. Small enough that control frames are never far behind.
pub const DATA_CHUNK_BYTES: usize = 64 * 1024;
/// The stdin bytes a host may have sent beyond those the agent has credited. A host that stays inside this window
/// knows that `Signal` and `StdinEof` are read at once; one that ignores it is slowed down by the stream, but never
/// refused.
pub const STDIN_WINDOW_BYTES: usize = 256 * 1024;
