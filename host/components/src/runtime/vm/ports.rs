//! `pyro:vm/ports`: ports of a guest on the host's loopback.

use wasmtime::component::Resource;

use super::super::bindings::pyro::vm::{ports, types};
use super::super::state::CallState;
use super::{GUEST_LIMIT, MachineEntry, Reached, missing, sendable};

impl CallState {
    async fn reach_ports(
        &mut self,
        machine: &Resource<MachineEntry>,
    ) -> wasmtime::Result<Result<Reached, types::Error>> {
        if self.grants.ports.is_none() {
            return Ok(Err(missing("ports")));
        }
        self.reach(machine).await
    }
}

impl ports::Host for CallState {
    async fn publish(
        &mut self,
        machine: Resource<MachineEntry>,
        guest_port: u16,
        host_port: Option<u16>,
        owner: Option<String>,
    ) -> wasmtime::Result<Result<ports::Published, types::Error>> {
        if let Some(Err(problem)) = owner.as_deref().map(|owner| sendable("owner", owner)) {
            return Ok(Err(problem));
        }
        let reached = match self.reach_ports(&machine).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let published = reached.ask(GUEST_LIMIT, reached.machine.publish(guest_port, host_port, owner)).await;
        Ok(published.map(published_port))
    }

    async fn unpublish(
        &mut self,
        machine: Resource<MachineEntry>,
        host_port: u16,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        let reached = match self.reach_ports(&machine).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(reached.ask(GUEST_LIMIT, reached.machine.unpublish(host_port)).await)
    }

    async fn list(
        &mut self,
        machine: Resource<MachineEntry>,
    ) -> wasmtime::Result<Result<Vec<ports::Published>, types::Error>> {
        let reached = match self.reach_ports(&machine).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let listed = reached.ask(GUEST_LIMIT, reached.machine.published()).await;
        Ok(listed.map(|list| list.into_iter().map(published_port).collect()))
    }
}

fn published_port(port: pyro_engine::PublishedPort) -> ports::Published {
    ports::Published { guest_port: port.guest_port, host: port.host, host_port: port.host_port, owner: port.owner }
}
