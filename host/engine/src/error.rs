//! The one error type of the engine's public interface.
//!
//! An error states the fact, carries a stable code and, where one exists, the next step as a hint. Surfaces map codes
//! to exit codes and tool errors; they never parse messages. `docs/errors.md` lists the codes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure an [`EngineError`] is. The snake_case name is part of the public contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// An argument is outside what is allowed; nothing was started.
    InvalidArgument,
    /// No machine (or file, or process) with that name.
    NotFound,
    /// Something of that name is there already.
    AlreadyExists,
    /// What it is about is not in a state that allows it.
    InvalidState,
    /// What it is about was changed by another since it was looked at.
    Conflict,
    /// No environment with that name.
    UnknownEnvironment,
    /// An environment could not be built.
    EnvironmentBuildFailed,
    /// A file system that the operation writes to is full.
    DiskFull,
    /// A limit of this host or profile is reached; ending something makes room.
    LimitExceeded,
    /// The engine that was asked for cannot run on this host.
    EngineUnavailable,
    /// The machine ended before its agent answered.
    BootFailed,
    /// The agent did not answer within the boot limit.
    BootTimeout,
    /// The guest's kernel or agent gave up.
    GuestPanic,
    /// The machine ended while it was in use.
    MachineDied,
    /// The machine reached the end of its time to live.
    Expired,
    /// A host-side deadline passed.
    Timeout,
    /// A request was sent and its result cannot be known. It is never repeated.
    OutcomeUnknown,
    /// The guest refused the request before anything ran.
    NotStarted,
    /// A grant or scope does not allow it.
    Denied,
    /// The caller cancelled it.
    Cancelled,
    /// The host's operating system refused something.
    Io,
    /// A fault of this program.
    Internal,
}

impl ErrorCode {
    /// Returns the snake_case name, as in `docs/errors.md`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::InvalidState => "invalid_state",
            Self::Conflict => "conflict",
            Self::UnknownEnvironment => "unknown_environment",
            Self::EnvironmentBuildFailed => "environment_build_failed",
            Self::DiskFull => "disk_full",
            Self::LimitExceeded => "limit_exceeded",
            Self::EngineUnavailable => "engine_unavailable",
            Self::BootFailed => "boot_failed",
            Self::BootTimeout => "boot_timeout",
            Self::GuestPanic => "guest_panic",
            Self::MachineDied => "machine_died",
            Self::Expired => "expired",
            Self::Timeout => "timeout",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::NotStarted => "not_started",
            Self::Denied => "denied",
            Self::Cancelled => "cancelled",
            Self::Io => "io",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure of an engine operation. It crosses the control socket as it is, hence the serde derives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    code: ErrorCode,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(default)]
    retryable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    console_tail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guest_code: Option<String>,
}

impl EngineError {
    /// Makes an error from a code and a fact: lower case, no full stop, with the value it is about.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, retryable: false, console_tail: None, guest_code: None }
    }

    /// Makes an error from a failed system call. A full disk gets its own code.
    pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Self::new(ErrorCode::DiskFull, format!("no space left: {doing}"))
                    .with_hint("free some space (`pyro env prune`), or point PYRO_HOME at a larger disk")
                    .retry_may_help()
            }
            _ => Self::new(ErrorCode::Io, format!("{doing}: {error}")),
        }
    }

    /// Adds the next step for the reader.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Marks the failure as one where the same request may succeed later, and where repeating it is safe.
    #[must_use]
    pub fn retry_may_help(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// Adds the last lines of the guest's console.
    #[must_use]
    pub fn with_console_tail(mut self, tail: impl Into<String>) -> Self {
        let tail = tail.into();
        self.console_tail = if tail.trim().is_empty() { None } else { Some(tail) };
        self
    }

    /// Adds the guest agent's own code.
    #[must_use]
    pub(crate) fn with_guest_code(mut self, code: impl Into<String>) -> Self {
        self.guest_code = Some(code.into());
        self
    }

    /// Puts what was being done in front of the fact.
    #[must_use]
    pub(crate) fn while_doing(mut self, doing: &str) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Returns the kind of failure.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// Returns the fact, without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the next step, when one is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns whether repeating the same request is safe and may succeed.
    pub fn retryable(&self) -> bool {
        self.retryable
    }

    /// Returns the guest agent's own code (`pyro_agent_protocol::codes`), when the guest refused a request: it tells a
    /// program that was not found from one that may not be executed.
    pub fn guest_code(&self) -> Option<&str> {
        self.guest_code.as_deref()
    }

    /// Returns the last lines of the guest's console, for failures of the guest.
    pub fn console_tail(&self) -> Option<&str> {
        self.console_tail.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_name_of_a_code_is_its_public_name() {
        for code in [
            ErrorCode::InvalidArgument,
            ErrorCode::NotFound,
            ErrorCode::AlreadyExists,
            ErrorCode::Conflict,
            ErrorCode::InvalidState,
            ErrorCode::UnknownEnvironment,
            ErrorCode::EnvironmentBuildFailed,
            ErrorCode::DiskFull,
            ErrorCode::LimitExceeded,
            ErrorCode::EngineUnavailable,
            ErrorCode::BootFailed,
            ErrorCode::BootTimeout,
            ErrorCode::GuestPanic,
            ErrorCode::MachineDied,
            ErrorCode::Expired,
            ErrorCode::Timeout,
            ErrorCode::OutcomeUnknown,
            ErrorCode::NotStarted,
            ErrorCode::Denied,
            ErrorCode::Cancelled,
            ErrorCode::Io,
            ErrorCode::Internal,
        ] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn a_full_disk_is_not_just_an_io_error() {
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(EngineError::io("write disk", &full).code(), ErrorCode::DiskFull);
        let other = std::io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(EngineError::io("write disk", &other).code(), ErrorCode::Io);
    }

    #[test]
    fn an_error_survives_the_control_socket() {
        let error = EngineError::new(ErrorCode::GuestPanic, "guest panicked")
            .with_hint("look at the console")
            .with_console_tail("Kernel panic");
        let line = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<EngineError>(&line).unwrap(), error);
    }
}
