//! A tool as its component states it, and the JSON form of a component's whole list.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the manifest's form.
const MANIFEST_VERSION: u32 = 1;

/// Most tools of one component. Clients get worse at choosing long before.
const MAX_TOOLS: usize = 128;

/// One tool, as in the WIT record `tool-def`, with its schemas parsed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolSpec {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) title: Option<String>,
    pub(crate) description: String,
    pub(crate) input_schema: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) output_schema: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) read_only: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) destructive: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idempotent: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) open_world: Option<bool>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) meta: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Manifest<T> {
    manifest: u32,
    tools: T,
}

/// Returns the tools of a `pyro:manifest` section, or what is wrong with it.
pub(crate) fn parse_manifest(json: &[u8]) -> Result<Vec<ToolSpec>, String> {
    let manifest: Manifest<Vec<ToolSpec>> =
        serde_json::from_slice(json).map_err(|error| format!("is not valid: {error}"))?;
    if manifest.manifest != MANIFEST_VERSION {
        return Err(format!("has version {}, this pyro reads {MANIFEST_VERSION}", manifest.manifest));
    }
    if manifest.tools.len() > MAX_TOOLS {
        return Err(format!("lists {} tools, more than {MAX_TOOLS}", manifest.tools.len()));
    }
    Ok(manifest.tools)
}

/// Returns the `pyro:manifest` section's text for `tools`.
pub(crate) fn manifest_json(tools: &[ToolSpec]) -> String {
    serde_json::json!({ "manifest": MANIFEST_VERSION, "tools": tools }).to_string()
}

/// Returns where two lists differ, as `tool `a`: description`; none when they say the same.
pub(crate) fn first_difference(stated: &[ToolSpec], listed: &[ToolSpec]) -> Option<String> {
    for spec in stated {
        let Some(other) = listed.iter().find(|other| other.name == spec.name) else {
            return Some(format!("tool `{}` is missing from `list-tools`", spec.name));
        };
        let pairs = [
            ("title", spec.title == other.title),
            ("description", spec.description == other.description),
            ("input schema", spec.input_schema == other.input_schema),
            ("output schema", spec.output_schema == other.output_schema),
            (
                "annotations",
                (spec.read_only, spec.destructive, spec.idempotent, spec.open_world)
                    == (other.read_only, other.destructive, other.idempotent, other.open_world),
            ),
            ("meta", spec.meta == other.meta),
        ];
        if let Some((field, _)) = pairs.into_iter().find(|(_, same)| !same) {
            return Some(format!("tool `{}` has another {field} in `list-tools`", spec.name));
        }
    }
    let extra = listed.iter().find(|other| !stated.iter().any(|spec| spec.name == other.name));
    extra.map(|spec| format!("`list-tools` has a tool `{}` more", spec.name))
}
