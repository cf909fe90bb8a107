//! `service_restart`.

use pyro_plugin_guest::{Guest, name};
use pyro_plugin_sdk::vm::services;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::notes::Notes;
use crate::shape::{FIELDS, Service, failed};
use crate::tools::stop::stop;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Service, running or not
    pub service_name: String,
}

/// Stops a service and starts it again as it was started.
pub struct ServiceRestart;

impl Tool for ServiceRestart {
    const NAME: &'static str = "service_restart";
    const DESCRIPTION: &'static str = "Stops a service and starts it again as it was started.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Service;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "service", "restart"],
            positionals: vec!["workspace_id", "service_name"],
            human: Some(Human::fields(&FIELDS)),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, call: &Call) -> Result<Service, ToolError> {
        let name = name("service_name", &arguments.service_name)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        services::status(guest.machine(), &name).map_err(|error| failed(&arguments.workspace_id, &name, error))?;
        // Before anything is stopped: a secret may be gone.
        services::rebind(guest.machine(), &name)?;
        let old = stop(&guest, &arguments.workspace_id, &name)?;
        let notes = Notes { ready_at: None, stop_reason: None, ..Notes::read(&old.meta) };
        let info = crate::start::start(&guest, &arguments.workspace_id, &name, &notes, call)?;
        Ok(Service::new(&arguments.workspace_id, guest.execution_mode(), info))
    }
}
