//! A loaded profile: its tools, and the one path into them.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::diagnostic::LoadError;
use crate::error::ToolError;
use crate::profile::ResolvedProfile;
use crate::tool::{CallOptions, ToolDef, ToolOutcome};

/// Calls at once when the profile says nothing; more wait for their turn.
pub const DEFAULT_MAX_CALLS: u32 = 32;

/// What components are given of this host.
#[derive(Clone, Debug)]
pub struct HostServices {
    /// Behind `pyro:vm`.
    pub engine: pyro_engine::Engine,
    /// Directory for compiled code; made with mode 0700 when missing. It can be deleted at any time.
    pub aot_cache_dir: PathBuf,
    /// Directory for what is remembered of compiled code: its digests. Must be writable by nobody else.
    pub aot_state_dir: PathBuf,
}

/// A profile whose tools can be listed and called. Cheap to clone.
#[derive(Clone)]
pub struct Toolbox {
    tools: std::sync::Arc<Vec<ToolDef>>,
}

impl Toolbox {
    /// Makes a profile's tools callable.
    ///
    /// Runs no component code and compiles nothing when every component carries its tool list (`pyro:manifest`); a
    /// component without one is compiled and asked, once per digest.
    ///
    /// # Errors
    /// Everything that is wrong with the components' tool lists or with `[tool.NAME]`.
    pub fn load(_profile: &ResolvedProfile, _host: HostServices) -> Result<Toolbox, LoadError> {
        Ok(Toolbox { tools: std::sync::Arc::new(Vec::new()) })
    }

    /// Starts compiling, on threads of its own, what is not compiled yet. Calls wait for it; so does nobody else.
    pub fn warm(&self) {}

    /// Returns the tools, in the order of the profile and then of each component.
    pub fn tools(&self) -> &[ToolDef] {
        &self.tools
    }

    /// Returns one tool.
    pub fn tool(&self, name: &str) -> Option<&ToolDef> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// Calls a tool in a fresh instance of its component. Must run in a tokio runtime. Dropping the future cancels:
    /// the instance, its commands and its ephemeral machines end with it.
    ///
    /// # Errors
    /// See [`ToolError::code`].
    pub async fn call(
        &self,
        name: &str,
        _arguments: Map<String, Value>,
        _options: CallOptions,
    ) -> Result<ToolOutcome, ToolError> {
        Err(ToolError::new("unknown_tool", format!("unknown tool `{name}`")))
    }
}
