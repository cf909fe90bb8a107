//! `pyro:vm/machine-lifecycle`: machines that outlive the call.

use std::sync::Arc;

use pyro_engine::Lifetime;
use pyro_engine::workspaces::{NewRecord, RecordInfo, RecordKind, Workspaces};
use wasmtime::component::Resource;

use super::super::bindings::pyro::vm::{machine_lifecycle, machines, types};
use super::super::state::CallState;
use super::machines::spec;
use super::{MachineEntry, Origin, denied, error, missing};

const KIND: RecordKind = RecordKind::Machine;

impl CallState {
    async fn machine_records(&mut self) -> Result<Workspaces, types::Error> {
        if self.grants.machine_lifecycle.is_none() {
            return Err(missing("machine-lifecycle"));
        }
        self.records().await
    }

    /// What is known now about a machine of its own record.
    pub(super) async fn record_info(&mut self, id: &str) -> Result<types::MachineInfo, types::Error> {
        let _pause = self.clock.pause();
        let records = self.records().await?;
        records.info(id, KIND).await.map(|info| info_of(&info)).map_err(|failed| error(&failed))
    }

    /// Returns the records and the id behind a handle.
    async fn record(
        &mut self,
        handle: &Resource<MachineEntry>,
    ) -> wasmtime::Result<Result<(Workspaces, String), types::Error>> {
        let id = match &self.table.get(handle)?.origin {
            Origin::Record(id) => id.clone(),
            Origin::Ephemeral(_) => return Ok(Err(denied("this machine ends with the call"))),
            Origin::Workspace { id, .. } => {
                return Ok(Err(denied(format!("this machine belongs to workspace '{id}', which starts and stops it"))));
            }
        };
        Ok(self.machine_records().await.map(|records| (records, id)))
    }

    fn push_record(&mut self, info: &RecordInfo) -> wasmtime::Result<Resource<MachineEntry>> {
        let entry = MachineEntry { origin: Origin::Record(info.record.id.clone()), info: info_of(info) };
        Ok(self.table.push(entry)?)
    }
}

impl machine_lifecycle::Host for CallState {
    async fn create(
        &mut self,
        config: machines::MachineConfig,
    ) -> wasmtime::Result<Result<Resource<MachineEntry>, types::Error>> {
        let refused = match &self.grants.machine_lifecycle {
            Some(scope) => scope.refusal("machine-lifecycle", &config.environment).map(denied),
            None => Some(missing("machine-lifecycle")),
        };
        if let Some(refused) = refused {
            return Ok(Err(refused));
        }
        let records = match self.machine_records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        let record = NewRecord {
            kind: KIND,
            spec: spec(config, Lifetime::Detached),
            name: None,
            labels: Vec::new(),
            seed: None,
            secrets: Vec::new(),
        };
        let progress = Arc::clone(&self.progress);
        let pause = self.clock.pause();
        let made = records.create(record, &*progress).await;
        drop(pause);
        match made {
            Ok(info) => Ok(Ok(self.push_record(&info)?)),
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn open(&mut self, id: String) -> wasmtime::Result<Result<Resource<MachineEntry>, types::Error>> {
        let records = match self.machine_records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        let pause = self.clock.pause();
        let found = records.info(&id, KIND).await;
        drop(pause);
        match found {
            Ok(info) => {
                let scope = self.grants.machine_lifecycle.as_ref();
                if let Some(message) =
                    scope.and_then(|scope| scope.refusal("machine-lifecycle", &info.record.environment))
                {
                    return Ok(Err(denied(message)));
                }
                Ok(Ok(self.push_record(&info)?))
            }
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn start(&mut self, machine: Resource<MachineEntry>) -> wasmtime::Result<Result<(), types::Error>> {
        let (records, id) = match self.record(&machine).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let progress = Arc::clone(&self.progress);
        let _pause = self.clock.pause();
        if let Ok(info) = records.info(&id, KIND).await
            && info.record.state == pyro_engine::workspaces::RecordState::Started
        {
            let message = format!("vm {id} cannot be started from state 'started'");
            return Ok(Err(super::refusal(pyro_engine::ErrorCode::InvalidState, message, "it runs already")));
        }
        Ok(records.start(&id, KIND, &*progress).await.map(drop).map_err(|failed| error(&failed)))
    }

    async fn stop(&mut self, machine: Resource<MachineEntry>) -> wasmtime::Result<Result<(), types::Error>> {
        let (records, id) = match self.record(&machine).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(records.stop(&id, KIND).await.map(drop).map_err(|failed| error(&failed)))
    }

    async fn delete(&mut self, machine: Resource<MachineEntry>) -> wasmtime::Result<Result<(), types::Error>> {
        let (records, id) = match self.record(&machine).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(records.delete(&id, KIND).await.map_err(|failed| error(&failed)))
    }

    async fn reap(&mut self) -> wasmtime::Result<Result<Vec<String>, types::Error>> {
        let records = match self.machine_records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(records.reap(KIND).await.map_err(|failed| error(&failed)))
    }
}

fn info_of(info: &RecordInfo) -> types::MachineInfo {
    let record = &info.record;
    types::MachineInfo {
        id: record.id.clone(),
        environment: record.environment.clone(),
        environment_version: record.environment_version.clone(),
        vcpu_count: record.vcpu_count,
        mem_mib: record.mem_mib,
        ttl_seconds: u32::try_from(record.ttl_seconds).unwrap_or(u32::MAX),
        created_at: record.created_at,
        expires_at: record.expires_at,
        state: super::workspaces::state(record.state).to_owned(),
        execution_mode: record.execution_mode.clone(),
        meta: Vec::new(),
    }
}
