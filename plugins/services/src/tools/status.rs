//! `service_status`.

use pyro_plugin_guest::{Guest, name};
use pyro_plugin_sdk::vm::services;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::shape::{FIELDS, Service, failed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Service
    pub service_name: String,
}

/// Looks at one service.
pub struct ServiceStatus;

impl Tool for ServiceStatus {
    const NAME: &'static str = "service_status";
    const DESCRIPTION: &'static str = "Shows one service's state.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Service;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "service", "status"],
            positionals: vec!["workspace_id", "service_name"],
            human: Some(Human::fields(&FIELDS)),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Service, ToolError> {
        let name = name("service_name", &arguments.service_name)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let info =
            services::status(guest.machine(), &name).map_err(|error| failed(&arguments.workspace_id, &name, error))?;
        Ok(Service::new(&arguments.workspace_id, guest.execution_mode(), info))
    }
}
