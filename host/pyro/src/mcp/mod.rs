//! The MCP surface: tools of a profile, over standard input and output.
//!
//! ```text
//! stdio (pipes, sockets)  ->  transport (lines)  ->  rmcp (both protocol eras)  ->  handler  ->  Toolbox
//! ```
//!
//! Both eras are served: sessions that begin with `initialize` (2025-11-25 and older) and stateless requests
//! (2026-07-28). Calls run at the same time, each in a task of its own; dropping a call's future cancels it.
//!
//! Deliberately absent: HTTP, resources, prompts, sampling, roots and protocol logging. Logs go to standard error.

mod convert;
mod handler;
pub mod host_config;
mod progress;
mod recover;
mod stdio;
mod transport;

use std::os::fd::OwnedFd;
use std::time::Duration;

use pyro_components::Toolbox;
use rmcp::service::{QuitReason, ServerInitializeError, serve_server_with_ct};
use tokio_util::sync::CancellationToken;

use handler::Handler;
use transport::LineTransport;

/// How long after the client's going away, or being told to stop, answers are still delivered. rmcp itself would wait 5 s
/// for a request that ends in the moment between its own steps.
const LAST_ANSWERS: Duration = Duration::from_millis(1500);

/// Why a server could not serve, or stopped doing so.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The standard streams cannot be used.
    #[error("cannot use the standard streams for MCP: {0}")]
    Streams(#[source] std::io::Error),
    /// The client did something that leaves no session to go on with.
    #[error("the session could not begin: {0}")]
    Begin(#[source] Box<ServerInitializeError>),
    /// A fault of this program.
    #[error("the server stopped: {0}")]
    Stopped(#[source] tokio::task::JoinError),
}

/// An MCP server of a profile's tools, as [`Pyro::create_server`](crate::Pyro::create_server) makes it. One serves one
/// client; make another for the next.
pub struct Server {
    toolbox: Toolbox,
    instructions: Option<String>,
}

impl Server {
    pub(crate) fn new(toolbox: Toolbox, instructions: Option<String>) -> Server {
        Server { toolbox, instructions }
    }

    /// Returns the tools that are served.
    pub fn toolbox(&self) -> &Toolbox {
        &self.toolbox
    }

    /// Serves over this process's standard input and output until the client closes its end or `stop` is cancelled. From
    /// here on standard output belongs to the protocol: what else is printed goes to standard error.
    ///
    /// # Errors
    /// See [`ServeError`]. The client's going away is not an error.
    pub async fn serve_stdio(self, stop: CancellationToken) -> Result<(), ServeError> {
        let (input, output) = stdio::claim().map_err(ServeError::Streams)?;
        self.serve_lines(input, output, stop).await
    }

    /// Serves over a pair of descriptors, pipes or sockets, as [`Server::serve_stdio`] does.
    ///
    /// # Errors
    /// See [`ServeError`]. The client's going away is not an error.
    pub async fn serve(self, input: OwnedFd, output: OwnedFd, stop: CancellationToken) -> Result<(), ServeError> {
        let input = stdio::Input::new(input).map_err(ServeError::Streams)?;
        let output = stdio::Output::new(output).map_err(ServeError::Streams)?;
        self.serve_lines(input, output, stop).await
    }

    async fn serve_lines(
        self,
        input: stdio::Input,
        output: stdio::Output,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        let closed = CancellationToken::new();
        let handler = Handler::new(self.toolbox, self.instructions.as_deref(), closed.clone(), stop.clone());
        let transport = LineTransport::new(input, output, closed.clone());
        let stopped = stop.clone();
        let last_answers = async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = stopped.cancelled() => {}
            }
            tokio::time::sleep(LAST_ANSWERS).await;
        };
        let service = match serve_server_with_ct(handler, transport, stop).await {
            Ok(service) => service,
            Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => {
                return Ok(());
            }
            Err(error) => return Err(ServeError::Begin(Box::new(error))),
        };
        tokio::select! {
            done = service.waiting() => match done {
                Ok(QuitReason::JoinError(error)) | Err(error) => Err(ServeError::Stopped(error)),
                Ok(_) => Ok(()),
            },
            () = last_answers => Ok(()),
        }
    }
}
