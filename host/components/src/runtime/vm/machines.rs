//! `pyro:vm/machines`: machines that end with the call.

use std::sync::Arc;
use std::time::Duration;

use pyro_engine::{Lifetime, MachineSpec};
use wasmtime::component::Resource;

use super::super::bindings::pyro::vm::{machines, types};
use super::super::state::CallState;
use super::{MachineEntry, Origin, denied, error, machine_info, missing};

impl machines::Host for CallState {
    async fn run_ephemeral(
        &mut self,
        config: machines::MachineConfig,
    ) -> wasmtime::Result<Result<Resource<MachineEntry>, types::Error>> {
        let refused = match &self.grants.machines {
            Some(scope) => scope.refusal("machines", &config.environment).map(denied),
            None => Some(missing("machines")),
        };
        if let Some(refused) = refused {
            return Ok(Err(refused));
        }
        let access = match self.access() {
            Ok(access) => access,
            Err(problem) => return Ok(Err(problem)),
        };
        let spec = spec(config, Lifetime::Owned);
        let progress = Arc::clone(&self.progress);
        let pause = self.clock.pause();
        let made = access.engine.create_machine(spec, &*progress).await;
        drop(pause);
        match made {
            Ok(machine) => {
                let info = machine_info(&machine.info(), true);
                Ok(Ok(self.table.push(MachineEntry { origin: Origin::Ephemeral(Some(machine)), info })?))
            }
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn end(&mut self, machine: Resource<MachineEntry>) -> wasmtime::Result<Result<(), types::Error>> {
        if self.grants.machines.is_none() {
            return Ok(Err(missing("machines")));
        }
        let machine = match &mut self.table.get_mut(&machine)?.origin {
            Origin::Ephemeral(machine) => machine.take(),
            Origin::Workspace { .. } | Origin::Record(_) => {
                return Ok(Err(denied("this machine outlives the call, so `machines` does not end it")));
            }
        };
        let Some(machine) = machine else { return Ok(Ok(())) };
        let _pause = self.clock.pause();
        Ok(machine.end().await.map_err(|failed| error(&failed)))
    }
}

/// What is asked of the engine.
pub(super) fn spec(config: machines::MachineConfig, lifetime: Lifetime) -> MachineSpec {
    MachineSpec {
        environment: config.environment,
        vcpu_count: config.vcpu_count,
        mem_mib: config.mem_mib,
        ttl: Duration::from_secs(config.ttl_seconds.into()),
        lifetime,
    }
}
