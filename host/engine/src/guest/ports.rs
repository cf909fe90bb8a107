//! Connections to ports of the guest, and the guest's orderly end.

use std::time::Duration;

use pyro_agent_protocol::{
    AGENT_PORT, FrameDecoder, GuestFrame, HostFrame, MAX_FRAME_BYTES, Op, Open, ShutdownMode, ShutdownRequest,
    TcpConnectRequest,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::call::{Call, encode, refused};
use crate::{
    error::{EngineError, ErrorCode},
    machine::Machine,
};

/// How long the guest may take to connect to its own port: long enough for one that is very busy.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long the guest may take to end its processes and write its data.
const SHUT_DOWN_LIMIT: Duration = Duration::from_secs(60);

impl Machine {
    /// Connects to `port` on the guest's 127.0.0.1 and returns the raw bytes of the connection. Each direction can be
    /// shut down alone.
    ///
    /// # Errors
    /// `not_found` when nothing listens there, `limit_exceeded`, `machine_died` and what else a lost connection means.
    pub async fn connect_tcp(&self, port: u16) -> Result<UnixStream, EngineError> {
        let mut stream = self.connect(AGENT_PORT).await?;
        let talk = async {
            stream.write_all(&tcp_request(port)?).await.map_err(|e| lost(&e))?;
            // Not a byte more than the answer is read: what follows belongs to the connection.
            let mut frame = vec![0; 4];
            stream.read_exact(&mut frame).await.map_err(|e| lost(&e))?;
            frame.resize(4 + tcp_answer_length(&frame)?, 0);
            let rest = frame.get_mut(4..).unwrap_or_default();
            stream.read_exact(rest).await.map_err(|e| lost(&e))?;
            tcp_answer(&frame)
        };
        let outcome = tokio::time::timeout(CONNECT_LIMIT, talk).await.unwrap_or_else(|_| {
            let message = format!("the guest did not connect to its port {port} in {} s", CONNECT_LIMIT.as_secs());
            Err(EngineError::new(ErrorCode::Timeout, message).retry_may_help())
        });
        match outcome {
            Ok(()) => Ok(stream),
            Err(error) if error.code() == ErrorCode::Io => Err(self.lost(error).await),
            Err(error) => Err(error),
        }
    }

    /// Asks the guest to end all processes, write its data and power off, and returns when it has written everything. The
    /// machine then ends by itself; [`Self::ended`] tells when.
    ///
    /// # Errors
    /// `timeout` when the guest does not answer; `machine_died` when it is gone already.
    pub async fn shut_down(&self) -> Result<(), EngineError> {
        let request = ShutdownRequest { mode: ShutdownMode::Reboot };
        let mut call = Call::change(self, Op::Shutdown(request)).await?;
        match tokio::time::timeout(SHUT_DOWN_LIMIT, call.next()).await {
            Ok(Ok(GuestFrame::GoingDown(down))) => {
                if !down.clean {
                    tracing::warn!(machine = self.id(), "the guest ended before everything was written");
                }
                Ok(())
            }
            Ok(Ok(other)) => Err(call.unexpected(&other)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(EngineError::new(
                ErrorCode::Timeout,
                format!("the guest did not end by itself within {} s", SHUT_DOWN_LIMIT.as_secs()),
            )),
        }
    }
}

/// Returns the bytes that ask an agent for a connection to `port`.
///
/// # Errors
/// Never for a port; the frame has room.
pub(crate) fn tcp_request(port: u16) -> Result<Vec<u8>, EngineError> {
    let mut bytes = Vec::new();
    encode(&HostFrame::Open(Open::new(Op::TcpConnect(TcpConnectRequest { port }))), &mut bytes)?;
    Ok(bytes)
}

/// Returns how many bytes follow the first four of the agent's answer.
///
/// # Errors
/// `internal` when no answer is that long.
pub(crate) fn tcp_answer_length(header: &[u8]) -> Result<usize, EngineError> {
    let length = header.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    length
        .filter(|length| (1..=MAX_FRAME_BYTES).contains(length))
        .ok_or_else(|| broken("a frame of an impossible length"))
}

/// Reads the agent's answer. After a good one the connection carries raw bytes.
///
/// # Errors
/// What the agent answered.
pub(crate) fn tcp_answer(frame: &[u8]) -> Result<(), EngineError> {
    let mut decoder = FrameDecoder::new();
    decoder.push(frame);
    match decoder.next_guest() {
        Ok(Some(GuestFrame::Connected)) => Ok(()),
        Ok(Some(GuestFrame::Error(reply))) => Err(refused(reply)),
        Ok(_) => Err(broken("an answer that does not fit")),
        Err(e) => Err(broken(&e.to_string())),
    }
}

fn broken(how: &str) -> EngineError {
    EngineError::new(ErrorCode::Internal, format!("the guest agent broke the protocol ({how})"))
}

fn lost(error: &std::io::Error) -> EngineError {
    EngineError::new(ErrorCode::Io, format!("the connection to the guest was lost ({error})")).retry_may_help()
}
