//! A tool as its component states it, what an interceptor adds to others, and the JSON form of a component's whole list.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The version of the manifest's form.
const MANIFEST_VERSION: u32 = 1;

/// Most tools of one component. Clients get worse at choosing long before.
const MAX_TOOLS: usize = 128;

/// Most tools that one interceptor takes part in.
const MAX_AMENDMENTS: usize = 128;

/// Everything that a component lists.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub(crate) tools: Vec<ToolSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) amendments: Vec<AmendmentSpec>,
}

/// What an interceptor adds to one tool, as in the WIT record `amendment`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AmendmentSpec {
    pub(crate) tool: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) input_properties: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) required: Vec<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) output_properties: Map<String, Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) meta: BTreeMap<String, String>,
}

/// The key of an amendment's meta with the results that the interceptor's answers leave out.
pub(crate) const OPTIONAL_RESULTS: &str = "optional_results";

impl AmendmentSpec {
    /// Returns the tool's results that the interceptor leaves out when it answers in the tool's place; none when what is
    /// there is no list of names.
    pub(crate) fn optional_results(&self) -> Option<Vec<String>> {
        self.meta.get(OPTIONAL_RESULTS).map_or_else(|| Some(Vec::new()), |text| serde_json::from_str(text).ok())
    }
}

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

/// The section's form. A key that this pyro does not know is for a newer one.
#[derive(Serialize, Deserialize)]
struct Manifest {
    manifest: u32,
    tools: Vec<ToolSpec>,
    #[serde(default)]
    amendments: Vec<AmendmentSpec>,
}

/// Returns what a `pyro:manifest` section lists, or what is wrong with it.
pub(crate) fn parse_manifest(json: &[u8]) -> Result<Listing, String> {
    let manifest: Manifest = serde_json::from_slice(json).map_err(|error| format!("is not valid: {error}"))?;
    if manifest.manifest != MANIFEST_VERSION {
        return Err(format!("has version {}, this pyro reads {MANIFEST_VERSION}", manifest.manifest));
    }
    let listing = Listing { tools: manifest.tools, amendments: manifest.amendments };
    if listing.tools.len() > MAX_TOOLS {
        return Err(format!("lists {} tools, more than {MAX_TOOLS}", listing.tools.len()));
    }
    if listing.amendments.len() > MAX_AMENDMENTS {
        return Err(format!("lists {} amendments, more than {MAX_AMENDMENTS}", listing.amendments.len()));
    }
    Ok(listing)
}

/// Returns the `pyro:manifest` section's text for `listing`.
pub(crate) fn manifest_json(listing: &Listing) -> String {
    let mut json = serde_json::json!({ "manifest": MANIFEST_VERSION, "tools": listing.tools });
    if !listing.amendments.is_empty() {
        json["amendments"] = serde_json::json!(listing.amendments);
    }
    json.to_string()
}

/// Returns where two lists differ, as `tool `a`: description`; none when they say the same.
pub(crate) fn first_difference(stated: &Listing, listed: &Listing) -> Option<String> {
    tool_difference(&stated.tools, &listed.tools)
        .or_else(|| amendment_difference(&stated.amendments, &listed.amendments))
}

fn amendment_difference(stated: &[AmendmentSpec], listed: &[AmendmentSpec]) -> Option<String> {
    let one_way = |from: &[AmendmentSpec], to: &[AmendmentSpec]| {
        from.iter().find(|amendment| !to.contains(amendment)).map(|amendment| amendment.tool.clone())
    };
    let tool = one_way(stated, listed).or_else(|| one_way(listed, stated))?;
    Some(format!("what is added to tool `{tool}` is another in `list-amendments`"))
}

fn tool_difference(stated: &[ToolSpec], listed: &[ToolSpec]) -> Option<String> {
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
