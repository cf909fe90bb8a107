//! `port_publish`.

use pyro_plugin_guest::Guest;
use pyro_plugin_sdk::vm::ports;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::ports::Port;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Where the guest listens
    #[schemars(range(min = 1))]
    pub guest_port: u16,
    /// On 127.0.0.1; any free one when absent
    #[schemars(range(min = 1025))]
    pub host_port: Option<u16>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    #[serde(flatten)]
    pub port: Port,
}

/// Publishes a port.
pub struct PortPublish;

impl Tool for PortPublish {
    const NAME: &'static str = "port_publish";
    const DESCRIPTION: &'static str = "Makes a port of the guest reachable on the host, until the workspace stops.";
    const HINTS: Hints = Hints { open_world: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "port", "publish"],
            positionals: vec!["workspace_id", "guest_port"],
            id: Some("host_port"),
            human: Some(Human::fields(&["host", "host_port", "guest_port"])),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let published = ports::publish(guest.machine(), arguments.guest_port, arguments.host_port, None)?;
        Ok(Output { workspace_id: arguments.workspace_id, port: published.into() })
    }
}
