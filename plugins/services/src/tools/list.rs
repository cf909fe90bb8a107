//! `service_list`.

use pyro_plugin_guest::{Guest, OneWorkspace, name};
use pyro_plugin_sdk::vm::services;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Serialize;

use crate::shape::Service;

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub count: usize,
    pub running_count: usize,
    /// Sorted by name
    pub services: Vec<Service>,
}

/// Lists services.
pub struct ServiceList;

impl Tool for ServiceList {
    const NAME: &'static str = "service_list";
    const DESCRIPTION: &'static str = "Lists a workspace's services.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneWorkspace;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "service", "list"],
            positionals: vec!["workspace_id"],
            human: Some(Human::table(
                "services",
                &["service_name", "state", "pid", "started_at", "exit_code", "published_ports", "command"],
            )),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let mut services: Vec<Service> = services::list(guest.machine())?
            .into_iter()
            .filter(|info| name("service_name", &info.name).is_ok())
            .map(|info| Service::new(&arguments.workspace_id, guest.execution_mode(), info))
            .collect();
        services.sort_by(|a, b| a.service_name.cmp(&b.service_name));
        let running_count = services.iter().filter(|service| service.state == "running").count();
        Ok(Output { workspace_id: arguments.workspace_id, count: services.len(), running_count, services })
    }
}
