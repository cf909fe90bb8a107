//! `secret_remove`.

use pyro_plugin_sdk::secrets::store;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::input::name;
use crate::shape::{failed, list};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Secret
    pub name: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub name: String,
    pub removed: bool,
}

/// Forgets a secret.
pub struct SecretRemove;

impl Tool for SecretRemove {
    const NAME: &'static str = "secret_remove";
    const DESCRIPTION: &'static str = "Removes a workspace's secret.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "secret", "remove"],
            positionals: vec!["workspace_id", "name"],
            human: Some(Human::summary("secret {name} is removed")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let name = name("secret name", &arguments.name)?;
        let id = arguments.workspace_id;
        // So that a workspace that is not there is told from a secret that is not.
        list(&id)?;
        store::remove(&id, &name).map_err(|error| failed(&id, Some(&name), error))?;
        Ok(Output { workspace_id: id, name, removed: true })
    }
}
