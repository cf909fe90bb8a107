//! One connection, from its first frame to its last: one operation, or commands one after another.

use std::time::{Duration, Instant};

use pyro_agent_protocol::{
    Done, ErrorReply, GuestFrame, HostFrame, Op, Open, PROTOCOL, PROTOCOL_MIN, ShutdownMode, codes, encode_stderr,
    encode_stdout,
};

use rustix::event::epoll::{self, EventFlags};

use crate::environment::error;
use crate::exec::{Context, Exec};
use crate::facts::{BootFacts, apply, hello};
use crate::kept::{Kept, Wait};
use crate::relay::{Connecting, Relay};
use crate::server::{Kind, Token};
use crate::stream::Stream;
use crate::worker::{Worker, Workers};

/// How long a host may take to say what it wants.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection and what is done for it.
#[derive(Debug)]
pub struct Operation {
    /// `None` when the host has left and only the command's end is awaited.
    stream: Option<Stream>,
    state: State,
    token: Token,
}

#[derive(Debug)]
enum State {
    /// An `Open` is awaited: the first in time, later ones as long as the host wants.
    Opening { until: Option<Instant> },
    /// A command runs.
    Exec(Box<Exec>),
    /// A worker is to do it as soon as one is free.
    Queued(Op),
    /// A worker does it, and has the connection.
    Working(Worker),
    /// What is kept must change first.
    Waiting(Wait),
    /// What the host sends is typed into this terminal.
    Typing(String),
    /// A port is being connected to.
    Connecting(Connecting),
    /// It is connected to, and the relay has the host's connection.
    Relaying(Box<Relay>),
    /// The last frame is queued.
    Closing,
    /// The guest is to end; the stream belongs to whoever ends it.
    ShuttingDown(ShutdownMode),
}

/// What the server shares with its operations.
pub struct Shared {
    /// For commands.
    pub context: Context,
    /// For operations that block.
    pub workers: Workers,
    /// What outlives operations.
    pub kept: Kept,
    /// A buffer for reads, of [`DATA_CHUNK_BYTES`](pyro_agent_protocol::DATA_CHUNK_BYTES).
    pub scratch: Vec<u8>,
    /// Since the boot.
    pub boot: BootFacts,
    /// True when the agent may change the system's clock and random generator.
    pub owns_system: bool,
    /// Commands running now.
    pub execs: usize,
    /// Commands so far.
    pub commands: u32,
    /// The most commands at once.
    pub max_execs: usize,
}

impl Operation {
    /// Returns an operation for a connection that the host made.
    pub fn accepted(stream: Stream, token: Token, now: Instant) -> Self {
        Self { stream: Some(stream), state: State::Opening { until: Some(now + OPEN_TIMEOUT) }, token }
    }

    /// Returns an operation that sends `frame` over a connection that is still being made.
    pub fn announcement(mut stream: Stream, token: Token, frame: &GuestFrame) -> Self {
        stream.writable = false;
        stream.queue(frame);
        Self { stream: Some(stream), state: State::Closing, token }
    }

    /// Returns the id of a main process that only this operation may reap.
    pub fn unreaped_pid(&self) -> Option<i32> {
        match &self.state {
            State::Exec(exec) => exec.unreaped_pid(),
            _ => None,
        }
    }

    /// Notes that a descriptor is ready. Returns false when it is none of this operation's.
    pub fn on_event(&mut self, token: Token, flags: EventFlags) -> bool {
        let broken = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let hung_up = broken || flags.contains(EventFlags::RDHUP);
        let readable = hung_up || flags.contains(EventFlags::IN);
        let writable = broken || flags.contains(EventFlags::OUT);
        match &mut self.state {
            State::Exec(exec) if token.kind != Kind::Stream => return exec.on_event(token, flags),
            _ if token != self.token.with(token.kind) => return false,
            State::Relaying(relay) => relay.on_event(token.kind == Kind::Stream, readable, writable),
            State::Connecting(connecting) if token.kind == Kind::Relay => connecting.on_event(),
            _ => {
                if let Some(stream) = self.stream.as_mut().filter(|_| token.kind == Kind::Stream) {
                    stream.readable |= readable;
                    stream.writable |= writable;
                    stream.hung_up |= hung_up;
                }
            }
        }
        true
    }

    /// Notes that the main process has ended.
    pub fn on_main_process_end(&mut self) {
        if let State::Exec(exec) = &mut self.state {
            exec.on_main_process_end();
        }
    }

    /// Moves what can be moved. Returns true when another call may move more.
    pub fn step(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let mut progress = self.receive(shared, now);
        if let State::Exec(exec) = &mut self.state {
            // A host that closes its side cancels the command, even if bytes it sent before are unread.
            if self.stream.as_ref().is_some_and(|stream| stream.gone || stream.hung_up) {
                exec.cancel(now);
                self.stream = None;
            }
            progress |= exec.pump(self.stream.as_mut(), &mut shared.scratch, now, &shared.context);
            if exec.is_finished() {
                self.finish_exec(shared);
                progress = true;
            }
        }
        if matches!(self.state, State::Queued(_)) && shared.workers.has_room() {
            self.start_worker(shared);
        }
        match &mut self.state {
            State::Waiting(wait) => match shared.kept.check(wait, now) {
                Ok(None) => {}
                Ok(Some(frames)) => self.answer(&frames),
                Err(reply) => self.answer(&[GuestFrame::Error(reply)]),
            },
            State::Connecting(connecting) => match connecting.check(now) {
                Ok(false) => {}
                Ok(true) => progress |= self.start_relay(),
                Err(reply) => self.answer(&[GuestFrame::Error(reply)]),
            },
            State::Relaying(relay) => progress |= relay.pump(&mut shared.scratch),
            _ => {}
        }
        if let State::Opening { until: Some(until) } = &self.state
            && *until <= now
        {
            self.fail(shared, now, codes::PROTOCOL_VIOLATION, "no Open frame came in time".to_owned());
        }
        if let Some(stream) = &mut self.stream {
            progress |= stream.flush();
        }
        progress
    }

    /// True when nothing is left to do.
    pub fn is_done(&self) -> bool {
        match (&self.state, &self.stream) {
            (State::Exec(_) | State::ShuttingDown(_), _) => false,
            (State::Working(worker), _) => worker.is_done(),
            (State::Relaying(relay), _) => relay.is_done(),
            (State::Queued(_) | State::Waiting(_) | State::Connecting(_), Some(stream)) => {
                stream.gone || stream.hung_up
            }
            (_, None) => true,
            (State::Opening { .. } | State::Typing(_), Some(stream)) => stream.gone,
            (State::Closing, Some(stream)) => stream.gone || stream.is_flushed(),
        }
    }

    /// Returns the shutdown the host asked for.
    pub fn shutdown(&self) -> Option<ShutdownMode> {
        match &self.state {
            State::ShuttingDown(mode) => Some(*mode),
            _ => None,
        }
    }

    /// Returns the connection.
    pub fn into_stream(self) -> Option<Stream> {
        self.stream
    }

    /// Returns the next moment at which [`step`](Self::step) must be called even if nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Opening { until } => *until,
            State::Exec(exec) => exec.wake_at(),
            State::Waiting(Wait::Read { wake, .. }) => Some(*wake),
            State::Waiting(Wait::Service { until, .. }) => *until,
            State::Connecting(connecting) => Some(connecting.until()),
            State::Waiting(Wait::Close(_))
            | State::Queued(_)
            | State::Working(_)
            | State::Typing(_)
            | State::Relaying(_)
            | State::Closing
            | State::ShuttingDown(_) => None,
        }
    }

    /// True when a change of what is kept may be news to it.
    pub fn awaits_kept(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }

    /// True when a worker's end may be news to it.
    pub fn awaits_worker(&self) -> bool {
        matches!(self.state, State::Queued(_) | State::Working(_))
    }

    /// Ends its worker.
    pub fn stop_worker(&self) {
        if let State::Working(worker) = &self.state {
            worker.stop();
        }
    }

    /// Reads frames while they are wanted and acts on them.
    fn receive(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let wanted = match &self.state {
            State::Opening { .. } | State::Typing(_) => true,
            State::Exec(exec) => exec.has_room(),
            _ => false,
        };
        let Some(stream) = self.stream.as_mut().filter(|_| wanted) else {
            return false;
        };
        if !stream.receive(&mut shared.scratch, matches!(self.state, State::Opening { .. })) {
            return false;
        }
        while let Some(stream) = &mut self.stream {
            match stream.next_frame() {
                Ok(Some(frame)) => self.act(frame, shared, now),
                Ok(None) => break,
                Err(reason) => {
                    self.fail(shared, now, codes::PROTOCOL_VIOLATION, reason.to_string());
                    break;
                }
            }
            if !matches!(self.state, State::Opening { .. } | State::Exec(_) | State::Typing(_)) {
                break;
            }
        }
        // The answer of most commands is not far.
        if let Some(stream) = self.stream.as_mut().filter(|_| !matches!(self.state, State::Exec(_))) {
            stream.take_peeked(&mut shared.scratch);
        }
        true
    }

    fn act(&mut self, frame: HostFrame, shared: &mut Shared, now: Instant) {
        let violation = |what: &str| Err((codes::PROTOCOL_VIOLATION, what.to_owned()));
        let result = match (&mut self.state, frame) {
            (_, HostFrame::Unknown(_)) => Ok(()),
            (State::Opening { .. }, HostFrame::Open(open)) => return self.open(open, shared, now),
            (State::Exec(exec), HostFrame::Stdin(bytes)) => {
                if exec.feed(&bytes) {
                    Ok(())
                } else {
                    violation("a Stdin frame for a command without open stdin")
                }
            }
            (State::Exec(exec), HostFrame::StdinEof) => {
                exec.feed_eof();
                Ok(())
            }
            (State::Exec(exec), HostFrame::Signal(name)) => {
                if exec.signal(&name) {
                    Ok(())
                } else {
                    Err((codes::INVALID_ARGUMENT, format!("unknown signal {name:?}")))
                }
            }
            (State::Typing(id), HostFrame::Data(bytes)) => {
                match shared.kept.with_terminal(id, |terminal| terminal.write(&bytes)) {
                    Ok(_) => Ok(()),
                    Err(reply) => return self.answer(&[GuestFrame::Error(reply)]),
                }
            }
            (State::Typing(id), HostFrame::DataEof) => {
                let frame = shared.kept.with_terminal(id, |_| Ok(())).unwrap_or_else(GuestFrame::Error);
                return self.answer(&[frame]);
            }
            (State::Exec(_), HostFrame::Open(_)) => violation("a second Open frame"),
            (_, _) => violation("the first frame is not Open"),
        };
        if let Err((code, message)) = result {
            self.fail(shared, now, code, message);
        }
    }

    fn open(&mut self, open: Open, shared: &mut Shared, now: Instant) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let (frame, state) = if !(PROTOCOL_MIN..=PROTOCOL).contains(&open.protocol) {
            let message = format!("protocol {} is not among {PROTOCOL_MIN}..={PROTOCOL}", open.protocol);
            (Some(GuestFrame::Error(error(codes::UNSUPPORTED_PROTOCOL, message))), State::Closing)
        } else {
            match open.op {
                Op::Hello(request) => {
                    let mut reply = hello(&shared.boot, shared.context.cgroups.is_some());
                    if shared.owns_system {
                        apply(&request, &mut reply);
                    }
                    (Some(GuestFrame::HelloReply(Box::new(reply))), State::Closing)
                }
                Op::Exec(_) if shared.execs >= shared.max_execs => {
                    let message = format!("{} commands run already, which is the limit", shared.max_execs);
                    (Some(GuestFrame::Error(error(codes::LIMIT_EXCEEDED, message))), State::Closing)
                }
                Op::Exec(request) => {
                    match Exec::start(&request, self.token.of_command(shared.commands), &mut shared.context) {
                        Ok(exec) => {
                            shared.execs += 1;
                            shared.commands = shared.commands.wrapping_add(1);
                            (None, State::Exec(Box::new(exec)))
                        }
                        Err(reply) => (Some(GuestFrame::Error(reply)), State::Closing),
                    }
                }
                Op::Shutdown(request) => (None, State::ShuttingDown(request.mode)),
                Op::FileStat(_)
                | Op::FileList(_)
                | Op::FileRead(_)
                | Op::FileApply(_)
                | Op::FileArchive(_)
                | Op::FileExtract(_)
                | Op::ServiceProbe(_) => (None, State::Queued(open.op)),
                Op::TcpConnect(request) => match Connecting::start(request.port, now) {
                    Ok(connecting) => {
                        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
                        match shared.context.watch(connecting.fd(), self.token, Kind::Relay, flags) {
                            Ok(()) => (None, State::Connecting(connecting)),
                            Err(reason) => {
                                let message = format!("cannot watch a connection: {reason}");
                                (Some(GuestFrame::Error(error(codes::INTERNAL, message))), State::Closing)
                            }
                        }
                    }
                    Err(reply) => (Some(GuestFrame::Error(reply)), State::Closing),
                },
                Op::TerminalWrite(request) => match shared.kept.with_terminal(&request.id, |_| Ok(())) {
                    Ok(_) => (None, State::Typing(request.id)),
                    Err(reply) => (Some(GuestFrame::Error(reply)), State::Closing),
                },
                Op::Unsupported(name) => {
                    let message = format!("this agent does not know operation {name:?}");
                    (Some(GuestFrame::Error(error(codes::UNSUPPORTED, message))), State::Closing)
                }
                op => match keep(op, shared, now) {
                    Ok(Answer::Wait(wait)) => (None, State::Waiting(wait)),
                    Ok(Answer::Frames(frames)) => {
                        for frame in frames {
                            stream.queue(&frame);
                        }
                        (None, State::Closing)
                    }
                    Ok(Answer::Logs { stdout, stderr, truncated }) => {
                        stream.queue_data(&stdout, encode_stdout);
                        stream.queue_data(&stderr, encode_stderr);
                        (Some(GuestFrame::Done(Done { truncated, ..Done::default() })), State::Closing)
                    }
                    Err(reply) => (Some(GuestFrame::Error(reply)), State::Closing),
                },
            }
        };
        if let Some(frame) = frame {
            stream.queue(&frame);
        }
        self.state = state;
    }

    /// Ends the operation with an error. A running command is killed and its end awaited without a stream.
    fn fail(&mut self, shared: &mut Shared, now: Instant, code: &str, message: String) {
        let frame = GuestFrame::Error(error(code, message));
        if let Some(stream) = &mut self.stream {
            stream.queue(&frame);
        }
        if let State::Exec(exec) = &mut self.state {
            // The frame goes out if the socket takes it now; a peer that breaks the protocol is owed no more.
            if let Some(mut stream) = self.stream.take() {
                stream.flush();
            }
            exec.cancel(now);
            if exec.is_finished() {
                self.finish_exec(shared);
            }
        } else {
            self.state = State::Closing;
        }
    }

    /// Queues the last frames.
    fn answer(&mut self, frames: &[GuestFrame]) {
        if let Some(stream) = &mut self.stream {
            for frame in frames {
                stream.queue(frame);
            }
        }
        self.state = State::Closing;
    }

    /// Hands the connection to a relay. Returns true, because bytes may wait.
    fn start_relay(&mut self) -> bool {
        if let (State::Connecting(connecting), Some(stream)) =
            (std::mem::replace(&mut self.state, State::Closing), self.stream.take())
        {
            let (host, decoder) = stream.into_parts();
            self.state = State::Relaying(Box::new(connecting.relay(host, decoder.into_rest())));
        }
        true
    }

    /// Hands the connection to a worker.
    fn start_worker(&mut self, shared: &mut Shared) {
        let State::Queued(op) = std::mem::replace(&mut self.state, State::Closing) else {
            return;
        };
        let Some(stream) = self.stream.take() else {
            return;
        };
        let (fd, decoder) = stream.into_parts();
        // Its events are the worker's now. Nothing was sent yet, so nothing is left behind.
        let _ = epoll::delete(&shared.context.epoll, &fd);
        match shared.workers.start(op, fd, decoder) {
            Ok(worker) => self.state = State::Working(worker),
            // The connection went with the attempt; the host sees it close.
            Err(_) => self.state = State::Closing,
        }
    }

    fn finish_exec(&mut self, shared: &mut Shared) {
        if let State::Exec(exec) = std::mem::replace(&mut self.state, State::Closing) {
            shared.execs = shared.execs.saturating_sub(1);
            if let Some(stream) = &mut self.stream {
                stream.take_peeked(&mut shared.scratch);
            }
            if exec.finish(self.stream.as_mut(), &mut shared.context) {
                self.state = State::Opening { until: None };
            }
        }
    }
}

/// What is said about terminals and services.
enum Answer {
    Frames(Vec<GuestFrame>),
    Logs { stdout: Vec<u8>, stderr: Vec<u8>, truncated: bool },
    Wait(Wait),
}

/// Does what concerns terminals and services.
fn keep(op: Op, shared: &mut Shared, now: Instant) -> Result<Answer, ErrorReply> {
    let Shared { kept, context, .. } = shared;
    let done = || GuestFrame::Done(Done::default());
    let frame = match op {
        Op::TerminalOpen(request) => kept.open_terminal(&request, context)?,
        Op::TerminalList(_) => return Ok(Answer::Frames(kept.terminals().chain([done()]).collect())),
        Op::TerminalRead(request) => return Ok(Answer::Wait(Wait::Read { request, since: now, wake: now })),
        Op::TerminalResize(request) => {
            kept.with_terminal(&request.id, |terminal| terminal.resize(request.cols, request.rows))?
        }
        Op::TerminalSignal(request) => kept.with_terminal(&request.id, |terminal| terminal.signal(&request.signal))?,
        Op::TerminalClose(request) => return Ok(Answer::Wait(kept.close_terminal(&request.id, now)?)),
        Op::ServiceStart(request) => kept.start_service(request, context)?,
        Op::ServiceStatus(request) => kept.with_service(&request.name, |_| Ok(()))?,
        Op::ServiceList(_) => return Ok(Answer::Frames(kept.services().chain([done()]).collect())),
        Op::ServiceLogs(request) => {
            let (stdout, stderr, truncated) = kept.service_logs(&request.name)?;
            return Ok(Answer::Logs { stdout, stderr, truncated });
        }
        Op::ServiceRead(request) => return Ok(Answer::Frames(kept.read_service(&request)?)),
        Op::ServiceStop(request) => {
            let grace = Duration::from_millis(u64::from(request.grace_ms));
            return Ok(Answer::Wait(kept.stop_service(&request.name, grace, now)?));
        }
        Op::ServiceRemove(request) => {
            kept.remove_service(&request.name)?;
            done()
        }
        Op::ServiceAnnotate(request) => kept.with_service(&request.name, |service| service.annotate(request.meta))?,
        Op::ServiceWait(request) => {
            let until = now + Duration::from_millis(u64::from(request.max_ms));
            return Ok(Answer::Wait(kept.await_service(&request.name, until)?));
        }
        _ => return Err(error(codes::INTERNAL, "nobody does this operation")),
    };
    Ok(Answer::Frames(vec![frame]))
}
