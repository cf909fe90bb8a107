//! The frames that the host and the guest agent exchange.
//!
//! Every operation has its own stream connection (vsock in a microVM, a socket pair in tests). The host opens it to
//! [`AGENT_PORT`], sends one [`HostFrame::Open`] that names the operation, and reads [`GuestFrame`]s until the last one
//! of that operation. Dropping the connection cancels the operation, and so does closing only the host's writing side:
//! keep it open until the last frame; `StdinEof` is what ends a command's stdin. Only `tcp_connect` passes the end of one
//! direction on. Terminals and services are kept by the agent and outlive the connections that speak of them.
//!
//! A command that was opened with `keep`, and whose `Exited` says `kept`, leaves its connection to another `Open`. A host
//! that sent `Stdin` or `Signal` frames must not use it again: they may arrive after the command's end.
//!
//! ```text
//! frame    := length:u32le kind:u8 payload      length counts kind and payload, 1..=MAX_FRAME_BYTES
//! payload  := JSON object (control) | raw bytes (data)
//!
//! hello    host: Open(hello)                     guest: HelloReply
//! exec     host: Open(exec) (Stdin | StdinEof | Signal)*      (kept: the next Open follows)
//!          guest: Started (Stdout | Stderr | StdinCredit)* Exited
//! shutdown host: Open(shutdown)                  guest: GoingDown
//! any      guest: Error ends the operation; before Started it means that nothing was started
//!
//! file_stat      host: Open                                   guest: Entries(one) Done
//! file_list      host: Open                                   guest: Entries* Done(truncated)
//! file_read      host: Open                                   guest: Data* Done(bytes)
//! file_apply     host: Open (Change Data*)* DataEof           guest: Done
//! file_archive   host: Open                                   guest: Data* Done
//! file_extract   host: Open Data* DataEof                     guest: Done(entries, bytes)
//!
//! terminal_open, _resize, _signal, _close  host: Open         guest: Terminal
//! terminal_write host: Open Data* DataEof                     guest: Terminal
//! terminal_list  host: Open                                   guest: Terminal* Done
//! terminal_read  host: Open                                   guest: Data* Terminal Done(start)
//!
//! service_start, _status, _stop, _wait, _annotate  host: Open guest: Service
//! service_list   host: Open                                   guest: Service* Done
//! service_logs   host: Open                                   guest: (Stdout | Stderr)* Done(truncated)
//! service_remove host: Open                                   guest: Done
//! service_probe  host: Open                                   guest: Done(ready)
//!
//! tcp_connect    host: Open raw bytes                         guest: Connected raw bytes
//!
//! ready    the agent connects to READY_PORT of the host and sends one HelloReply
//! ```
//!
//! Compatibility: receivers ignore JSON members and frame kinds they do not know, so both may be added. Anything else
//! needs a new protocol number, which `Open` carries.
//!
//! Deliberately absent: sockets, threads and async. [`FrameDecoder`] takes bytes as they come; encoding appends to a
//! `Vec<u8>`. Decoding never panics and never holds more than one frame and what the caller last pushed.

mod files;
mod frame;
mod message;
mod services;
mod signal;
mod terminals;

pub use files::{
    ContentSum, FileApplyRequest, FileChangeHead, FileEntry, FileKind, FileListRequest, FilePath, FileReadRequest,
};
pub use frame::{
    FrameDecoder, FrameError, GuestFrame, HostFrame, encode_guest_data, encode_host_data, encode_stderr, encode_stdin,
    encode_stdout,
};
pub use message::{
    BootStep, Done, ErrorReply, ExecRequest, Exited, GoingDown, HelloReply, HelloRequest, NoArguments, Op, Open,
    Program, Seed, ShutdownMode, ShutdownRequest, Started, TcpConnectRequest, codes,
};
pub use services::{
    LogStream, Readiness, ServiceAnnotateRequest, ServiceName, ServiceProbeRequest, ServiceReadRequest,
    ServiceStartRequest, ServiceStatus, ServiceStopRequest, ServiceWaitRequest,
};
pub use signal::{signal_name, signal_number};
pub use terminals::{
    TerminalId, TerminalOpenRequest, TerminalReadRequest, TerminalResizeRequest, TerminalSignalRequest, TerminalStatus,
};

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
