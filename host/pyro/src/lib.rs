//! A tool host for AI agents, as a library: profiles, their tools, and the surfaces that serve them.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use pyro::{CallOptions, Pyro, PyroConfig};
//!
//! let pyro = Pyro::open(PyroConfig { program: Some("/usr/local/bin/pyro".into()), ..PyroConfig::default() })?;
//! let profile = pyro.profile("vm-run")?;
//! let toolbox = pyro.toolbox(&profile)?;
//! #[derive(serde::Serialize)]
//! struct Run<'a> {
//!     environment: &'a str,
//!     command: &'a str,
//! }
//! #[derive(serde::Deserialize)]
//! struct Ran {
//!     stdout: String,
//!     exit_code: i32,
//! }
//! let run = Run { environment: "debian:12", command: "git --version" };
//! let ran: Ran = toolbox.call_as("vm_run", &run).await?;
//! assert_eq!(ran.exit_code, 0, "{}", ran.stdout);
//!
//! // The same tools for an MCP client.
//! pyro.create_server("workspace-core")?.serve_stdio(Default::default()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The command line and the MCP server are the first users of [`Pyro`] and go through the same calls.
//!
//! Deliberately absent: printing. Only the `pyro` program prints.

pub mod artifacts;
pub mod doctor;
pub mod errors;
pub mod mcp;
mod open;

pub use open::{BUILTINS, OpenError, Pyro, PyroConfig};
pub use pyro_components::{
    Annotations, AnswerForm, CallInput, CallObserver, CallOptions, CliBlocks, CliFlag, CliForm, CliTable, Content,
    ContentBody, Diagnostic, FlagValue, HumanForm, LoadError, NoObserver, OutputStream, RecordForm, ResolvedProfile,
    ToolDef, ToolError, ToolOutcome, Toolbox,
};
pub use pyro_engine::{EngineChoice, EngineError, ErrorCode, Paths};
