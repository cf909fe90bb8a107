//! Records whose machines are never booted.

use std::{fs, path::Path};

use super::{
    RecordKind, RecordState, Workspaces,
    lock::RecordLock,
    store::{Intent, Record, RecordView, Seed},
    unix_now,
};
use crate::{AgentSource, Engine, EngineOptions, ErrorCode, Paths};

const ID: &str = "0123456789ab";

fn open(home: &Path) -> Workspaces {
    let options = EngineOptions::with_agent(AgentSource(&[])).unwrap();
    Workspaces::open(Engine::open(Paths::below(home), options).unwrap()).unwrap()
}

/// Writes a stopped record with a disk.
fn stopped(workspaces: &Workspaces, kind: RecordKind, expires_in: f64) -> Record {
    let now = unix_now();
    let record = Record {
        view: RecordView {
            id: ID.to_owned(),
            kind,
            state: RecordState::Stopped,
            name: None,
            labels: Vec::new(),
            environment: "debian:12".to_owned(),
            environment_version: "1".to_owned(),
            vcpu_count: 1,
            mem_mib: 256,
            ttl_seconds: 600,
            created_at: now,
            last_activity_at: now,
            expires_at: now + expires_in,
            execution_mode: "pending".to_owned(),
            seed: Seed { mode: "empty".to_owned(), ..Seed::default() },
            reset_count: 0,
            last_reset_at: None,
        },
        intent: None,
        machine_id: None,
        disk: Some("disk.1".to_owned()),
    };
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
