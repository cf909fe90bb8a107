//! A handle to one running machine.

use std::sync::Arc;

use tokio::net::UnixStream;

use crate::{
    error::{EngineError, ErrorCode},
    exec::{ExecRequest, ExecSession},
    spec::{BootTimings, MachineInfo},
};

/// A running machine; cheap to clone. Dropping the last handle of an owned machine ends it.
#[derive(Debug, Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    info: MachineInfo,
    timings: BootTimings,
}

impl Machine {
    /// Returns its id: twelve hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.inner.info.id
    }

    /// Returns what was known when this handle was made.
    pub fn info(&self) -> &MachineInfo {
        &self.inner.info
    }

    /// Returns where the time of its boot went.
    pub fn timings(&self) -> BootTimings {
        self.inner.timings
    }

    /// Sends a command to the guest and returns its session; `Started` is the session's first event.
    ///
    /// # Errors
    /// `invalid_argument` for a request that no guest could run, `machine_died` or `expired` when the machine is gone,
    /// `not_started` when it could not be reached.
    pub async fn exec(&self, _request: ExecRequest) -> Result<ExecSession, EngineError> {
        Err(EngineError::new(ErrorCode::Internal, "this build cannot run commands yet"))
    }

    /// Connects to a vsock port of the guest and returns the raw byte stream.
    ///
    /// # Errors
    /// `not_started` when nothing listens there, `machine_died` or `expired` when the machine is gone.
    pub async fn connect(&self, _port: u32) -> Result<UnixStream, EngineError> {
        Err(EngineError::new(ErrorCode::Internal, "this build cannot connect yet"))
    }

    /// Ends the machine now and returns when nothing of it is left.
    ///
    /// # Errors
    /// When the VM process could not be reached although it lives.
    pub async fn end(&self) -> Result<(), EngineError> {
        Err(EngineError::new(ErrorCode::Internal, "this build cannot end machines yet"))
    }
}
