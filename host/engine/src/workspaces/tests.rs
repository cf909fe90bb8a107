//! Records whose machines are never booted.

use std::{fs, path::Path, time::Duration};

use pyro_vmm::config::CpuConfig;

use super::{
    RecordKind, RecordState, Workspaces,
    lock::RecordLock,
    rows::{Intent, Record, sample},
    unix_now,
};
use crate::{
    AgentSource, Engine, EngineError, EngineOptions, ErrorCode, Paths,
    run_dir::RunDir,
    spec::{ExecutionMode, MachineSpec},
    vmm_process::MachineConfig,
};

const ID: &str = "0123456789ab";

fn open(home: &Path) -> Workspaces {
    try_open(home).unwrap()
}

fn try_open(home: &Path) -> Result<Workspaces, EngineError> {
    let options = EngineOptions::with_agent(AgentSource(&[])).unwrap();
    Workspaces::open(Engine::open(Paths::below(home), options).unwrap())
}

/// Writes a stopped record with a disk.
fn stopped(workspaces: &Workspaces, kind: RecordKind, expires_in: f64) -> Record {
    let now = unix_now();
    let mut record = sample(ID);
    (record.kind, record.state) = (kind, RecordState::Stopped);
    record.expires_at = now + expires_in;
    record.disk = Some("disk.1".to_owned());
    workspaces.db(|store| store.insert(&record)).unwrap();
    fs::create_dir(workspaces.record_dir(ID)).unwrap();
    fs::write(workspaces.record_dir(ID).join("disk.1"), b"a disk").unwrap();
    record
}

#[tokio::test]
async fn what_is_over_can_be_deleted_too() {
    for kind in [RecordKind::Workspace, RecordKind::Machine] {
        let home = tempfile::tempdir().unwrap();
        let workspaces = open(home.path());
        stopped(&workspaces, kind, -1.0);
        workspaces.delete(ID, kind).await.unwrap();
        assert_eq!(workspaces.delete(ID, kind).await.unwrap_err().code(), ErrorCode::NotFound);
        assert_eq!(fs::read_dir(home.path().join("state/records")).unwrap().count(), 0);
        // Everything else says what became of it.
        stopped(&workspaces, kind, -1.0);
        assert_eq!(workspaces.stop(ID, kind).await.unwrap_err().code(), ErrorCode::Expired);
    }
}

#[tokio::test]
async fn a_disk_that_is_read_is_not_started_on() {
    let home = tempfile::tempdir().unwrap();
    let workspaces = open(home.path());
    let mut record = stopped(&workspaces, RecordKind::Workspace, 600.0);
    let (disk, other) = (workspaces.disk(ID).await.unwrap(), workspaces.disk(ID).await.unwrap());
    let error = workspaces.unread(&record, "disk.1").await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), (ErrorCode::Conflict, true));
    assert_eq!(error.message(), format!("the disk of workspace '{ID}' is being read"));
    drop((disk, other));
    workspaces.unread(&record, "disk.1").await.unwrap();

    // One that is being started is not read, from its announcement on.
    let lock = RecordLock::take(&home.path().join("state/records"), ID).await.unwrap();
    record.intent = Some(Intent::Start { machine_id: "ba9876543210".to_owned() });
    workspaces.db(|store| store.update(&record)).unwrap();
    let error = workspaces.disk(ID).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), (ErrorCode::Conflict, true));
    assert_eq!(error.message(), format!("workspace '{ID}' is being started"));
    drop(lock);
    // It was left so by a process that died.
    let disk = workspaces.disk(ID).await.unwrap();
    workspaces.delete(ID, RecordKind::Workspace).await.unwrap();
    assert_eq!(disk.metadata().unwrap().len(), 6);
}

#[tokio::test]
async fn records_outlive_a_lost_database() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    let workspaces = open(home.path());
    stopped(&workspaces, RecordKind::Workspace, 600.0);
    drop(workspaces);
    let kept = || {
        let names = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.join(ID).join("disk.1").exists()).collect::<Vec<_>>()
    };
    assert_eq!(kept(), [state.join("records")]);
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        let _ = fs::remove_file(state.join(name));
    }

    for _ in 0..2 {
        let workspaces = open(home.path());
        assert_eq!(workspaces.list(RecordKind::Workspace).await.unwrap(), []);
        assert_eq!(fs::read_dir(state.join("records")).unwrap().count(), 0);
        let kept = kept();
        assert_eq!(kept.len(), 1);
        assert!(kept[0].file_name().unwrap().to_str().unwrap().starts_with("records.lost-"), "{kept:?}");
    }
}

#[tokio::test]
async fn a_directory_without_a_row_is_removed_unless_a_machine_runs_on_it() {
    let home = tempfile::tempdir().unwrap();
    let workspaces = open(home.path());
    let dir = workspaces.record_dir(ID);
    fs::create_dir(&dir).unwrap();
    let run = home.path().join("run");
    fs::create_dir_all(&run).unwrap();
    let machine = RunDir::create(&run, None).unwrap();
    let config = MachineConfig {
        id: machine.id.clone(),
        spec: MachineSpec::default(),
        environment_version: "1".to_owned(),
        execution_mode: ExecutionMode::MicrovmQemuTcg,
        cpu: CpuConfig::default(),
        kernel: "/k".into(),
        initramfs: "/i".into(),
        rootfs: "/r".into(),
        disk: Some(dir.join("disk.1")),
        leases: Vec::new(),
        boot_limit: Duration::from_secs(30),
        created_at: 1.0,
        expires_at: 2.0,
        spawned_at_ns: 7,
        verbose_console: false,
        verdict_dir: None,
    };
    config.write(&machine.path).unwrap();
    workspaces.list(RecordKind::Workspace).await.unwrap();
    assert!(dir.exists());
    drop(machine);
    workspaces.list(RecordKind::Workspace).await.unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_database_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().unwrap();
    let database = home.path().join("state/state.db");
    fs::create_dir(home.path().join("state")).unwrap();
    fs::write(&database, vec![7_u8; 8192]).unwrap();
    let error = try_open(home.path()).unwrap_err();
    let named = |text: &str| text.contains(database.to_str().unwrap());
    assert_eq!(error.code(), ErrorCode::Internal);
    assert!(named(error.message()) && error.message().contains("is damaged"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("away")));

    fs::remove_file(&database).unwrap();
    fs::create_dir(&database).unwrap();
    let error = try_open(home.path()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Io, "{error}");
    assert!(named(error.message()) && error.hint().is_some(), "{error}");
}
