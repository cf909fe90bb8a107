//! Connections to ports of the guest, and the guest's orderly end.

use tokio::net::UnixStream;

use super::unsupported;
use crate::{error::EngineError, machine::Machine};

impl Machine {
    /// Connects to `port` on the guest's 127.0.0.1 and returns the raw bytes of the connection. Each direction can be
    /// shut down alone.
    ///
    /// # Errors
    /// `not_found` when nothing listens there, `limit_exceeded`, `machine_died` and what else a lost connection means.
    pub async fn connect_tcp(&self, port: u16) -> Result<UnixStream, EngineError> {
        let _ = port;
        Err(unsupported())
    }

    /// Asks the guest to end all processes, write its data and power off, and returns when it has written everything. The
    /// machine then ends by itself; [`Self::ended`] tells when.
    ///
    /// # Errors
    /// `timeout` when the guest does not answer; `machine_died` when it is gone already.
    pub async fn shut_down(&self) -> Result<(), EngineError> {
        Err(unsupported())
    }
}
