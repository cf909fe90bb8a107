//! What the guest agent does besides running commands: files, terminals, services and connections to guest ports.
//!
//! One operation is one connection. The request is sent once. Dropping an operation's future closes its connection, and
//! the agent then gives the operation up; a change that was not complete by then is not made.

mod call;
mod files;
pub(crate) mod ports;
mod services;
mod terminals;

pub use files::{Content, ContentSum, FileChange, FileEntry, FileKind};
pub use services::{LogStream, Readiness, ServiceConfig, ServiceInfo, ServiceLogs, ServiceOutput};
pub use terminals::{TerminalInfo, TerminalOutput, TerminalRequest, TerminalState};
