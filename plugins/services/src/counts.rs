//! How many services a workspace has, in the tools that return workspaces.
//!
//! Those tools know nothing of services, so that a profile without them does not speak of any.

use std::collections::BTreeMap;

use pyro_plugin_guest::{WORKSPACE_RETURNING, open};
use pyro_plugin_sdk::vm::workspaces::{self, WorkspaceInfo};
use pyro_plugin_sdk::{Amendment, Call, Decision, Interceptor, JsonSchema, Outcome, ToolError};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The tool that makes a workspace; it returns one too.
const CREATE: &str = "workspace_create";
/// The tool that returns all workspaces.
const LIST: &str = "workspace_list";

/// What a tool that returns a workspace returns besides.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Counted {
    pub service_count: u32,
    pub running_service_count: u32,
}

/// Takes part in the tools that return workspaces.
pub struct Counts;

impl Interceptor for Counts {
    fn amendments() -> Vec<Amendment> {
        let returning = [CREATE].into_iter().chain(WORKSPACE_RETURNING);
        returning.map(|tool| Amendment::of(tool).output::<Counted>()).chain([Amendment::of(LIST)]).collect()
    }

    fn before(_tool: &str, _arguments: &Map<String, Value>, _call: &Call) -> Result<Decision, ToolError> {
        Ok(Decision::Proceed)
    }

    fn after(
        _tool: &str,
        _arguments: &Map<String, Value>,
        mut outcome: Outcome,
        _call: &Call,
    ) -> Result<Option<Outcome>, ToolError> {
        let Some(result) = outcome.structured.as_mut() else { return Ok(None) };
        if let Some(id) = result.get("workspace_id").and_then(Value::as_str) {
            let info = open(id)?.info()?;
            count(result, &info);
        } else if let Some(Value::Array(items)) = result.get_mut("workspaces") {
            let known: BTreeMap<String, WorkspaceInfo> =
                workspaces::list()?.into_iter().map(|info| (info.id.clone(), info)).collect();
            for item in items.iter_mut().filter_map(Value::as_object_mut) {
                // One that was deleted meanwhile keeps its place without counts.
                let id = item.get("workspace_id").and_then(Value::as_str).unwrap_or_default();
                if let Some(info) = known.get(id) {
                    count(item, info);
                }
            }
        }
        Ok(Some(outcome))
    }
}

fn count(workspace: &mut Map<String, Value>, info: &WorkspaceInfo) {
    workspace.insert("service_count".to_owned(), json!(info.service_count));
    workspace.insert("running_service_count".to_owned(), json!(info.running_service_count));
}
