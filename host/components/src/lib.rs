//! Profiles, and the WebAssembly components they name, as callable tools.
//!
//! ```text
//! profile.toml -> ResolvedProfile -> Toolbox --call(name, arguments)--> ToolOutcome | ToolError
//!                  (no code runs)      |  one fresh instance per call, every limit on
//!                                      +-- pyro_engine::Engine behind the gated interfaces
//! ```
//!
//! [`ResolvedProfile::open`] reads and checks a manifest, [`Toolbox::load`] makes its tools callable, and
//! [`Toolbox::call`] is the one path from any surface into a component.
//!
//! Deliberately absent: MCP, command lines, and everything about how a microVM is made.

mod cli;
mod component;
mod diagnostic;
mod error;
pub mod profile;
mod runtime;
mod tool;
mod toolbox;
mod validate;

pub use cli::{AnswerForm, CliBlocks, CliFlag, CliForm, CliTable, FlagValue, HumanForm, OWN_COMMANDS, RecordForm};
pub use diagnostic::{Diagnostic, LoadError};
pub use error::ToolError;
pub use profile::{Builtins, HostSettings, Limits, ResolvedComponent, ResolvedProfile, read_component};
pub use runtime::pack;
pub use tool::{
    Annotations, CallInput, CallObserver, CallOptions, Content, ContentBody, NoObserver, OutputStream, ToolDef,
    ToolOutcome,
};
pub use toolbox::{DEFAULT_MAX_CALLS, HostServices, Toolbox};
pub use validate::holds_secret;
