//! Profiles: TOML manifests that name components, what they may do, and how their tools are narrowed.
//!
//! A file becomes a [`ResolvedProfile`] in one pass that keeps going after a mistake, so that `pyro profile check`
//! shows all of them: keys and types, then each component's bytes, digest, imports against grants, and tool list, then
//! `[tool.NAME]` against the tools' schemas. No component code runs here and nothing is compiled.
//!
//! Deliberately absent: fetching components from a registry, and any default that depends on the environment.

mod amend;
mod describe;
mod grants;
mod imports;
mod narrow;
mod raw;
mod resolve;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

pub use describe::{ComponentDescription, ProfileDescription, ToolDescription};
pub use grants::{ExecScope, FilesScope, GrantSet, MachinesScope, SecretsScope, WholeScope};
pub(crate) use narrow::{BoundTool, bind_tools};
pub(crate) use raw::{Locator, Narrowing};
pub use resolve::read_component;

use crate::component::ComponentScan;

/// What is embedded in the program that hosts components.
#[derive(Clone, Copy, Debug, Default)]
pub struct Builtins {
    /// Components by the name that follows `builtin:` in a `source`.
    pub components: &'static [(&'static str, &'static [u8])],
    /// Profiles by name, as TOML.
    pub profiles: &'static [(&'static str, &'static str)],
}

/// A checked profile: every default applied, every component read and hashed.
#[derive(Clone, Debug)]
pub struct ResolvedProfile {
    /// The profile's own name.
    pub name: String,
    /// One sentence for people; may be empty.
    pub description: String,
    /// What a client tells its model about the tools, when given.
    pub instructions: Option<String>,
    /// In the order of the file.
    pub components: Vec<ResolvedComponent>,
    /// `[host]`.
    pub host: HostSettings,
    /// The file or the built-in name it came from.
    pub origin: String,
    pub(crate) narrowing: Vec<Narrowing>,
    pub(crate) locator: Locator,
}

/// `[host]`: what tools may touch of the host, and how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostSettings {
    /// Absolute paths below which tools may read.
    pub read: Vec<PathBuf>,
    /// Absolute paths below which tools may write.
    pub write: Vec<PathBuf>,
    /// Machines at once; none means the engine's default.
    pub max_machines: Option<u32>,
    /// Calls at once; none means [`crate::DEFAULT_MAX_CALLS`].
    pub max_calls: Option<u32>,
    /// Which engine to run machines on: `auto`, `kvm` or `qemu`.
    pub engine: pyro_engine::EngineChoice,
}

/// One `[components.NAME]`.
#[derive(Clone, Debug)]
pub struct ResolvedComponent {
    /// Its name in the profile.
    pub name: String,
    /// The `source` as written.
    pub source: String,
    /// SHA-256 of its bytes, as `sha256:` and 64 hex digits.
    pub digest: String,
    /// What it may do.
    pub grants: GrantSet,
    /// The tools to offer, when the profile picks some.
    pub tools: Option<Vec<String>>,
    /// What a call of it may use.
    pub limits: Limits,
    /// Handed to the component as it is.
    pub config: Map<String, Value>,
    /// Its line in the manifest.
    pub(crate) line: usize,
    pub(crate) tools_line: usize,
    pub(crate) bytes: ComponentBytes,
    pub(crate) scan: Arc<ComponentScan>,
}

/// A component's wasm.
#[derive(Clone)]
pub(crate) enum ComponentBytes {
    Builtin(&'static [u8]),
    Read(Arc<[u8]>),
}

impl ComponentBytes {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            ComponentBytes::Builtin(bytes) => bytes,
            ComponentBytes::Read(bytes) => bytes,
        }
    }

    /// Returns whether it came with this program.
    pub(crate) fn is_builtin(&self) -> bool {
        matches!(self, ComponentBytes::Builtin(_))
    }
}

impl std::fmt::Debug for ComponentBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.as_slice().len())
    }
}

/// What one call of a component may use. All of it is always enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Linear memory, in MiB.
    pub memory_mib: u32,
    /// CPU time of the component's own code and of what the host computes for it, in milliseconds.
    pub cpu_ms: u32,
    /// Wall clock in seconds, without the time spent waiting for a microVM: those waits end by limits of their own,
    /// the boot limit and each command's timeout.
    pub call_seconds: u32,
    /// Bytes of a result's text and data together.
    pub output_bytes: u32,
    /// Resource handles alive at once.
    pub handles: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { memory_mib: 64, cpu_ms: 2_000, call_seconds: 60, output_bytes: 1024 * 1024, handles: 1_000 }
    }
}
