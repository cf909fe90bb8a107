//! `secret_list`.

use pyro_plugin_guest::OneWorkspace;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Serialize;

use crate::shape::{Secret, list};

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub count: usize,
    /// Sorted by name
    pub secrets: Vec<Secret>,
}

/// Lists secrets.
pub struct SecretList;

impl Tool for SecretList {
    const NAME: &'static str = "secret_list";
    const DESCRIPTION: &'static str = "Lists a workspace's secrets, without their values.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneWorkspace;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "secret", "list"],
            positionals: vec!["workspace_id"],
            human: Some(Human::table("secrets", &["name", "source_kind"])),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Output, ToolError> {
        let secrets = list(&arguments.workspace_id)?;
        Ok(Output { workspace_id: arguments.workspace_id, count: secrets.len(), secrets })
    }
}
