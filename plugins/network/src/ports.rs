//! Ports as callers pass them and as they look in results.

use std::collections::BTreeSet;

use pyro_plugin_guest::{Guest, invalid};
use pyro_plugin_sdk::vm::ports::{self as host_ports, Published};
use pyro_plugin_sdk::vm::services::{self, ServiceInfo};
use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::{Deserialize, Serialize};

/// A port to publish.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortInput {
    /// Where the guest listens
    #[schemars(range(min = 1))]
    pub guest_port: u16,
    /// On 127.0.0.1; any free one when absent
    #[schemars(range(min = 1025))]
    pub host_port: Option<u16>,
}

/// A published port.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Port {
    /// 127.0.0.1
    pub host: String,
    pub host_port: u16,
    pub guest_port: u16,
    /// tcp
    pub protocol: String,
}

impl From<Published> for Port {
    fn from(published: Published) -> Port {
        Port {
            host: published.host,
            host_port: published.host_port,
            guest_port: published.guest_port,
            protocol: "tcp".to_owned(),
        }
    }
}

/// Refuses ports of which two would be the same listener.
///
/// # Errors
/// `invalid_argument`.
pub fn check(ports: &[PortInput]) -> Result<(), ToolError> {
    let mut seen = BTreeSet::new();
    for port in ports {
        if let Some(host_port) = port.host_port
            && !seen.insert(host_port)
        {
            return Err(invalid(format!("published_ports names host_port {host_port} twice")));
        }
    }
    Ok(())
}

/// Returns the published ports, after those of services that do not run were withdrawn: nobody is told when one ends.
///
/// # Errors
/// Those of the host. A component that may not ask for services leaves the ports as they are.
pub fn settled(guest: &Guest) -> Result<Vec<Published>, ToolError> {
    // In this order: a service that is started meanwhile runs before it has a port.
    let published = host_ports::list(guest.machine())?;
    if published.iter().all(|port| port.owner.is_none()) {
        return Ok(published);
    }
    let services = match services::list(guest.machine()) {
        Err(error) if error.code == "denied" => return Ok(published),
        services => services?,
    };
    let (ended, kept): (Vec<_>, Vec<_>) = published.into_iter().partition(|port| is_left(port, &services));
    for port in ended {
        match host_ports::unpublish(guest.machine(), port.host_port) {
            // Somebody else was quicker.
            Err(error) if error.code == "not_found" => {}
            other => other?,
        }
    }
    Ok(kept)
}

/// Whether a port goes with a service that does not run.
fn is_left(port: &Published, services: &[ServiceInfo]) -> bool {
    let runs = |owner: &String| services.iter().any(|service| service.running && service.name == *owner);
    port.owner.as_ref().is_some_and(|owner| !runs(owner))
}

/// Returns the ports that go with a service, sorted by guest port.
pub fn of_service(published: &[Published], service: &str) -> Vec<Port> {
    let mut ports: Vec<Port> = published
        .iter()
        .filter(|port| port.owner.as_deref() == Some(service))
        .map(|port| Port::from(port.clone()))
        .collect();
    ports.sort_by_key(|port| (port.guest_port, port.host_port));
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_port_is_given_once() {
        let port = |host_port| PortInput { guest_port: 80, host_port };
        assert!(check(&[port(None), port(None), port(Some(8080))]).is_ok());
        let error = check(&[port(Some(8080)), port(Some(8080))]).unwrap_err();
        assert_eq!(error.message, "published_ports names host_port 8080 twice");
    }

    fn published(guest_port: u16, owner: Option<&str>) -> Published {
        Published {
            guest_port,
            host: "127.0.0.1".into(),
            host_port: guest_port + 8000,
            owner: owner.map(str::to_owned),
        }
    }

    #[test]
    fn a_port_is_left_when_its_service_does_not_run() {
        let service = |name: &str, running| ServiceInfo {
            name: name.to_owned(),
            pid: None,
            running,
            started_at: 1.0,
            ended_at: None,
            exit_code: None,
            signal: None,
            meta: Vec::new(),
        };
        let services = [service("web", true), service("db", false)];
        for (owner, left) in [(Some("web"), false), (None, false), (Some("db"), true), (Some("forgotten"), true)] {
            assert_eq!(is_left(&published(80, owner), &services), left, "{owner:?}");
        }
    }

    #[test]
    fn a_service_has_its_own_ports() {
        let all = [published(90, Some("web")), published(80, Some("web")), published(70, None)];
        let ports: Vec<u16> = of_service(&all, "web").into_iter().map(|port| port.guest_port).collect();
        assert_eq!(ports, [80, 90]);
        assert_eq!(of_service(&all, "db"), []);
    }
}
