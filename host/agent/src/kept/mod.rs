//! What outlives the connection that made it: terminals and services.
//!
//! Each has a number, which its descriptors' tokens carry and which is not used again. Operations look them up by name each time
//! they are stepped, so that one that was closed in the meantime is simply not found.

mod process;
mod ring;
mod service;
mod terminal;

use std::time::{Duration, Instant};

use pyro_agent_protocol::{
    Done, ErrorReply, GuestFrame, LogStream, ServiceReadRequest, ServiceStartRequest, ServiceStatus,
    TerminalOpenRequest, TerminalReadRequest, codes,
};

use crate::environment::error;
use crate::exec::Context;
use crate::server::{Kind, Token};
use service::Service;
use terminal::Terminal;

/// The most terminals, with those that have ended and are not closed.
const MAX_TERMINALS: usize = 16;
/// The most services, with those that have ended and are still kept.
const MAX_SERVICES: usize = 32;
/// The longest wait of one read.
const READ_WAIT: Duration = Duration::from_secs(10);

/// Terminals and services.
#[derive(Debug, Default)]
pub struct Kept {
    terminals: Vec<Tenant<Terminal>>,
    services: Vec<Tenant<Service>>,
    /// Numbers the tenants.
    next: u32,
    /// True when a turn left something to move.
    more: bool,
}

#[derive(Debug)]
struct Tenant<T> {
    number: u32,
    what: T,
}

/// What an operation waits for.
#[derive(Debug)]
pub enum Wait {
    /// Output.
    Read {
        /// Of which terminal, and how much.
        request: TerminalReadRequest,
        /// When it was asked for.
        since: Instant,
        /// The next moment to look.
        wake: Instant,
    },
    /// A terminal's end, to forget it then.
    Close(u32),
    /// A service's end.
    Service {
        /// Which.
        number: u32,
        /// The last moment.
        until: Option<Instant>,
    },
}

impl Kept {
    /// Opens a terminal.
    ///
    /// # Errors
    /// What to answer: nothing was started.
    pub fn open_terminal(
        &mut self,
        request: &TerminalOpenRequest,
        context: &mut Context,
    ) -> Result<GuestFrame, ErrorReply> {
        if self.terminals.len() >= MAX_TERMINALS {
            let message = format!("the guest has {MAX_TERMINALS} terminals already, which is the limit");
            return Err(error(codes::LIMIT_EXCEEDED, message));
        }
        let mut random = [0u8; 6];
        let flags = rustix::rand::GetRandomFlags::NONBLOCK;
        rustix::rand::getrandom(&mut random, flags)
            .map_err(|errno| error(codes::INTERNAL, format!("no random bytes: {errno}")))?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let number = self.number();
        let terminal = Terminal::open(id, request, Token::kept(number), context)?;
        let frame = GuestFrame::Terminal(Box::new(terminal.status()));
        self.terminals.push(Tenant { number, what: terminal });
        Ok(frame)
    }

    /// Returns every terminal, in the order they were opened.
    pub fn terminals(&self) -> impl Iterator<Item = GuestFrame> {
        self.terminals.iter().map(|tenant| GuestFrame::Terminal(Box::new(tenant.what.status())))
    }

    /// Does something with a terminal and returns it.
    ///
    /// # Errors
    /// `not_found`, and what `act` answers.
    pub fn with_terminal(
        &mut self,
        id: &str,
        act: impl FnOnce(&mut Terminal) -> Result<(), ErrorReply>,
    ) -> Result<GuestFrame, ErrorReply> {
        let terminal = &mut self.terminal(id)?.what;
        act(terminal)?;
        Ok(GuestFrame::Terminal(Box::new(terminal.status())))
    }

    /// Begins a terminal's end and returns what to wait for.
    ///
    /// # Errors
    /// `not_found`.
    pub fn close_terminal(&mut self, id: &str, now: Instant) -> Result<Wait, ErrorReply> {
        let tenant = self.terminal(id)?;
        tenant.what.close(now);
        Ok(Wait::Close(tenant.number))
    }

    /// Starts a service. When there is no place, the one that ended first is forgotten: those that ended are kept for
    /// whoever still reads them, and nobody need remove them.
    ///
    /// # Errors
    /// What to answer: nothing was started.
    pub fn start_service(
        &mut self,
        request: ServiceStartRequest,
        context: &mut Context,
    ) -> Result<GuestFrame, ErrorReply> {
        let same = self.services.iter().position(|tenant| tenant.what.name() == request.name);
        if let Some(tenant) = same.and_then(|at| self.services.get(at))
            && !tenant.what.process().is_over()
        {
            return Err(error(codes::ALREADY_EXISTS, format!("service `{}` runs already", request.name)));
        }
        let replaced = match same {
            None if self.services.len() >= MAX_SERVICES => {
                let Some(at) = self.ended_first() else {
                    let message = format!("the guest runs {MAX_SERVICES} services already, which is the limit");
                    return Err(error(codes::LIMIT_EXCEEDED, message));
                };
                Some(at)
            }
            same => same,
        };
        let number = self.number();
        let service = Service::start(request, Token::kept(number), context)?;
        let frame = GuestFrame::Service(Box::new(service.status()));
        // The finished one goes only when the new one runs.
        if let Some(at) = replaced {
            self.services.remove(at);
        }
        self.services.push(Tenant { number, what: service });
        Ok(frame)
    }

    /// Returns every service, sorted by name.
    pub fn services(&self) -> impl Iterator<Item = GuestFrame> {
        let mut all: Vec<ServiceStatus> = self.services.iter().map(|tenant| tenant.what.status()).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all.into_iter().map(|status| GuestFrame::Service(Box::new(status)))
    }

    /// Does something with a service and returns it.
    ///
    /// # Errors
    /// `not_found`, and what `act` answers.
    pub fn with_service(
        &mut self,
        name: &str,
        act: impl FnOnce(&mut Service) -> Result<(), ErrorReply>,
    ) -> Result<GuestFrame, ErrorReply> {
        let service = &mut self.service(name)?.what;
        act(service)?;
        Ok(GuestFrame::Service(Box::new(service.status())))
    }

    /// Returns a service's logs: standard output, standard error, and whether older output was dropped.
    ///
    /// # Errors
    /// `not_found`.
    pub fn service_logs(&mut self, name: &str) -> Result<(Vec<u8>, Vec<u8>, bool), ErrorReply> {
        let (stdout, stderr, truncated) = self.service(name)?.what.logs();
        Ok((stdout.read(0, usize::MAX).1, stderr.read(0, usize::MAX).1, truncated))
    }

    /// Returns the answer to a read of one of a service's outputs.
    ///
    /// # Errors
    /// `not_found`.
    pub fn read_service(&mut self, request: &ServiceReadRequest) -> Result<Vec<GuestFrame>, ErrorReply> {
        let service = &self.service(&request.name)?.what;
        let (stdout, stderr, _) = service.logs();
        let log = match request.stream {
            LogStream::Stdout => stdout,
            LogStream::Stderr => stderr,
        };
        let (start, data) = log.read(request.cursor, usize::try_from(request.max).unwrap_or(usize::MAX));
        let mut frames = data_frames(&data);
        frames.push(GuestFrame::Service(Box::new(service.status())));
        frames.push(GuestFrame::Done(Done { start, ..Done::default() }));
        Ok(frames)
    }

    /// Begins a service's end and returns what to wait for.
    ///
    /// # Errors
    /// `not_found`.
    pub fn stop_service(&mut self, name: &str, grace: Duration, now: Instant) -> Result<Wait, ErrorReply> {
        let tenant = self.service(name)?;
        tenant.what.stop(grace, now);
        Ok(Wait::Service { number: tenant.number, until: None })
    }

    /// Returns what to wait for to see a service's end.
    ///
    /// # Errors
    /// `not_found`.
    pub fn await_service(&mut self, name: &str, until: Instant) -> Result<Wait, ErrorReply> {
        Ok(Wait::Service { number: self.service(name)?.number, until: Some(until) })
    }

    /// Forgets a finished service.
    ///
    /// # Errors
    /// `not_found`, `invalid_state`.
    pub fn remove_service(&mut self, name: &str) -> Result<(), ErrorReply> {
        let tenant = self.service(name)?;
        if !tenant.what.process().is_over() {
            return Err(error(codes::INVALID_STATE, format!("service `{name}` runs")));
        }
        let number = tenant.number;
        self.services.retain(|tenant| tenant.number != number);
        Ok(())
    }

    /// Looks whether what is waited for has come. Returns the answer's frames then.
    ///
    /// # Errors
    /// What to answer when it never will.
    pub fn check(&mut self, wait: &mut Wait, now: Instant) -> Result<Option<Vec<GuestFrame>>, ErrorReply> {
        match wait {
            Wait::Read { request, since, wake } => {
                let terminal = &self.terminal(&request.id)?.what;
                let max = usize::try_from(request.max).unwrap_or(usize::MAX);
                if let Some(idle_ms) = request.idle_ms {
                    let idle = Duration::from_millis(u64::from(idle_ms));
                    let until = terminal.last_output().max(*since).checked_add(idle).unwrap_or(now + READ_WAIT);
                    let until = until.min(*since + READ_WAIT);
                    let there = terminal.output().end().saturating_sub(request.cursor.max(terminal.output().start()));
                    if now < until && there < u64::from(request.max) && !terminal.process().is_over() {
                        *wake = until;
                        return Ok(None);
                    }
                }
                let (start, data) = terminal.output().read(request.cursor, max);
                let status = GuestFrame::Terminal(Box::new(terminal.status()));
                let mut frames = data_frames(&data);
                frames.push(status);
                frames.push(GuestFrame::Done(Done { start, ..Done::default() }));
                Ok(Some(frames))
            }
            Wait::Close(number) => {
                let Some(at) = self.terminals.iter().position(|tenant| tenant.number == *number) else {
                    return Err(error(codes::NOT_FOUND, "another operation closed the terminal"));
                };
                let status = self.terminals.get(at).map(|tenant| tenant.what.status()).unwrap_or_default();
                if status.running {
                    return Ok(None);
                }
                self.terminals.remove(at);
                Ok(Some(vec![GuestFrame::Terminal(Box::new(status))]))
            }
            Wait::Service { number, until } => {
                let Some(tenant) = self.services.iter().find(|tenant| tenant.number == *number) else {
                    return Err(error(codes::NOT_FOUND, "another operation removed the service"));
                };
                let status = tenant.what.status();
                if status.running && until.is_none_or(|until| now < until) {
                    return Ok(None);
                }
                Ok(Some(vec![GuestFrame::Service(Box::new(status))]))
            }
        }
    }

    /// Notes that a descriptor is ready.
    pub fn on_event(&mut self, number: u32, kind: Kind, readable: bool, writable: bool) {
        match kind {
            Kind::TerminalProcess | Kind::TerminalMaster => {
                if let Some(tenant) = self.terminals.iter_mut().find(|tenant| tenant.number == number) {
                    tenant.what.on_event(kind, readable, writable);
                }
            }
            _ => {
                if let Some(tenant) = self.services.iter_mut().find(|tenant| tenant.number == number) {
                    tenant.what.on_event(kind);
                }
            }
        }
    }

    /// Notes that a child has ended, when it is one of ours.
    pub fn on_child(&mut self, pid: i32) -> bool {
        for tenant in &mut self.terminals {
            if tenant.what.process().unreaped_pid() == Some(pid) {
                tenant.what.on_event(Kind::TerminalProcess, false, false);
                return true;
            }
        }
        for tenant in &mut self.services {
            if tenant.what.process().unreaped_pid() == Some(pid) {
                tenant.what.on_event(Kind::ServiceProcess);
                return true;
            }
        }
        false
    }

    /// Moves what can be moved. Returns true when something happened that operations may wait for.
    pub fn turn(&mut self, now: Instant, scratch: &mut [u8], context: &mut Context) -> bool {
        let (mut more, mut news) = (false, false);
        for tenant in &mut self.terminals {
            let (this_more, this_news) = tenant.what.turn(now, scratch, context);
            (more, news) = (more | this_more, news | this_news);
        }
        for tenant in &mut self.services {
            let (this_more, this_news) = tenant.what.turn(now, scratch, context);
            (more, news) = (more | this_more, news | this_news);
        }
        self.terminals.retain(|tenant| !tenant.what.is_forgotten(now));
        self.more = more;
        news
    }

    /// True when [`turn`](Self::turn) must be called again at once.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Returns the next moment at which [`turn`](Self::turn) must be called even if nothing happens.
    pub fn wake_at(&self) -> Option<Instant> {
        let terminals = self.terminals.iter().filter_map(|tenant| tenant.what.wake_at());
        let services = self.services.iter().filter_map(|tenant| tenant.what.process().wake_at());
        terminals.chain(services).min()
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// Returns where the service is that ended before all others; none when all run.
    fn ended_first(&self) -> Option<usize> {
        let ends = self.services.iter().map(|tenant| tenant.what.process().end());
        let ended = ends.enumerate().filter_map(|(at, end)| Some((at, end?.at_ms)));
        ended.min_by_key(|(_, at_ms)| *at_ms).map(|(at, _)| at)
    }

    fn terminal(&mut self, id: &str) -> Result<&mut Tenant<Terminal>, ErrorReply> {
        self.terminals
            .iter_mut()
            .find(|tenant| tenant.what.id() == id)
            .ok_or_else(|| error(codes::NOT_FOUND, format!("there is no terminal `{id}`")))
    }

    fn service(&mut self, name: &str) -> Result<&mut Tenant<Service>, ErrorReply> {
        self.services
            .iter_mut()
            .find(|tenant| tenant.what.name() == name)
            .ok_or_else(|| error(codes::NOT_FOUND, format!("there is no service `{name}`")))
    }
}

fn data_frames(data: &[u8]) -> Vec<GuestFrame> {
    data.chunks(pyro_agent_protocol::DATA_CHUNK_BYTES).map(|chunk| GuestFrame::Data(chunk.to_vec())).collect()
}
