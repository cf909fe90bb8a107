//! `port_list`.

use pyro_plugin_guest::{Guest, OneWorkspace};
use pyro_plugin_sdk::vm::ports::Published;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Serialize;

use crate::ports::{Port, settled};

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub count: usize,
    /// Sorted by host port
    pub ports: Vec<OwnedPort>,
}

/// A published port and the service it goes with.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OwnedPort {
    #[serde(flatten)]
    pub port: Port,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
}

impl From<Published> for OwnedPort {
    fn from(published: Published) -> OwnedPort {
        OwnedPort { service_name: published.owner.clone(), port: published.into() }
    }
}

/// Lists published ports.
pub struct PortList;

impl Tool for PortList {
    const NAME: &'static str = "port_list";
    const DESCRIPTION: &'static str = "Lists a workspace's published ports.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneWorkspace;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "port", "list"],
            positionals: vec!["workspace_id"],
            human: Some(Human::table("ports", &["host", "host_port", "guest_port", "service_name"])),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let mut ports: Vec<OwnedPort> = settled(&guest)?.into_iter().map(OwnedPort::from).collect();
        ports.sort_by_key(|port| port.port.host_port);
        Ok(Output { workspace_id: arguments.workspace_id, count: ports.len(), ports })
    }
}
