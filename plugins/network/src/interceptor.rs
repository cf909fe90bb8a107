//! Ports and network policies in other groups' tools.

use pyro_plugin_guest::{Guest, WORKSPACE_RETURNING};
use pyro_plugin_sdk::vm::ports::{self as host_ports, Published};
use pyro_plugin_sdk::vm::services;
use pyro_plugin_sdk::{Amendment, Call, Decision, Flag, Interceptor, JsonSchema, Outcome, ToolError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ports::{Port, PortInput, check, of_service, settled};

/// The tool that makes a workspace.
const CREATE: &str = "workspace_create";
/// The tools that make a microVM.
const VM_TOOLS: [&str; 2] = ["vm_create", "vm_run"];
/// The tool that starts a service.
const START: &str = "service_start";
/// The tools that return a service; `service_start` is one too.
const SERVICE_TOOLS: [&str; 4] = ["service_status", "service_logs", "service_stop", "service_restart"];
/// The tool that returns all services.
const LIST: &str = "service_list";
/// Between TERM and KILL of a service whose port cannot be published.
const GRACE_MS: u32 = 5_000;

/// A policy that works.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Policy {
    #[default]
    Off,
}

/// What `workspace_create` takes besides.
#[derive(Debug, Deserialize, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used: the host has checked the value, and there is one")]
pub struct Creating {
    /// off: no network
    #[serde(default)]
    network_policy: Policy,
}

/// What a tool that makes a microVM takes besides.
#[derive(Debug, Deserialize, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used: the host has checked the value, and there is one")]
pub struct Booting {
    /// false: no network
    #[serde(default)]
    #[schemars(extend("enum" = [false]))]
    network: bool,
}

/// What `service_start` takes besides.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Starting {
    /// Reachable on the host once ready
    #[serde(default)]
    pub published_ports: Vec<PortInput>,
}

/// What a tool that returns a workspace returns besides.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Networked {
    /// off
    pub network_policy: String,
    pub network_enabled: bool,
}

/// What a tool that returns a service returns besides.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Publishing {
    pub published_ports: Vec<Port>,
}

/// Takes part in the tools that make machines and in those that return workspaces and services.
pub struct Network;

impl Interceptor for Network {
    fn amendments() -> Vec<Amendment> {
        let mut amendments = vec![
            Amendment::of(CREATE).input::<Creating>().output::<Networked>(),
            Amendment::of(START).input::<Starting>().output::<Publishing>().flags(&[Flag::record(
                "publish",
                "published_ports",
                "host_port",
                ':',
                "guest_port",
            )
            .left_optional()
            .value_name("[HOST:]GUEST")
            .help("A port to publish on 127.0.0.1; may be repeated")]),
            Amendment::of(LIST),
        ];
        amendments.extend(WORKSPACE_RETURNING.map(|tool| Amendment::of(tool).output::<Networked>()));
        amendments.extend(VM_TOOLS.map(|tool| Amendment::of(tool).input::<Booting>()));
        amendments.extend(SERVICE_TOOLS.map(|tool| Amendment::of(tool).output::<Publishing>()));
        amendments
    }

    fn before(tool: &str, arguments: &Map<String, Value>, _call: &Call) -> Result<Decision, ToolError> {
        if tool == START {
            check(&starting(arguments)?.published_ports)?;
        }
        Ok(Decision::Proceed)
    }

    fn after(
        tool: &str,
        arguments: &Map<String, Value>,
        mut outcome: Outcome,
        _call: &Call,
    ) -> Result<Option<Outcome>, ToolError> {
        let Some(result) = outcome.structured.as_mut() else { return Ok(None) };
        if tool == CREATE || WORKSPACE_RETURNING.contains(&tool) {
            result.insert("network_policy".to_owned(), json!("off"));
            result.insert("network_enabled".to_owned(), json!(false));
            return Ok(Some(outcome));
        }
        if tool != START && tool != LIST && !SERVICE_TOOLS.contains(&tool) {
            return Ok(None);
        }
        let Some(id) = arguments.get("workspace_id").and_then(Value::as_str) else { return Ok(None) };
        let guest = Guest::open(id, tool)?;
        if tool == START && is_running(result) {
            publish(&guest, result, &starting(arguments)?.published_ports)?;
        }
        let published = settled(&guest)?;
        if let Some(Value::Array(services)) = result.get_mut("services") {
            services.iter_mut().filter_map(Value::as_object_mut).for_each(|service| tell(service, &published));
        } else {
            tell(result, &published);
        }
        Ok(Some(outcome))
    }
}

/// This interceptor's own among a call's arguments.
fn starting(arguments: &Map<String, Value>) -> Result<Starting, ToolError> {
    serde_json::from_value(Value::Object(arguments.clone()))
        .map_err(|error| pyro_plugin_guest::invalid(format!("published_ports: {error}")))
}

fn is_running(service: &Map<String, Value>) -> bool {
    service.get("state").is_some_and(|state| state == "running")
}

/// Publishes the ports of a service that has just started. When one cannot be, the service is stopped and failed.
fn publish(guest: &Guest, service: &mut Map<String, Value>, ports: &[PortInput]) -> Result<(), ToolError> {
    let Some(name) = service.get("service_name").and_then(Value::as_str).map(str::to_owned) else { return Ok(()) };
    for port in ports {
        let Err(error) = host_ports::publish(guest.machine(), port.guest_port, port.host_port, Some(&name)) else {
            continue;
        };
        // Another call may have ended it meanwhile, and started another of its name.
        let there = services::status(guest.machine(), &name)?;
        let is_this = there.running && there.pid.map(u64::from) == service.get("pid").and_then(Value::as_u64);
        let info = if is_this {
            let note = [("stop_reason".to_owned(), "published_port_failed".to_owned())];
            services::annotate(guest.machine(), &name, &note)?;
            services::stop(guest.machine(), &name, GRACE_MS)?
        } else {
            there
        };
        service.insert("state".to_owned(), json!("failed"));
        service.insert("stop_reason".to_owned(), json!("published_port_failed"));
        service.insert("error".to_owned(), json!(error.message));
        service.shift_remove("pid");
        if let Some(ended_at) = info.ended_at {
            service.insert("ended_at".to_owned(), json!(ended_at));
        }
        if let Some(exit_code) = info.exit_code {
            service.insert("exit_code".to_owned(), json!(exit_code));
        }
        return Ok(());
    }
    Ok(())
}

/// Says what ports a service has.
fn tell(service: &mut Map<String, Value>, published: &[Published]) {
    let Some(name) = service.get("service_name").and_then(Value::as_str) else { return };
    let ports = of_service(published, name);
    service.insert("published_ports".to_owned(), serde_json::to_value(ports).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_has_only_values_that_work() {
        let amendments: Vec<Value> =
            Network::amendments().into_iter().map(|amendment| serde_json::to_value(amendment).unwrap()).collect();
        let of = |tool: &str| amendments.iter().find(|amendment| amendment["tool"] == tool).unwrap();
        let policy = &of("workspace_create")["input_properties"]["network_policy"];
        assert_eq!((&policy["enum"], &policy["default"]), (&json!(["off"]), &json!("off")));
        for tool in ["vm_create", "vm_run"] {
            let network = &of(tool)["input_properties"]["network"];
            assert_eq!((&network["enum"], &network["default"]), (&json!([false]), &json!(false)), "{tool}");
        }
        let port = &of("service_start")["input_properties"]["published_ports"]["items"];
        assert_eq!(port["required"], json!(["guest_port"]));
        assert_eq!(port["properties"]["host_port"]["minimum"], json!(1025));
    }
}
