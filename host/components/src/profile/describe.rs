//! A profile as data, for `pyro profile show`.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{GrantSet, HostSettings, Limits};
use crate::tool::Annotations;

/// Everything a profile amounts to.
#[derive(Clone, Debug, Serialize)]
pub struct ProfileDescription {
    /// The profile's name.
    pub name: String,
    /// One sentence for people.
    pub description: String,
    /// The file or built-in name it came from.
    pub origin: String,
    /// What a client tells its model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// `[host]`.
    pub host: HostSettings,
    /// The components, in order.
    pub components: Vec<ComponentDescription>,
    /// The tools, in order.
    pub tools: Vec<ToolDescription>,
}

/// One component of a [`ProfileDescription`].
#[derive(Clone, Debug, Serialize)]
pub struct ComponentDescription {
    /// Its name in the profile.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// SHA-256 of its bytes.
    pub digest: String,
    /// Bytes of wasm.
    pub size: usize,
    /// The interfaces it imports.
    pub imports: Vec<String>,
    /// What the profile allows it.
    pub grants: GrantSet,
    /// What a call of it may use.
    pub limits: Limits,
    /// Its settings.
    pub config: Map<String, Value>,
}

/// One tool of a [`ProfileDescription`].
#[derive(Clone, Debug, Serialize)]
pub struct ToolDescription {
    /// Its name.
    pub name: String,
    /// The component that offers it.
    pub component: String,
    /// What it does.
    pub description: String,
    /// The arguments left after `fixed` and `hide`.
    pub arguments: Vec<String>,
    /// Arguments with a fixed value.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub fixed: Map<String, Value>,
    /// Arguments with another default.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub default: Map<String, Value>,
    /// Optional arguments taken away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hide: Vec<String>,
    /// Behaviour hints.
    pub annotations: Annotations,
}
