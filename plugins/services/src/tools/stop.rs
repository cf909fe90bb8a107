//! `service_stop`.

use pyro_plugin_guest::{Guest, name};
use pyro_plugin_sdk::vm::services::{self, ServiceInfo};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::notes::Notes;
use crate::shape::{Service, failed};

/// Between TERM and KILL.
const GRACE_MS: u32 = 5_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Service
    pub service_name: String,
}

/// Stops a service.
pub struct ServiceStop;

impl Tool for ServiceStop {
    const NAME: &'static str = "service_stop";
    const DESCRIPTION: &'static str = "Stops a service: TERM, and KILL after 5 s.";
    const HINTS: Hints = Hints { destructive: Some(true), idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Service;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "service", "stop"],
            positionals: vec!["workspace_id", "service_name"],
            human: Some(Human::summary("service {service_name} is {state}: {stop_reason}")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Service, ToolError> {
        let name = name("service_name", &arguments.service_name)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let info = stop(&guest, &arguments.workspace_id, &name)?;
        Ok(Service::new(&arguments.workspace_id, guest.execution_mode(), info))
    }
}

/// Stops a service and notes how; one that does not run is left as it is.
pub fn stop(guest: &Guest, workspace_id: &str, name: &str) -> Result<ServiceInfo, ToolError> {
    let told = |error| failed(workspace_id, name, error);
    let info = services::status(guest.machine(), name).map_err(told)?;
    if !info.running {
        return Ok(info);
    }
    // Noted first: who waits for the service sees with its end that it did not end by itself. Another reason that is
    // there is of a start that has given it up.
    let noted = Notes::read(&info.meta).stop_reason.filter(|noted| noted != reason(None)).is_some();
    let note =
        |reason: &str| services::annotate(guest.machine(), name, &[("stop_reason".to_owned(), reason.to_owned())]);
    if !noted {
        note(reason(None)).map_err(told)?;
    }
    let ended = services::stop(guest.machine(), name, GRACE_MS).map_err(told)?;
    match reason(ended.signal.as_deref()) {
        "sigkill" if !noted => note("sigkill").map_err(told),
        _ => Ok(ended),
    }
}

/// A process that ended itself on TERM was stopped by it all the same.
fn reason(signal: Option<&str>) -> &'static str {
    match signal {
        Some("SIGKILL") => "sigkill",
        _ => "sigterm",
    }
}

#[cfg(test)]
mod tests {
    use super::reason;

    #[test]
    fn the_reason_is_the_signal_that_worked() {
        assert_eq!(reason(Some("SIGKILL")), "sigkill");
        assert_eq!(reason(Some("SIGTERM")), "sigterm");
        assert_eq!(reason(None), "sigterm");
    }
}
