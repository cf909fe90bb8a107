//! `port_unpublish`.

use pyro_plugin_guest::Guest;
use pyro_plugin_sdk::vm::ports;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// As in port_list
    #[schemars(range(min = 1))]
    pub host_port: u16,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub host_port: u16,
    pub unpublished: bool,
}

/// Takes a published port back.
pub struct PortUnpublish;

impl Tool for PortUnpublish {
    const NAME: &'static str = "port_unpublish";
    const DESCRIPTION: &'static str = "Takes a published port back; its connections end.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "port", "unpublish"],
            positionals: vec!["workspace_id", "host_port"],
            human: Some(Human::summary("port {host_port} is not published any more")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let (id, port) = (arguments.workspace_id, arguments.host_port);
        let guest = Guest::open(&id, Self::NAME)?;
        ports::unpublish(guest.machine(), port).map_err(|error| match error.code.as_str() {
            "not_found" => ToolError::new("not_found", format!("port {port} is not published by workspace '{id}'"))
                .with_hint("list them with port_list"),
            _ => error.into(),
        })?;
        Ok(Output { workspace_id: id, host_port: port, unpublished: true })
    }
}
