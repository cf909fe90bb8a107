//! How a secret looks in results: never with its value.

use pyro_plugin_guest::absent;
use pyro_plugin_sdk::secrets::store::{self, SecretInfo};
use pyro_plugin_sdk::vm::types::Error;
use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::Serialize;

/// A secret.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Secret {
    pub name: String,
    /// literal or file
    pub source_kind: String,
}

impl From<SecretInfo> for Secret {
    fn from(info: SecretInfo) -> Secret {
        Secret { name: info.name, source_kind: info.source_kind }
    }
}

/// Returns a workspace's secrets, sorted by name.
///
/// # Errors
/// `not_found` for no such workspace.
pub fn list(workspace_id: &str) -> Result<Vec<Secret>, ToolError> {
    let listed = store::list(workspace_id).map_err(|error| failed(workspace_id, None, error))?;
    let mut secrets: Vec<Secret> = listed.into_iter().map(Secret::from).collect();
    secrets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(secrets)
}

/// Gives a failure the words of the secret tools; `name` is the secret that was asked for.
pub fn failed(workspace_id: &str, name: Option<&str>, error: Error) -> ToolError {
    match (error.code.as_str(), name) {
        ("not_found", Some(name)) => absent("secret", name, workspace_id).with_hint("list them with secret_list"),
        ("not_found", None) => ToolError::new("not_found", format!("workspace '{workspace_id}' does not exist"))
            .with_hint("list the workspaces with workspace_list"),
        _ => error.into(),
    }
}
