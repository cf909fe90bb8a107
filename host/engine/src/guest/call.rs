//! One operation of the guest agent: its connection, its frames, and what its failures mean.

use std::{io, time::Duration};

use pyro_agent_protocol::{
    AGENT_PORT, Done, ErrorReply, FrameDecoder, GuestFrame, HostFrame, Op, Open, ServiceStatus, TerminalStatus, codes,
    encode_host_data,
};
use tokio::net::UnixStream;

use crate::{
    control::{LineBuffer, MAX_REPLY, Request},
    error::{EngineError, ErrorCode},
    exec::read_reply,
    machine::Machine,
};

/// How long the guest may be silent, or take nothing, beyond what an operation waits for by itself. The largest archive
/// keeps its frames coming; only a guest that is stuck is silent for so long.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// Bytes asked for in one read, and bytes of content put into one write.
pub(super) const TRANSFER_SIZE: usize = 256 * 1024;

/// An operation that was sent. Dropping it closes the connection, which makes the agent give the operation up.
pub(super) struct Call {
    machine: Machine,
    stream: UnixStream,
    /// Collects the VM process's answer, until it has come.
    reply: Option<LineBuffer>,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    silence_limit: Duration,
    /// True once the agent may have done what cannot be undone: a lost connection then leaves the outcome unknown.
    complete: bool,
}

impl Call {
    /// Sends an operation that changes nothing.
    pub(super) async fn look(machine: &Machine, op: Op) -> Result<Self, EngineError> {
        Self::start(machine, op, false).await
    }

    /// Sends an operation that changes something as soon as the agent has it.
    pub(super) async fn change(machine: &Machine, op: Op) -> Result<Self, EngineError> {
        Self::start(machine, op, true).await
    }

    async fn start(machine: &Machine, op: Op, complete: bool) -> Result<Self, EngineError> {
        // The request goes out together with the wish to connect, as for commands.
        let mut bytes = crate::control::line(&Request::Connect { port: AGENT_PORT });
        encode(&HostFrame::Open(Open::new(op)), &mut bytes)?;
        let stream = machine.control().await?;
        let call = Self {
            machine: machine.clone(),
            stream,
            reply: Some(LineBuffer::new(MAX_REPLY)),
            decoder: FrameDecoder::new(),
            buffer: Vec::new(),
            silence_limit: SILENCE_LIMIT,
            complete,
        };
        // A VM process that refuses hangs up while a large request is still being written; its reply is read below.
        let _ = call.write(&bytes).await;
        Ok(call)
    }

    /// Lets the guest be silent for so much longer.
    #[must_use]
    pub(super) fn patient(mut self, wait: Duration) -> Self {
        self.silence_limit = SILENCE_LIMIT.saturating_add(wait);
        self
    }

    /// Sends a frame. Returns false when the guest takes no more; it has said why.
    pub(super) async fn send(&self, frame: &HostFrame) -> Result<bool, EngineError> {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes)?;
        Ok(self.write(&bytes).await.is_ok())
    }

    /// Sends bytes of what the operation takes in. Returns false when the guest takes no more; it has said why.
    pub(super) async fn send_data(&self, bytes: &[u8]) -> bool {
        for part in bytes.chunks(TRANSFER_SIZE) {
            let mut frames = Vec::with_capacity(part.len() + 64);
            encode_host_data(part, &mut frames);
            if self.write(&frames).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Sends the end of what the operation takes in.
    pub(super) async fn send_eof(&mut self) -> Result<(), EngineError> {
        self.complete = true;
        self.send(&HostFrame::DataEof).await.map(drop)
    }

    /// Returns the next frame.
    ///
    /// # Errors
    /// What the guest answered, or what the loss of the connection means.
    pub(super) async fn next(&mut self) -> Result<GuestFrame, EngineError> {
        loop {
            if let Some(mut buffer) = self.reply.take() {
                if let Some(line) = buffer.take()? {
                    read_reply(&line)?;
                    self.decoder.push(&buffer.into_rest());
                    continue;
                }
                self.reply = Some(buffer);
            } else {
                match self.decoder.next_guest() {
                    Ok(Some(GuestFrame::Error(reply))) => return Err(refused(reply)),
                    Ok(Some(GuestFrame::Unknown(_))) => continue,
                    Ok(Some(frame)) => return Ok(frame),
                    Ok(None) => {}
                    Err(e) => return Err(self.broken(&e.to_string())),
                }
            }
            match tokio::time::timeout(self.silence_limit, self.read()).await {
                Ok(Ok(0)) => return Err(self.lost(io::ErrorKind::UnexpectedEof.into()).await),
                Ok(Ok(_)) => match &mut self.reply {
                    Some(line) => line.push(&self.buffer),
                    None => self.decoder.push(&self.buffer),
                },
                Ok(Err(e)) => return Err(self.lost(e).await),
                Err(_) => {
                    let message = format!("the guest agent did not answer for {} s", self.silence_limit.as_secs());
                    return Err(if self.complete {
                        outcome_unknown(&message)
                    } else {
                        EngineError::new(ErrorCode::Timeout, message).retry_may_help()
                    });
                }
            }
        }
    }

    /// Reads the last frame of an operation that answers nothing else.
    pub(super) async fn done(&mut self) -> Result<Done, EngineError> {
        match self.next().await? {
            GuestFrame::Done(done) => Ok(done),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Reads an answer that is one terminal.
    pub(super) async fn terminal(&mut self) -> Result<TerminalStatus, EngineError> {
        match self.next().await? {
            GuestFrame::Terminal(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Reads an answer that is one service.
    pub(super) async fn service(&mut self) -> Result<ServiceStatus, EngineError> {
        match self.next().await? {
            GuestFrame::Service(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Reads an answer that is output, at most `max` bytes, and what has it, which `owner` takes out of its frame. Returns
    /// the place of the first byte, the bytes, and the owner.
    pub(super) async fn output<O>(
        &mut self,
        max: u32,
        owner: impl Fn(GuestFrame) -> Result<O, GuestFrame>,
    ) -> Result<(u64, Vec<u8>, O), EngineError> {
        let (mut data, mut found) = (Vec::new(), None);
        loop {
            match self.next().await? {
                GuestFrame::Data(bytes) => {
                    data.extend_from_slice(&bytes);
                    if data.len() as u64 > u64::from(max) {
                        return Err(self.broken("more bytes than asked for"));
                    }
                }
                GuestFrame::Done(done) => {
                    let owner = found.ok_or_else(|| self.broken("output of nobody"))?;
                    return Ok((done.start, data, owner));
                }
                other => found = Some(owner(other).map_err(|other| self.unexpected(&other))?),
            }
        }
    }

    /// Returns the error for a frame that has no place here.
    pub(super) fn unexpected(&self, frame: &GuestFrame) -> EngineError {
        let mut shown = format!("{frame:?}");
        shown.truncate(shown.floor_char_boundary(40));
        self.broken(&format!("an answer that does not fit: {shown}"))
    }

    /// Returns the error for a guest agent that does not keep to the protocol.
    pub(super) fn broken(&self, how: &str) -> EngineError {
        let message = format!("the guest agent broke the protocol ({how})");
        if self.complete { outcome_unknown(&message) } else { EngineError::new(ErrorCode::Internal, message) }
    }

    async fn lost(&self, error: io::Error) -> EngineError {
        if self.reply.is_some() {
            let message = format!("the guest could not be reached: {error}");
            return self.machine.lost(EngineError::new(ErrorCode::NotStarted, message).retry_may_help()).await;
        }
        let message = format!("the connection to the guest was lost ({error})");
        if !self.complete {
            return self.machine.lost(EngineError::new(ErrorCode::Io, message).retry_may_help()).await;
        }
        let unknown = outcome_unknown(&message);
        let died = self.machine.lost(unknown.clone()).await;
        if died.code() == unknown.code() {
            unknown
        } else {
            died.while_doing("the outcome of the operation is unknown")
        }
    }

    /// Writes everything, unless the guest takes nothing for long.
    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::timeout(self.silence_limit, self.stream.writable())
                        .await
                        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    async fn read(&mut self) -> io::Result<usize> {
        loop {
            self.buffer.clear();
            self.buffer.reserve(TRANSFER_SIZE);
            match self.stream.try_read_buf(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.stream.readable().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// Appends a frame to `out`.
pub(super) fn encode(frame: &HostFrame, out: &mut Vec<u8>) -> Result<(), EngineError> {
    frame.encode(out).map_err(|e| {
        EngineError::new(ErrorCode::InvalidArgument, format!("the arguments do not fit into a request: {e}"))
    })
}

/// Returns the error for what the agent answered.
pub(super) fn refused(reply: ErrorReply) -> EngineError {
    let (code, hint) = match reply.code.as_str() {
        codes::INVALID_ARGUMENT => (ErrorCode::InvalidArgument, None),
        codes::INVALID_CWD => (ErrorCode::InvalidArgument, Some("pass a directory that exists in the guest")),
        codes::NOT_FOUND => (ErrorCode::NotFound, None),
        codes::ALREADY_EXISTS => (ErrorCode::AlreadyExists, None),
        codes::CONFLICT => (ErrorCode::Conflict, Some("nothing was changed; read it again")),
        codes::INVALID_STATE => (ErrorCode::InvalidState, None),
        codes::DENIED => (ErrorCode::Denied, None),
        codes::DISK_FULL => (ErrorCode::DiskFull, Some("remove something in the guest")),
        codes::IO => (ErrorCode::Io, None),
        codes::LIMIT_EXCEEDED => (ErrorCode::LimitExceeded, Some("end or close what is no longer needed")),
        codes::PERMISSION_DENIED | codes::NOT_EXECUTABLE => (ErrorCode::NotStarted, None),
        codes::UNSUPPORTED | codes::UNSUPPORTED_PROTOCOL => {
            (ErrorCode::NotStarted, Some("the machine runs the agent of another pyro: start it anew"))
        }
        _ => (ErrorCode::Internal, None),
    };
    let mut error = EngineError::new(code, reply.message).with_guest_code(reply.code);
    if let Some(hint) = hint {
        error = error.with_hint(hint);
    }
    if matches!(code, ErrorCode::LimitExceeded | ErrorCode::Conflict) { error.retry_may_help() } else { error }
}

fn outcome_unknown(message: &str) -> EngineError {
    EngineError::new(ErrorCode::OutcomeUnknown, format!("{message}; the outcome of the operation is unknown"))
        .with_hint("look at what it was to change before doing it again")
}

/// Returns Unix seconds.
pub(super) fn seconds(unix_ms: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are exact for 285,000 years")]
    let ms = unix_ms as f64;
    ms / 1000.0
}

/// Returns whole milliseconds, rounded up, as many as fit.
pub(super) fn milliseconds(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}
