//! `workspace_list`.

use std::collections::BTreeMap;

use pyro_plugin_sdk::vm::workspaces::{self, WorkspaceInfo};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub count: usize,
    /// Most recent activity first
    pub workspaces: Vec<Item>,
}

/// A workspace in a list.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Item {
    pub workspace_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub environment: String,
    /// started or stopped
    pub state: String,
    /// Unix seconds, as all times
    pub created_at: f64,
    pub last_activity_at: f64,
    pub expires_at: f64,
    pub command_count: u64,
}

impl From<WorkspaceInfo> for Item {
    fn from(info: WorkspaceInfo) -> Item {
        Item {
            workspace_id: info.id,
            name: info.name,
            labels: info.labels.into_iter().collect(),
            environment: info.environment,
            state: info.state,
            created_at: info.created_at,
            last_activity_at: info.last_activity_at,
            expires_at: info.expires_at,
            command_count: info.command_count,
        }
    }
}

/// Lists workspaces.
pub struct WorkspaceList;

impl Tool for WorkspaceList {
    const NAME: &'static str = "workspace_list";
    const DESCRIPTION: &'static str = "Lists workspaces, the most recent first.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "list"],
            human: Some(Human::table(
                "workspaces",
                &[
                    "workspace_id",
                    "name",
                    "environment",
                    "state",
                    "last_activity_at",
                    "expires_at",
                    "command_count",
                    "labels",
                ],
            )),
            ..Cli::default()
        })
    }

    fn call(_arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let workspaces: Vec<Item> = workspaces::list()?.into_iter().map(Item::from).collect();
        Ok(Output { count: workspaces.len(), workspaces })
    }
}
