//! A handle to one running machine.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::net::{RecvFlags, Shutdown};
use tokio::{net::UnixStream, sync::watch};

use crate::{
    control::{Event, LineBuffer, MAX_REPLY, OkBody, Request},
    error::{EngineError, ErrorCode},
    exec::{ExecRequest, ExecSession, read_reply},
    run_dir,
    spec::{BootTimings, MachineInfo, PublishedPort},
};

/// How long the reason of a lost connection is waited for. The VM process tells it as soon as the engine's process is
/// reaped; a VM process that is itself gone is seen at once.
const REASON_WAIT: Duration = Duration::from_secs(2);
/// How often, and with which pause, a dead VM process's directory is looked at: its lock goes with the process, a
/// moment after its sockets.
const LEFTOVER_TRIES: (u32, Duration) = (50, Duration::from_millis(4));
/// How long a VM process may take to end, after it was asked to.
const END_WAIT: Duration = Duration::from_secs(10);

/// Connections to the agent that are kept for the next commands.
const MAX_KEPT: usize = 4;

/// A running machine; cheap to clone. Dropping the last handle of an owned machine ends it.
#[derive(Debug, Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: String,
    info: Arc<Mutex<MachineInfo>>,
    timings: BootTimings,
    dir: PathBuf,
    events: Arc<UnixStream>,
    ended: watch::Receiver<Option<EngineError>>,
    /// True once nobody wants to know of the machine any more.
    let_go: Arc<AtomicBool>,
    /// Connections over which the agent awaits a command.
    kept: Mutex<Vec<Arc<UnixStream>>>,
}

impl Machine {
    /// Makes a handle over a socket that gets events. The VM process sees that socket close with the last handle.
    pub(crate) fn new(
        info: MachineInfo,
        timings: BootTimings,
        dir: PathBuf,
        events: Arc<UnixStream>,
        buffer: LineBuffer,
    ) -> Self {
        let (tell, ended) = watch::channel(None);
        let id = info.id.clone();
        let info = Arc::new(Mutex::new(info));
        let known = Arc::clone(&info);
        let gone = id.clone();
        let stream = Arc::clone(&events);
        let left = dir.clone();
        let let_go = Arc::new(AtomicBool::new(false));
        let was_let_go = Arc::clone(&let_go);
        // Ends when the socket does, and that happens at the latest when the last handle is dropped.
        tokio::spawn(async move {
            let error = match last_words(&stream, buffer, &known).await {
                Some(error) => error,
                None if was_let_go.load(Ordering::Acquire) => return,
                None => {
                    // It could not tidy up. Those who hear of its end find nothing of it any more.
                    let _ = tokio::task::spawn_blocking(move || remove_leftover(&left)).await;
                    EngineError::new(ErrorCode::MachineDied, format!("the VM process of machine {gone} is gone"))
                }
            };
            let _ = tell.send(Some(error));
        });
        let kept = Mutex::default();
        Self { inner: Arc::new(Inner { id, info, timings, dir, events, ended, let_go, kept }) }
    }

    /// Returns its id: twelve hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Returns what is known about it.
    pub fn info(&self) -> MachineInfo {
        self.inner.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecSession, EngineError> {
        ExecSession::start(self.clone(), &request).await
    }

    /// Connects to a vsock port of the guest and returns the raw byte stream.
    ///
    /// # Errors
    /// `not_started` when nothing listens there, `machine_died` or `expired` when the machine is gone.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, EngineError> {
        let stream = self.control().await?;
        match ask(&stream, &Request::Connect { port }).await {
            Ok(reply) => reply.map(|_| stream),
            Err(e) => {
                let error = EngineError::new(ErrorCode::NotStarted, format!("the guest could not be reached: {e}"));
                Err(self.lost(error.retry_may_help()).await)
            }
        }
    }

    /// Stops the machine's vCPUs.
    ///
    /// # Errors
    /// `machine_died` or `expired` when the machine is gone, `engine_unavailable` when its engine cannot.
    pub async fn pause(&self) -> Result<(), EngineError> {
        self.request(&Request::Pause).await.map(drop)
    }

    /// Lets the machine's vCPUs run again.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub async fn resume(&self) -> Result<(), EngineError> {
        self.request(&Request::Resume).await.map(drop)
    }

    /// Moves the end of the machine's time to `expires_at`, in Unix seconds. A time that is past ends it.
    ///
    /// # Errors
    /// `machine_died` or `expired` when the machine is gone.
    pub async fn set_expiry(&self, expires_at: f64) -> Result<(), EngineError> {
        self.request(&Request::Extend { expires_at }).await.map(drop)
    }

    /// Makes the VM process listen on 127.0.0.1 and pass connections on to `guest_port` of the guest's loopback. Without
    /// `host_port` the kernel picks one. `owner` is kept with it. It ends with the machine, or with
    /// [`Self::unpublish`].
    ///
    /// # Errors
    /// `invalid_argument`, `already_exists` when the host's port is taken, `denied` for a privileged port,
    /// `limit_exceeded`, `machine_died` or `expired` when the machine is gone.
    pub async fn publish(
        &self,
        guest_port: u16,
        host_port: Option<u16>,
        owner: Option<String>,
    ) -> Result<PublishedPort, EngineError> {
        let body = self.request(&Request::Publish { guest_port, host_port, owner }).await?;
        body.ports
            .into_iter()
            .next()
            .ok_or_else(|| EngineError::new(ErrorCode::Internal, "the VM process did not say which port it published"))
    }

    /// Stops listening on a published port of the host and cuts its connections.
    ///
    /// # Errors
    /// `not_found`, and `machine_died` or `expired` when the machine is gone.
    pub async fn unpublish(&self, host_port: u16) -> Result<(), EngineError> {
        self.request(&Request::Unpublish { host_port }).await.map(drop)
    }

    /// Returns the published ports, the oldest first.
    ///
    /// # Errors
    /// `machine_died` or `expired` when the machine is gone.
    pub async fn published(&self) -> Result<Vec<PublishedPort>, EngineError> {
        Ok(self.request(&Request::Published).await?.ports)
    }

    /// Returns what is known about the machine now.
    ///
    /// # Errors
    /// `machine_died` or `expired` when the machine is gone.
    pub async fn status(&self) -> Result<MachineInfo, EngineError> {
        let body = self.request(&Request::Status).await?;
        body.machine.ok_or_else(|| EngineError::new(ErrorCode::Internal, "the VM process did not describe its machine"))
    }

    /// Ends the machine now and returns when nothing of it is left. A machine that has ended already is no error.
    ///
    /// # Errors
    /// `timeout` when the VM process does not end.
    pub async fn end(&self) -> Result<(), EngineError> {
        let mut ended = self.inner.ended.clone();
        let kill = async {
            if ended.borrow().is_some() {
                return;
            }
            if let Ok(stream) = connect(&self.inner.dir).await
                && let Ok(Ok(_)) = ask(&stream, &Request::Kill).await
            {
                return;
            }
            // The machine ended by itself, or is about to.
            let _ = ended.wait_for(Option::is_some).await;
        };
        tokio::time::timeout(END_WAIT, kill).await.map_err(|_| {
            EngineError::new(
                ErrorCode::Timeout,
                format!("machine {} did not end within {} s", self.id(), END_WAIT.as_secs()),
            )
        })
    }

    /// Returns when the machine has ended, with the reason as those who used it see it.
    pub async fn ended(&self) -> EngineError {
        let mut ended = self.inner.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_else(|| self.gone()),
            Err(_) => self.gone(),
        }
    }

    /// Whether it runs, as far as this handle was told. A handle of a runtime that is gone is told nothing.
    pub(crate) fn is_watched(&self) -> bool {
        self.inner.ended.has_changed().is_ok() && self.inner.ended.borrow().is_none()
    }

    /// Returns a connection over which the agent awaits a command.
    pub(crate) fn take_kept(&self) -> Option<Arc<UnixStream>> {
        let mut kept = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(stream) = kept.pop() {
            // The agent says nothing before it is asked: what there is to read is the end.
            let silent = rustix::net::recv(&stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
            if matches!(silent, Err(rustix::io::Errno::AGAIN)) {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps a connection for the next command.
    pub(crate) fn keep(&self, stream: Arc<UnixStream>) {
        let mut kept = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MAX_KEPT {
            kept.push(stream);
        }
    }

    /// Connects to the VM process.
    pub(crate) async fn control(&self) -> Result<UnixStream, EngineError> {
        match connect(&self.inner.dir).await {
            Ok(stream) => Ok(stream),
            Err(e) => {
                let error = EngineError::io(format_args!("reach the VM process of machine {}", self.id()), &e);
                Err(self.lost(error).await)
            }
        }
    }

    /// Returns why the machine is gone, or `otherwise` when it is not.
    pub(crate) async fn lost(&self, otherwise: EngineError) -> EngineError {
        tokio::time::timeout(REASON_WAIT, self.ended()).await.unwrap_or(otherwise)
    }

    async fn request(&self, request: &Request) -> Result<OkBody, EngineError> {
        let stream = self.control().await?;
        match ask(&stream, request).await {
            Ok(reply) => reply,
            Err(e) => {
                let error = EngineError::io(format_args!("ask the VM process of machine {}", self.id()), &e);
                Err(self.lost(error).await)
            }
        }
    }

    fn gone(&self) -> EngineError {
        EngineError::new(ErrorCode::MachineDied, format!("machine {} is gone", self.id()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.let_go.store(true, Ordering::Release);
        // The task that reads events holds the socket too, so it is shut down rather than dropped.
        let _ = rustix::net::shutdown(&self.events, Shutdown::Both);
    }
}

/// Connects to the control socket in a run directory.
pub(crate) async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let path = dir.join("control.sock");
    // The name of a socket may have 107 bytes; a longer one is reached through its directory.
    if path.as_os_str().len() < 100 {
        return UnixStream::connect(path).await;
    }
    let dir = std::fs::File::open(dir)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
    UnixStream::connect(format!("/proc/self/fd/{fd}/control.sock")).await
}

/// Sends one request and reads one reply, taking not a byte more from the socket.
pub(crate) async fn ask(stream: &UnixStream, request: &Request) -> io::Result<Result<OkBody, EngineError>> {
    let line = crate::control::line(request);
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    let mut buffer = LineBuffer::new(MAX_REPLY);
    loop {
        let bytes = read_through_newline(stream).await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.push(&bytes);
        match buffer.take() {
            Ok(Some(line)) => return Ok(read_reply(&line)),
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Reads up to the first newline and leaves what follows in the socket, because it belongs to the guest's stream.
async fn read_through_newline(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    loop {
        stream.readable().await?;
        let peeked = stream.try_io(tokio::io::Interest::READABLE, || {
            let count = rustix::net::recv(stream.as_fd(), bytes.as_mut_slice(), RecvFlags::PEEK)?.1;
            let seen = bytes.get(..count).unwrap_or_default();
            let take = seen.iter().position(|&b| b == b'\n').map_or(count, |at| at + 1);
            let wanted = bytes.get_mut(..take).unwrap_or_default();
            if wanted.is_empty() {
                return Ok(0);
            }
            Ok(rustix::net::recv(stream.as_fd(), wanted, RecvFlags::empty())?.1)
        });
        match peeked {
            Ok(count) => {
                bytes.truncate(count);
                return Ok(bytes);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// Reads the next event; `None` is the end of the socket, or bytes that are not events.
pub(crate) async fn next_event(stream: &UnixStream, buffer: &mut LineBuffer) -> Option<Event> {
    let mut bytes = Vec::with_capacity(4096);
    loop {
        match buffer.take() {
            Ok(Some(line)) => match serde_json::from_slice(&line) {
                Ok(event) => return Some(event),
                // A later version may know more events.
                Err(_) => continue,
            },
            Ok(None) => {}
            Err(_) => return None,
        }
        bytes.clear();
        stream.readable().await.ok()?;
        match stream.try_read_buf(&mut bytes) {
            Ok(0) => return None,
            Ok(_) => buffer.push(&bytes),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

/// Returns why the machine ended, and notes until then what changes.
async fn last_words(stream: &UnixStream, mut buffer: LineBuffer, known: &Mutex<MachineInfo>) -> Option<EngineError> {
    loop {
        match next_event(stream, &mut buffer).await? {
            Event::Ended { error } => return Some(error),
            Event::Changed { machine } => *known.lock().unwrap_or_else(PoisonError::into_inner) = machine,
            Event::Ready { .. } => {}
        }
    }
}

/// Removes the run directory of a VM process that was killed.
fn remove_leftover(dir: &Path) {
    let Some(run) = dir.parent() else { return };
    for _ in 0..LEFTOVER_TRIES.0 {
        if !dir.exists() {
            return;
        }
        if let Err(error) = run_dir::sweep(run) {
            tracing::debug!(%error, "a leftover is not removed");
            return;
        }
        std::thread::sleep(LEFTOVER_TRIES.1);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::spec::{ExecutionMode, Lifetime, MachineState};

    impl Machine {
        /// Returns how many connections are kept.
        pub(crate) fn kept_count(&self) -> usize {
            self.inner.kept.lock().unwrap().len()
        }
    }

    fn info() -> MachineInfo {
        MachineInfo {
            id: "0123456789ab".to_owned(),
            environment: "debian:12".to_owned(),
            environment_version: "1".to_owned(),
            vcpu_count: 1,
            mem_mib: 256,
            ttl_seconds: 60,
            created_at: 0.0,
            expires_at: 60.0,
            state: MachineState::Running,
            lifetime: Lifetime::Owned,
            execution_mode: ExecutionMode::MicrovmQemuTcg,
        }
    }

    /// Returns a handle to a machine whose run directory is `dir`.
    pub(crate) fn handle(dir: &Path, events: UnixStream) -> Machine {
        let buffer = LineBuffer::new(MAX_REPLY);
        Machine::new(info(), BootTimings::default(), dir.to_owned(), Arc::new(events), buffer)
    }

    #[tokio::test]
    async fn a_handle_is_told_of_changes_until_the_end() {
        let (events, mut peer) = UnixStream::pair().unwrap();
        let machine = handle(Path::new("/nowhere"), events);
        assert!(machine.is_watched());
        let changed = Event::Changed { machine: MachineInfo { expires_at: 90.0, ..info() } };
        peer.write_all(&crate::control::line(&changed)).await.unwrap();
        while machine.info().expires_at != 90.0 {
            tokio::task::yield_now().await;
        }
        let error = EngineError::new(ErrorCode::Expired, "its time is over");
        peer.write_all(&crate::control::line(&Event::Ended { error })).await.unwrap();
        assert_eq!(machine.ended().await.code(), ErrorCode::Expired);
        assert!(!machine.is_watched());
    }

    #[test]
    fn a_handle_of_a_runtime_that_is_gone_is_not_watched() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (machine, _peer) = runtime.block_on(async {
            let (events, peer) = UnixStream::pair().unwrap();
            (handle(Path::new("/nowhere"), events), peer)
        });
        assert!(machine.is_watched());
        drop(runtime);
        assert!(!machine.is_watched());
    }

    #[tokio::test]
    async fn what_follows_a_reply_stays_in_the_socket() {
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(b"{\"ok\":{}}\nSSH-2.0-guest").await.unwrap();
        ask(&client, &Request::Connect { port: 22 }).await.unwrap().unwrap();
        let mut client = client;
        let mut bytes = [0; 13];
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"SSH-2.0-guest");
    }

    #[test]
    fn a_handle_that_is_let_go_looks_for_no_leftovers() {
        let run = tempfile::tempdir().unwrap();
        let (dir, leftover) = (run.path().join("0123456789ab"), run.path().join("ba9876543210"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::create_dir(&leftover).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (events, mut peer) = UnixStream::pair().unwrap();
            drop(handle(&dir, events));
            assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        });
        // Waits for what runs on other threads.
        drop(runtime);
        assert!(leftover.exists());
    }

    #[tokio::test]
    async fn a_reply_that_never_ends_is_refused() {
        let (client, mut server) = UnixStream::pair().unwrap();
        let writer = tokio::spawn(async move {
            let _ = server.write_all(&vec![b'x'; MAX_REPLY * 2]).await;
            server
        });
        assert!(ask(&client, &Request::Status).await.unwrap().is_err());
        drop(client);
        writer.await.unwrap();
    }
}
