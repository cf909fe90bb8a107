//! `pyro:vm/workspaces`: machines with a disk and a history.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyro_engine::workspaces::{
    BASELINE, CommandRow, NewCommand, NewRecord, RecordInfo, RecordKind, RecordState, RecordUpdate, Seed, SnapshotRow,
    Workspaces,
};
use pyro_engine::{EngineError, ErrorCode, Lifetime, MachineSpec};
use wasmtime::component::Resource;

use super::super::bindings::pyro::vm::{types, workspaces};
use super::super::blob::Blob;
use super::super::state::CallState;
use super::files::blocking;
use super::redact::Redaction;
use super::{MachineEntry, Origin, denied, error, machine_info, missing, refusal, sendable};

/// Most commands of the history that one call of the interface returns.
const MAX_COMMANDS: u32 = 1_000;

/// Most labels of a workspace.
const MAX_LABELS: usize = 256;

/// Bytes kept of each output stream of a recorded command.
const MAX_RECORDED: u64 = 16 << 20;

/// What the name of a process begins with that a component keeps for itself.
const NO_SERVICE: char = '@';

/// How long a guest may take to tell its services, for a count.
const COUNT_LIMIT: Duration = Duration::from_secs(2);

/// A workspace behind a component's handle: its id, looked up for each use.
#[derive(Clone, Debug)]
pub struct WorkspaceEntry {
    id: String,
}

impl CallState {
    /// The records, when the grant is there.
    async fn workspace_records(&mut self) -> Result<Workspaces, types::Error> {
        if self.grants.workspaces.is_none() {
            return Err(missing("workspaces"));
        }
        self.records().await
    }

    /// Why a workspace of this environment is out of reach.
    fn outside(&self, environment: &str) -> Option<types::Error> {
        match &self.grants.workspaces {
            Some(scope) => scope.refusal("workspaces", environment).map(denied),
            None => Some(missing("workspaces")),
        }
    }

    /// Returns the records and the id behind a handle.
    async fn workspace(
        &mut self,
        handle: &Resource<WorkspaceEntry>,
    ) -> wasmtime::Result<Result<(Workspaces, String), types::Error>> {
        let id = self.table.get(handle)?.id.clone();
        Ok(self.workspace_records().await.map(|records| (records, id)))
    }

    async fn make(&mut self, config: workspaces::WorkspaceConfig) -> wasmtime::Result<Result<String, types::Error>> {
        let seed = match config.seed {
            None => None,
            Some(archive) => {
                let tar = self.table.delete(archive.tar)?;
                self.released(&tar);
                let seed = Seed {
                    mode: archive.mode,
                    source: archive.source,
                    entry_count: archive.entry_count,
                    bytes: archive.bytes,
                };
                Some((tar, seed))
            }
        };
        if let Some(refused) = self.outside(&config.environment) {
            return Ok(Err(refused));
        }
        let seed_texts = seed.iter().flat_map(|(_, seed)| std::iter::once(&seed.mode).chain(&seed.source));
        let problem = labels(config.labels.iter().map(|(key, value)| [key, value]), config.labels.len())
            .or_else(|| config.name.iter().chain(seed_texts).find_map(|text| sendable("text", text).err()));
        if let Some(problem) = problem {
            return Ok(Err(problem));
        }
        let records = match self.workspace_records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        let seed = match seed {
            None => None,
            Some((tar, seed)) => match blocking("copy an archive", move || tar.into_file()).await {
                Ok(file) => Some((file, seed)),
                Err(failed) => return Ok(Err(error(&failed))),
            },
        };
        let record = NewRecord {
            kind: RecordKind::Workspace,
            spec: MachineSpec {
                environment: config.environment,
                vcpu_count: config.vcpu_count,
                mem_mib: config.mem_mib,
                ttl: Duration::from_secs(config.ttl_seconds.into()),
                lifetime: Lifetime::Detached,
            },
            name: config.name,
            labels: config.labels,
            seed,
            secrets: self.attached_secrets(),
        };
        let progress = Arc::clone(&self.progress);
        let _pause = self.clock.pause();
        let made = records.create(record, &*progress).await;
        Ok(made.map(|info| info.record.id).map_err(|failed| error(&failed)))
    }

    /// A workspace as a component sees it, with what its guest tells of its services.
    async fn describe(
        &mut self,
        records: &Workspaces,
        info: RecordInfo,
    ) -> Result<workspaces::WorkspaceInfo, types::Error> {
        let redaction = match &info.last_command {
            Some(_) => self.redaction(Some(&info.record.id)).await?,
            None => self.redaction(None).await?,
        };
        let (services, running) = match info.record.state {
            RecordState::Started => count_services(records, &info.record.id).await,
            _ => (0, 0),
        };
        let record = info.record;
        let mut meta = Vec::new();
        if !info.secrets.is_empty() {
            let names: Vec<serde_json::Value> = info
                .secrets
                .iter()
                .map(|secret| serde_json::json!({ "name": secret.name, "source_kind": secret.source_kind }))
                .collect();
            meta.push(("secrets".to_owned(), serde_json::Value::Array(names).to_string()));
        }
        Ok(workspaces::WorkspaceInfo {
            name: record.name,
            labels: record.labels,
            environment: record.environment,
            environment_version: record.environment_version,
            vcpu_count: record.vcpu_count,
            mem_mib: record.mem_mib,
            ttl_seconds: u32::try_from(record.ttl_seconds).unwrap_or(u32::MAX),
            created_at: record.created_at,
            last_activity_at: record.last_activity_at,
            expires_at: record.expires_at,
            state: state(record.state).to_owned(),
            execution_mode: record.execution_mode,
            seed_mode: record.seed.mode,
            seed_source: record.seed.source,
            seed_entry_count: record.seed.entry_count,
            seed_bytes: record.seed.bytes,
            command_count: info.command_count,
            last_command: info.last_command.map(|row| command(row, &redaction)),
            reset_count: record.reset_count,
            last_reset_at: record.last_reset_at,
            service_count: services,
            running_service_count: running,
            meta,
            id: record.id,
        })
    }
}

/// How many services a started workspace has, and how many run; a guest that does not answer has none to tell of.
async fn count_services(records: &Workspaces, id: &str) -> (u32, u32) {
    let ask = async { records.machine(id, RecordKind::Workspace).await?.service_list().await };
    match tokio::time::timeout(COUNT_LIMIT, ask).await {
        Ok(Ok(list)) => {
            let (mut all, mut running) = (0, 0);
            for service in list.iter().filter(|service| !service.name.starts_with(NO_SERVICE)) {
                all += 1;
                running += u32::from(service.running);
            }
            (all, running)
        }
        Ok(Err(failed)) => {
            tracing::debug!(workspace = id, "its services are not counted: {failed}");
            (0, 0)
        }
        Err(_) => {
            tracing::debug!(workspace = id, "its services are not counted: no answer in time");
            (0, 0)
        }
    }
}

impl workspaces::Host for CallState {
    async fn create(
        &mut self,
        config: workspaces::WorkspaceConfig,
    ) -> wasmtime::Result<Result<Resource<WorkspaceEntry>, types::Error>> {
        match self.make(config).await? {
            Ok(id) => Ok(Ok(self.table.push(WorkspaceEntry { id })?)),
            Err(problem) => Ok(Err(problem)),
        }
    }

    async fn open(&mut self, id: String) -> wasmtime::Result<Result<Resource<WorkspaceEntry>, types::Error>> {
        let records = match self.workspace_records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        let pause = self.clock.pause();
        let info = records.info(&id, RecordKind::Workspace).await;
        drop(pause);
        match info {
            Ok(info) => match self.outside(&info.record.environment) {
                Some(refused) => Ok(Err(refused)),
                None => Ok(Ok(self.table.push(WorkspaceEntry { id: info.record.id })?)),
            },
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn list(&mut self) -> wasmtime::Result<Result<Vec<workspaces::WorkspaceInfo>, types::Error>> {
        let records = match self.workspace_records().await {
            Ok(records) => records,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let infos = match records.list(RecordKind::Workspace).await {
            Ok(infos) => infos,
            Err(failed) => return Ok(Err(error(&failed))),
        };
        let mut list = Vec::with_capacity(infos.len());
        for info in infos {
            if self.outside(&info.record.environment).is_some() {
                continue;
            }
            match self.describe(&records, info).await {
                Ok(info) => list.push(info),
                Err(problem) => return Ok(Err(problem)),
            }
        }
        Ok(Ok(list))
    }
}

impl workspaces::HostWorkspace for CallState {
    async fn id(&mut self, workspace: Resource<WorkspaceEntry>) -> wasmtime::Result<String> {
        Ok(self.table.get(&workspace)?.id.clone())
    }

    async fn info(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
    ) -> wasmtime::Result<Result<workspaces::WorkspaceInfo, types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        match records.info(&id, RecordKind::Workspace).await {
            Ok(info) => Ok(self.describe(&records, info).await),
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn machine(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
    ) -> wasmtime::Result<Result<Resource<MachineEntry>, types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let pause = self.clock.pause();
        let machine = records.machine(&id, RecordKind::Workspace).await;
        drop(pause);
        match machine {
            Ok(machine) => {
                let info = machine_info(&machine.info(), true);
                Ok(Ok(self.table.push(MachineEntry { origin: Origin::Workspace { id, machine }, info })?))
            }
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn update(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
        change: workspaces::Update,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let name = change.name.as_ref().and_then(Option::as_ref);
        let problem = labels(change.set_labels.iter().map(|(key, value)| [key, value]), change.set_labels.len())
            .or_else(|| labels(change.clear_labels.iter().map(|key| [key]), change.clear_labels.len()))
            .or_else(|| name.and_then(|name| sendable("name", name).err()));
        if let Some(problem) = problem {
            return Ok(Err(problem));
        }
        let change = RecordUpdate {
            name: change.name,
            set_labels: change.set_labels,
            clear_labels: change.clear_labels,
            ttl_seconds: change.ttl_seconds.map(u64::from),
        };
        let _pause = self.clock.pause();
        let updated = records.update(&id, RecordKind::Workspace, &change).await;
        Ok(updated.map(drop).map_err(|failed| error(&failed)))
    }

    async fn start(&mut self, workspace: Resource<WorkspaceEntry>) -> wasmtime::Result<Result<(), types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let progress = Arc::clone(&self.progress);
        let _pause = self.clock.pause();
        let started = records.start(&id, RecordKind::Workspace, &*progress).await;
        Ok(started.map(drop).map_err(|failed| error(&failed)))
    }

    async fn stop(&mut self, workspace: Resource<WorkspaceEntry>) -> wasmtime::Result<Result<(), types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(records.stop(&id, RecordKind::Workspace).await.map(drop).map_err(|failed| error(&failed)))
    }

    async fn delete(&mut self, workspace: Resource<WorkspaceEntry>) -> wasmtime::Result<Result<(), types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(records.delete(&id, RecordKind::Workspace).await.map_err(|failed| error(&failed)))
    }

    async fn reset(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
        snapshot: Option<String>,
    ) -> wasmtime::Result<Result<workspaces::SnapshotInfo, types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let progress = Arc::clone(&self.progress);
        let _pause = self.clock.pause();
        let reset = records.reset(&id, snapshot.as_deref().unwrap_or(BASELINE), &*progress).await;
        Ok(reset.map(|(_, row)| snapshot_info(row)).map_err(|failed| error(&failed)))
    }

    async fn record_command(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
        command: String,
        cwd: String,
        exit_code: Option<i32>,
        duration_ms: u64,
        stdout: Resource<Blob>,
        stderr: Resource<Blob>,
    ) -> wasmtime::Result<Result<u64, types::Error>> {
        let (stdout, stderr) = (self.table.get(&stdout)?.clone(), self.table.get(&stderr)?.clone());
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        if command.len() > 1 << 20 || stdout.len() > MAX_RECORDED || stderr.len() > MAX_RECORDED {
            let message = format!(
                "a command of {} bytes with {} and {} bytes of output is too large to keep",
                command.len(),
                stdout.len(),
                stderr.len()
            );
            return Ok(Err(refusal(ErrorCode::LimitExceeded, message, "keep less of its output")));
        }
        let redaction = match self.redaction(Some(&id)).await {
            Ok(redaction) => redaction,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let recorded = blocking("record a command", move || {
            let whole = |blob: &Blob| blob.read(0, MAX_RECORDED as usize).map(|bytes| redaction.bytes(bytes));
            let (stdout, stderr) = (whole(&stdout)?, whole(&stderr)?);
            // Now, and not only when it is shown: a value that is replaced is not known for ever.
            let command = redaction.text(&command);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let (command, cwd) = (redaction.text(&command), redaction.text(&cwd));
            Ok(move |mode: &str| {
                records.record_command(
                    &id,
                    &NewCommand {
                        command: &command,
                        cwd: &cwd,
                        exit_code,
                        duration_ms,
                        execution_mode: mode,
                        recorded_at: now,
                        stdout: &stdout,
                        stderr: &stderr,
                    },
                )
            })
        });
        match recorded.await {
            Ok(record) => {
                let (records, id) = match self.workspace(&workspace).await? {
                    Ok(found) => found,
                    Err(problem) => return Ok(Err(problem)),
                };
                let mode = match records.info(&id, RecordKind::Workspace).await {
                    Ok(info) => info.record.execution_mode,
                    Err(failed) => return Ok(Err(error(&failed))),
                };
                Ok(record(&mode).map_err(|failed| error(&failed)))
            }
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn commands(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
        after: u64,
        limit: u32,
    ) -> wasmtime::Result<Result<Vec<workspaces::CommandRecord>, types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let redaction = match self.redaction(Some(&id)).await {
            Ok(redaction) => redaction,
            Err(problem) => return Ok(Err(problem)),
        };
        let rows = records.commands(&id, after, limit.min(MAX_COMMANDS));
        Ok(rows
            .map(|rows| rows.into_iter().map(|row| command(row, &redaction)).collect())
            .map_err(|failed| error(&failed)))
    }

    async fn command_output(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
        sequence: u64,
    ) -> wasmtime::Result<Result<(Resource<Blob>, Resource<Blob>), types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        match records.command_output(&id, sequence) {
            Ok((stdout, stderr)) => Ok(Ok((self.push_bytes(stdout)?, self.push_bytes(stderr)?))),
            Err(failed) => Ok(Err(error(&failed))),
        }
    }

    async fn create_snapshot(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
        name: String,
    ) -> wasmtime::Result<Result<workspaces::SnapshotInfo, types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        if let Err(problem) = sendable("name", &name) {
            return Ok(Err(problem));
        }
        let _pause = self.clock.pause();
        Ok(records.create_snapshot(&id, &name).await.map(snapshot_info).map_err(|failed| error(&failed)))
    }

    async fn snapshots(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
    ) -> wasmtime::Result<Result<Vec<workspaces::SnapshotInfo>, types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let rows = records.snapshots(&id).await;
        Ok(rows.map(|rows| rows.into_iter().map(snapshot_info).collect()).map_err(|failed| error(&failed)))
    }

    async fn delete_snapshot(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
        name: String,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(records.delete_snapshot(&id, &name).await.map_err(|failed| error(&failed)))
    }

    async fn read_snapshot(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
        name: String,
    ) -> wasmtime::Result<Result<Resource<Blob>, types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let pause = self.clock.pause();
        let file = records.read_snapshot(&id, &name).await;
        drop(pause);
        self.push_opened(file)
    }

    async fn disk(
        &mut self,
        workspace: Resource<WorkspaceEntry>,
    ) -> wasmtime::Result<Result<Resource<Blob>, types::Error>> {
        let (records, id) = match self.workspace(&workspace).await? {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let pause = self.clock.pause();
        let file = records.disk(&id).await;
        drop(pause);
        self.push_opened(file)
    }

    async fn drop(&mut self, workspace: Resource<WorkspaceEntry>) -> wasmtime::Result<()> {
        self.table.delete(workspace)?;
        Ok(())
    }
}

impl CallState {
    fn push_opened(
        &mut self,
        file: Result<std::fs::File, EngineError>,
    ) -> wasmtime::Result<Result<Resource<Blob>, types::Error>> {
        match file {
            Ok(file) => Ok(self.push_file(file)?.map_err(|failed| error(&failed))),
            Err(failed) => Ok(Err(error(&failed))),
        }
    }
}

/// What is wrong with labels, when something is.
fn labels<'t, const N: usize>(mut labels: impl Iterator<Item = [&'t String; N]>, count: usize) -> Option<types::Error> {
    if count > MAX_LABELS {
        let message = format!("{count} labels, more than {MAX_LABELS}");
        return Some(refusal(ErrorCode::InvalidArgument, message, "use fewer labels"));
    }
    labels.find_map(|texts| texts.into_iter().find_map(|text| sendable("label", text).err()))
}

/// A state's word.
pub(super) fn state(state: RecordState) -> &'static str {
    match state {
        RecordState::Started => "started",
        RecordState::Created | RecordState::Creating => "created",
        RecordState::Stopped | RecordState::Deleting => "stopped",
    }
}

fn command(row: CommandRow, redaction: &Redaction) -> workspaces::CommandRecord {
    workspaces::CommandRecord {
        sequence: row.sequence,
        command: redaction.text(&row.command),
        cwd: row.cwd,
        exit_code: row.exit_code,
        duration_ms: row.duration_ms,
        execution_mode: row.execution_mode,
        recorded_at: row.recorded_at,
        meta: Vec::new(),
    }
}

fn snapshot_info(row: SnapshotRow) -> workspaces::SnapshotInfo {
    workspaces::SnapshotInfo {
        kind: if row.name == BASELINE { "baseline" } else { "named" }.to_owned(),
        name: row.name,
        created_at: row.created_at,
        entry_count: row.entry_count,
        bytes: row.bytes,
        meta: Vec::new(),
    }
}
