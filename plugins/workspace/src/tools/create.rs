//! `workspace_create`.

use std::collections::BTreeMap;

use pyro_plugin_guest::defaults;
use pyro_plugin_sdk::vm::host_files;
use pyro_plugin_sdk::vm::workspaces::{self, WorkspaceConfig};
use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::shape::{Workspace, labels, name};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// As debian:12
    pub environment: String,
    #[serde(default = "defaults::vcpu_count")]
    #[schemars(range(min = 1, max = 8), description = "vCPUs")]
    pub vcpu_count: u32,
    /// Memory
    #[serde(default = "defaults::mem_mib")]
    #[schemars(range(min = 256, max = 32_768))]
    pub mem_mib: u32,
    /// Lifetime
    #[serde(default = "defaults::ttl_seconds")]
    #[schemars(range(min = 60, max = 3600))]
    pub ttl_seconds: u32,
    /// Host directory or tar to start from
    pub seed_path: Option<String>,
    /// For people
    pub name: Option<String>,
    /// For finding it
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Makes a workspace and starts it.
pub struct WorkspaceCreate;

impl Tool for WorkspaceCreate {
    const NAME: &'static str = "workspace_create";
    const DESCRIPTION: &'static str = "Creates and starts a workspace: a microVM with a persistent /workspace.";
    const HINTS: Hints = Hints { open_world: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Workspace;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "create"],
            positionals: vec!["environment"],
            flags: vec![Flag::plain("label", "labels").value_name("KEY=VALUE").help("A label; may be repeated")],
            id: Some("workspace_id"),
            human: Some(Human::fields(&[
                "workspace_id",
                "name",
                "environment",
                "state",
                "expires_at",
                "workspace_seed.entry_count",
            ])),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Workspace, ToolError> {
        let name = arguments.name.as_deref().map(name).transpose()?;
        let labels = labels(&arguments.labels)?;
        let seed = arguments.seed_path.as_deref().map(host_files::read_archive).transpose()?;
        let workspace = workspaces::create(WorkspaceConfig {
            environment: arguments.environment,
            vcpu_count: arguments.vcpu_count,
            mem_mib: arguments.mem_mib,
            ttl_seconds: arguments.ttl_seconds,
            name,
            labels,
            seed,
            meta: Vec::new(),
        })?;
        Ok(workspace.info()?.into())
    }
}
