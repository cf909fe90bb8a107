//! The first conversation with the guest: the agent says that it is ready, the host gives it time and randomness.
//!
//! The agent connects to the host when it listens, so nobody asks again and again. A machine counts as ready only when
//! the agent confirmed that the kernel's random generator was fed: two machines of one image must not share keys.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::mpsc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pyro_agent_protocol::{
    AGENT_PORT, FrameDecoder, GuestFrame, HelloReply, HelloRequest, HostFrame, Op, Open, PROTOCOL, READY_PORT, Seed,
};
use pyro_vmm::vsock::VsockHandle;
use rustix::{event::EventfdFlags, rand::GetRandomFlags};

use crate::error::{EngineError, ErrorCode};

/// Bytes of randomness for the guest: twice the size of the kernel generator's key.
const SEED_BYTES: usize = 64;
/// How long each step may take once the agent is there. Generous: the boot limit is the real one.
const STEP: Duration = Duration::from_secs(30);

/// The conversation, on a thread of its own because it waits.
pub(crate) struct Handshake {
    result: mpsc::Receiver<Result<Ready, EngineError>>,
    wake: std::os::fd::OwnedFd,
}

/// The agent answered.
#[derive(Debug)]
pub(crate) struct Ready {
    /// When its first word arrived.
    pub heard_at: Instant,
    /// What it said.
    pub hello: HelloReply,
}

impl Handshake {
    /// Listens for the agent.
    ///
    /// # Errors
    /// `io` when the thread cannot be made.
    pub(crate) fn start(vsock: VsockHandle) -> Result<Self, EngineError> {
        let failed = |e: &std::io::Error| EngineError::io("wait for the agent", e);
        let wake =
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| failed(&e.into()))?;
        let signal = wake.try_clone().map_err(|e| failed(&e))?;
        let (agent, arrived) = mpsc::sync_channel(1);
        vsock.listen(READY_PORT, move |stream| {
            // One agent, one connection; whatever else knocks is turned away.
            let _ = agent.try_send((Instant::now(), stream));
        });
        let (tell, result) = mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("handshake".to_owned())
            .spawn(move || {
                // The sender goes with the device, and then the machine has ended.
                let Ok((heard_at, stream)) = arrived.recv() else {
                    return;
                };
                let _ = tell.send(converse(&vsock, heard_at, stream));
                let _ = rustix::io::write(&signal, &1_u64.to_ne_bytes());
            })
            .map_err(|e| failed(&e))?;
        Ok(Self { result, wake })
    }

    /// Returns the descriptor that becomes readable when there is a result.
    pub(crate) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.wake)
    }

    /// Returns the result when there is one.
    pub(crate) fn take(&self) -> Option<Result<Ready, EngineError>> {
        self.result.try_recv().ok()
    }
}

fn converse(vsock: &VsockHandle, heard_at: Instant, mut first: UnixStream) -> Result<Ready, EngineError> {
    let said = read_hello(&mut first)?;
    drop(first);
    vsock.unlisten(READY_PORT);
    if !(said.protocol_min..=said.protocol_max).contains(&PROTOCOL) {
        return Err(failed(format!(
            "the agent speaks protocols {} to {}, this program speaks {PROTOCOL}",
            said.protocol_min, said.protocol_max
        ))
        .with_hint("build the environment again: `pyro env prune`, then `pyro env pull`"));
    }
    let mut stream = vsock.connect_wait(AGENT_PORT).map_err(|e| failed(format!("the agent does not listen: {e}")))?;
    let mut seed = vec![0; SEED_BYTES];
    let count = rustix::rand::getrandom(seed.as_mut_slice(), GetRandomFlags::empty())
        .map_err(|e| EngineError::io("read randomness", &e.into()))?;
    seed.truncate(count);
    let unix_ns = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|d| u64::try_from(d.as_nanos()).ok());
    let open = HostFrame::Open(Open::new(Op::Hello(HelloRequest { unix_ns, seed: Some(Seed(seed)) })));
    let mut bytes = Vec::new();
    open.encode(&mut bytes).map_err(|e| failed(format!("greeting the agent: {e}")))?;
    stream.write_all(&bytes).map_err(|e| failed(format!("greeting the agent: {e}")))?;
    let hello = read_hello(&mut stream)?;
    if !hello.seeded {
        return Err(failed("the agent did not feed the guest's random generator".to_owned()));
    }
    Ok(Ready { heard_at, hello: HelloReply { boot_ms: said.boot_ms, boot_steps: said.boot_steps, ..hello } })
}

fn read_hello(stream: &mut UnixStream) -> Result<HelloReply, EngineError> {
    stream.set_read_timeout(Some(STEP)).map_err(|e| EngineError::io("wait for the agent", &e))?;
    let mut decoder = FrameDecoder::new();
    let mut bytes = [0; 16 * 1024];
    loop {
        match decoder.next_guest() {
            Ok(Some(GuestFrame::HelloReply(hello))) => return Ok(*hello),
            Ok(Some(GuestFrame::Error(error))) => {
                return Err(failed(format!("the agent refused: {}", error.message)));
            }
            Ok(Some(_)) => continue,
            Ok(None) => {}
            Err(e) => return Err(failed(format!("the agent broke the protocol: {e}"))),
        }
        let count = match stream.read(&mut bytes) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other.map_err(|e| failed(format!("the agent said nothing: {e}")))?,
        };
        if count == 0 {
            return Err(failed("the agent hung up without a word".to_owned()));
        }
        decoder.push(bytes.get(..count).unwrap_or_default());
    }
}

fn failed(what: String) -> EngineError {
    EngineError::new(ErrorCode::BootFailed, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> Result<HelloReply, EngineError> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        read_hello(&mut ours)
    }

    #[test]
    fn only_a_hello_is_a_hello() {
        let mut good = Vec::new();
        let hello = HelloReply { kernel: "6.1.0".to_owned(), ..Default::default() };
        GuestFrame::Unknown(0xf0).encode(&mut good).unwrap();
        GuestFrame::HelloReply(Box::new(hello.clone())).encode(&mut good).unwrap();
        assert_eq!(said(&good).unwrap(), hello);
        for bad in [b"".as_slice(), b"\xff\xff\xff\xff", b"\0\0\0\0", &good[..good.len() - 1], b"GET / HTTP/1.1\r\n"] {
            assert_eq!(said(bad).unwrap_err().code(), ErrorCode::BootFailed);
        }
    }
}
