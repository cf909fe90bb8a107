//! One file per tool.

pub mod create;
pub mod delete;
pub mod diff;
pub mod export;
pub mod list;
pub mod logs;
pub mod reset;
pub mod start;
pub mod status;
pub mod stop;
pub mod sync_push;
pub mod update;

use pyro_plugin_sdk::JsonSchema;
use serde::Deserialize;

/// The arguments of a tool that only needs to know which workspace.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OneWorkspace {
    /// Workspace
    pub workspace_id: String,
}
