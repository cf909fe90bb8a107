//! `secret_set`.

use pyro_plugin_sdk::secrets::store;
use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::input::{name, source};
use crate::shape::{Secret, failed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Letters, digits, `_`
    pub name: String,
    /// The value, or
    #[schemars(extend("writeOnly" = true))]
    pub value: Option<String>,
    /// a host file that holds it
    pub file_path: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub secret: Secret,
}

/// Adds or replaces a secret.
pub struct SecretSet;

impl Tool for SecretSet {
    const NAME: &'static str = "secret_set";
    const DESCRIPTION: &'static str = "Adds or replaces a workspace's secret.";
    const HINTS: Hints = Hints { destructive: Some(true), idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "secret", "set"],
            positionals: vec!["workspace_id", "name"],
            flags: vec![
                Flag::plain("value", "value"),
                Flag::file("value-file", "value").help("A file of pyro's user whose text is the value, - for stdin"),
                Flag::plain("file", "file_path").value_name("PATH"),
            ],
            human: Some(Human::summary("secret {secret.name} is set")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let name = name("secret name", &arguments.name)?;
        let source = source(&name, arguments.value.as_deref(), arguments.file_path.as_deref())?;
        let id = arguments.workspace_id;
        let secret = store::set(&id, &name, &source).map_err(|error| failed(&id, None, error))?;
        Ok(Output { secret: secret.into(), workspace_id: id })
    }
}
