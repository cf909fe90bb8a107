//! The virtio socket device as a vhost-user backend: how QEMU gets it.
//!
//! QEMU connects to our Unix socket (`-device vhost-user-vsock-device`), shares the guest's memory
//! and passes two event descriptors per queue; from then on the guest talks to the device without
//! QEMU's help. QEMU itself keeps the event queue, so only queues 0 and 1 are served.
//!
//! ```text
//!   thread "vsock"         accepts QEMU, answers the vhost-user messages, ends with the connection
//!   thread "vring_worker"  runs the device: kicks of the two queues and the muxer's poller
//! ```
//!
//! QEMU needs the guest's memory in a shared memfd (`memory-backend-memfd,share=on` as the machine's
//! `memory-backend`) and, for a modern device, `-global virtio-mmio.force-legacy=false`. Its software
//! CPU executes `rep movsb` byte by byte: `-cpu max,-erms,-fsrm` makes Linux copy by words, which
//! doubles to triples the throughput of this device, and of everything else that copies.
//!
//! Deliberately absent: serving a second QEMU after the first. One backend, one guest's life.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringMutex, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::vsock::{VsockConfig, VsockDevice, VsockError, VsockHandle, VsockNotify, VsockQueues, VsockRingError};

/// Queues that QEMU hands to the backend: rx and tx.
const QUEUES: usize = 2;
/// Largest queue QEMU's virtio-mmio lets a driver have, whatever its device asks for.
const MAX_QUEUE_SIZE: usize = 1024;
const RX: u16 = 0;
const TX: u16 = 1;
/// The number just behind the queues belongs to the event loop.
const HOST_EVENTS: u16 = QUEUES as u16 + 1;

/// How soon to look again for the way to notify the guest.
const NOTIFY_RETRY: Duration = Duration::from_millis(1);

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Vring = VringMutex<Memory>;
type Daemon = VhostUserDaemon<Arc<Backend>>;

/// A vsock device that serves one QEMU. Dropping it ends the device and its threads.
pub struct VhostUserVsock {
    handle: VsockHandle,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<Result<(), VhostUserError>>>,
}

/// Why the backend could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// The device could not be made.
    #[error(transparent)]
    Device(#[from] VsockError),
    /// The host refused a descriptor or a thread.
    #[error("cannot start the vhost-user backend: {0}")]
    Start(#[source] io::Error),
    /// The vhost-user library could not set up its event loop.
    #[error("cannot start the vhost-user backend: {0}")]
    Daemon(String),
    /// QEMU's messages made no sense.
    #[error("vhost-user connection failed: {0}")]
    Protocol(String),
    /// A thread of the backend has panicked.
    #[error("the vhost-user backend ended by a panic")]
    Panicked,
}

/// Serves a vsock device to the one QEMU that will connect to `listener`.
///
/// Returns at once; the device's threads end when QEMU disconnects, by [`VhostUserVsock::stop`] or
/// when the returned value is dropped.
pub fn serve(listener: UnixListener, config: VsockConfig) -> Result<VhostUserVsock, VhostUserError> {
    let (device, handle) = VsockDevice::new(config)?;
    let stop = Arc::new(Stop::new().map_err(VhostUserError::Start)?);
    let device_fd = device.as_raw_fd();
    let (exit_consumer, exit_notifier) =
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).map_err(VhostUserError::Start)?;
    let memory = Memory::new(GuestMemoryMmap::new());
    let active = Mutex::new(Active {
        device,
        memory: memory.clone(),
        position: [0; QUEUES],
        owed: [false; QUEUES],
        stopped: false,
        broken: false,
    });
    let backend = Arc::new(Backend { active, exit: (exit_consumer, exit_notifier) });
    let daemon =
        Daemon::new("vsock-daemon".to_owned(), backend, memory).map_err(|e| VhostUserError::Daemon(e.to_string()))?;
    for handler in daemon.get_epoll_handlers() {
        handler.register_listener(device_fd, EventSet::IN, HOST_EVENTS.into()).map_err(VhostUserError::Start)?;
    }
    let stop_of_thread = stop.clone();
    let thread = std::thread::Builder::new()
        .name("vsock".to_owned())
        .spawn(move || run(daemon, listener, &stop_of_thread))
        .map_err(VhostUserError::Start)?;
    Ok(VhostUserVsock { handle, stop, thread: Some(thread) })
}

impl VhostUserVsock {
    /// Returns a handle to the device. It may outlive this value; connects then fail.
    pub fn handle(&self) -> VsockHandle {
        self.handle.clone()
    }

    /// Returns whether the backend has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the backend ends. `Ok` when QEMU hung up or the backend was stopped.
    pub fn wait(mut self) -> Result<(), VhostUserError> {
        self.join()
    }

    /// Ends the backend and its threads. Streams of open connections see their end.
    pub fn stop(mut self) -> Result<(), VhostUserError> {
        self.stop.request();
        self.join()
    }

    fn join(&mut self) -> Result<(), VhostUserError> {
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or(Err(VhostUserError::Panicked)),
            None => Ok(()),
        }
    }
}

impl Drop for VhostUserVsock {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop.request();
            if let Err(error) = self.join() {
                tracing::warn!(%error, "vhost-user backend ended");
            }
        }
    }
}

/// A request to end, made from any thread at any time.
struct Stop {
    requested: AtomicBool,
    wake: OwnedFd,
    connection: Mutex<Option<ShutdownHandle>>,
}

impl Stop {
    fn new() -> io::Result<Stop> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Stop { requested: AtomicBool::new(false), wake, connection: Mutex::new(None) })
    }

    fn request(&self) {
        let connection = lock(&self.connection);
        self.requested.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if let Some(connection) = connection.as_ref() {
            connection.shutdown();
        }
    }

    /// Notes the connection to shut down. Returns false when the end was requested before.
    fn connected(&self, connection: Option<ShutdownHandle>) -> bool {
        let mut slot = lock(&self.connection);
        *slot = connection;
        !self.requested.load(Ordering::Acquire)
    }
}

/// The "vsock" thread: waits for QEMU, then for its end.
fn run(mut daemon: Daemon, listener: UnixListener, stop: &Stop) -> Result<(), VhostUserError> {
    if !wait_for_client(&listener, stop)? {
        return Ok(());
    }
    // `start` would spin on a listener that does not block.
    listener.set_nonblocking(false).map_err(VhostUserError::Start)?;
    daemon.start(&mut Listener::from(listener)).map_err(|e| VhostUserError::Protocol(e.to_string()))?;
    if !stop.connected(daemon.shutdown_handle()) {
        daemon.request_shutdown();
    }
    let end = daemon.wait();
    match end {
        Ok(()) => Ok(()),
        Err(_) if stop.requested.load(Ordering::Acquire) => Ok(()),
        Err(vhost_user_backend::Error::HandleRequest(
            ProtocolError::Disconnected | ProtocolError::PartialMessage | ProtocolError::SocketBroken(_),
        )) => Ok(()),
        Err(error) => Err(VhostUserError::Protocol(error.to_string())),
    }
}

/// Waits until a client knocks. False when the end was requested instead.
fn wait_for_client(listener: &UnixListener, stop: &Stop) -> Result<bool, VhostUserError> {
    loop {
        let mut fds =
            [PollFd::new(listener, PollFlags::IN), PollFd::from_borrowed_fd(stop.wake.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(VhostUserError::Start(error.into())),
        }
        if stop.requested.load(Ordering::Acquire) {
            return Ok(false);
        }
        if fds.first().is_some_and(|fd| fd.revents().contains(PollFlags::IN)) {
            return Ok(true);
        }
    }
}

/// What the vhost-user library calls, from its two threads.
struct Backend {
    active: Mutex<Active>,
    exit: (EventConsumer, EventNotifier),
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        VsockDevice::features() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The queues carry the flag.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // The protocol bounds the size at 4 KiB.
        let mut data = vec![0; size as usize];
        lock(&self.active).device.read_config(offset.into(), &mut data);
        data
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        lock(&self.active).memory = memory;
        Ok(())
    }

    fn reset_device(&self) {
        lock(&self.active).reset();
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some((self.exit.0.try_clone().ok()?, self.exit.1.try_clone().ok()?))
    }

    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        lock(&self.active).stopped = true;
        Ok(())
    }

    fn handle_event(&self, event: u16, _set: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        // An error returned from here would end the event loop, so none is.
        let [rx, tx] = vrings else { return Ok(()) };
        let mut active = lock(&self.active);
        // Always rx before tx; nobody else holds two.
        let (mut rx, mut tx) = (rx.get_mut(), tx.get_mut());
        match active.serve(event, &mut rx, &mut tx) {
            Ok(notify) => {
                active.owed[0] |= notify.rx;
                active.owed[1] |= notify.tx;
                active.pay(&rx, &tx);
            }
            Err(error) => {
                // QEMU 7.2 offers no way to pass the need for a reset on, so the device falls silent.
                tracing::error!(%error, "vsock device stopped until the guest resets it");
                active.reset();
                active.broken = true;
            }
        }
        Ok(())
    }
}

/// The device and what it needs to run.
struct Active {
    device: VsockDevice,
    memory: Memory,
    /// Where the queues stood when they were last served, rx and tx.
    position: [u16; QUEUES],
    /// Notifications the guest has to get, rx and tx. QEMU starts a queue before it says how to
    /// notify of it, and a driver that misses one hears of nothing more.
    owed: [bool; QUEUES],
    /// QEMU has stopped a queue since.
    stopped: bool,
    /// The rings were found broken; the guest has to reset the device first.
    broken: bool,
}

impl Active {
    fn serve(
        &mut self,
        event: u16,
        rx: &mut VringState<Memory>,
        tx: &mut VringState<Memory>,
    ) -> Result<VsockNotify, VsockRingError> {
        let runs = |ring: &VringState<Memory>| ring.is_enabled() && ring.get_queue().ready();
        let running = runs(rx) && runs(tx);
        if running && self.stopped {
            self.stopped = false;
            // A paused guest goes on where it was; a reset one starts at the beginning.
            if self.broken || self.position != position(rx, tx) {
                self.reset();
            }
        }
        if !running || self.broken {
            // The poller has to be emptied all the same, or the event loop would spin.
            self.device.take_host_events();
            return Ok(VsockNotify::default());
        }
        let memory = self.memory.memory();
        let queues = VsockQueues { rx: rx.get_queue_mut(), tx: tx.get_queue_mut(), event: None };
        let notify = match event {
            RX => self.device.handle_rx_kick(&*memory, queues),
            TX => self.device.handle_tx_kick(&*memory, queues),
            HOST_EVENTS => self.device.handle_host_events(&*memory, queues),
            _ => Ok(VsockNotify::default()),
        };
        self.position = position(rx, tx);
        notify
    }

    /// Notifies the guest of what is owed, now or as soon as QEMU has said how.
    fn pay(&mut self, rx: &VringState<Memory>, tx: &VringState<Memory>) {
        for (owed, ring) in self.owed.iter_mut().zip([rx, tx]) {
            if *owed && ring.get_call().is_some() {
                *owed = false;
                if let Err(error) = ring.signal_used_queue() {
                    tracing::error!(%error, "cannot notify the guest");
                }
            }
        }
        if self.owed.contains(&true) {
            self.device.wake_after(NOTIFY_RETRY);
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.broken = false;
    }
}

fn position(rx: &VringState<Memory>, tx: &VringState<Memory>) -> [u16; QUEUES] {
    [rx.get_queue().next_avail(), tx.get_queue().next_avail()]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
