//! `vm_list_environments`.

use std::collections::BTreeMap;

use pyro_plugin_sdk::vm::environments::{self, Environment as Listed};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    /// Sorted by name
    pub result: Vec<Environment>,
}

/// What a microVM can be made from.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Environment {
    pub name: String,
    pub version: String,
    pub description: String,
    pub default_packages: Vec<String>,
    pub distribution: String,
    pub distribution_version: String,
    pub platform: String,
    pub installed: bool,
    /// Of the root file system, when installed
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

impl From<Listed> for Environment {
    fn from(listed: Listed) -> Environment {
        Environment {
            name: listed.name,
            version: listed.version,
            description: listed.description,
            default_packages: listed.packages,
            distribution: listed.distribution,
            distribution_version: listed.distribution_version,
            platform: listed.platform,
            installed: listed.installed,
            source_digest: listed.digest,
            metadata: listed.meta.into_iter().collect(),
        }
    }
}

/// Lists environments.
pub struct VmListEnvironments;

impl Tool for VmListEnvironments {
    const NAME: &'static str = "vm_list_environments";
    const DESCRIPTION: &'static str = "Lists what a microVM can be made from.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["vm", "list-environments"],
            human: Some(Human::table("result", &["name", "version", "installed", "description"])),
            ..Cli::default()
        })
    }

    fn call(_arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        Ok(Output { result: environments::list()?.into_iter().map(Environment::from).collect() })
    }
}
