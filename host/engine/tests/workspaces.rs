//! Workspaces on real machines; see `machine.rs` for how they are run.

#![allow(clippy::print_stdout, reason = "how long things took is worth a line")]

mod support;

use std::time::{Duration, Instant};

use pyro_engine::{
    ErrorCode, NoProgress,
    workspaces::{
        NewCommand,
        RecordKind::{Machine, Workspace},
        RecordState, RecordUpdate,
    },
};
use support::{Home, new, run};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines"]
async fn a_workspace_lives_until_it_is_deleted() {
    let home = Home::new();
    let workspaces = home.workspaces();
    let mut wanted = new(Workspace);
    wanted.name = Some("demo".to_owned());
    wanted.labels = vec![("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())];
    let begun = Instant::now();
    let info = workspaces.create(wanted, &NoProgress).await.unwrap();
    println!("create took {:?}", begun.elapsed());
    let id = info.record.id.clone();
    assert_eq!(info.record.state, RecordState::Started);
    assert_eq!(info.record.labels[0].0, "a");
    assert_eq!(info.record.seed.mode, "empty");
    assert!((info.record.expires_at - info.record.created_at - 600.0).abs() < 0.001);
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    assert_eq!(run(&machine, "pwd; ls -A | wc -l").await.unwrap(), "/workspace\n0\n");
    // Its disk can be cut off at any moment.
    assert_eq!(run(&machine, "ls /proc/fs/jbd2").await.unwrap(), "vda-8\n");
    run(&machine, "echo kept > note; echo elsewhere > /etc/mark; sync").await.unwrap();

    // Another process sees the same, and a record of the other kind is not there.
    let other = home.workspaces();
    assert_eq!(other.info(&id, Workspace).await.unwrap(), info);
    assert_eq!(other.info(&id, Machine).await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(other.list(Workspace).await.unwrap().len(), 1);
    let command = NewCommand {
        command: "true",
        cwd: "/workspace",
        exit_code: Some(0),
        duration_ms: 7,
        execution_mode: "microvm_qemu_tcg",
        recorded_at: 5.0,
        stdout: b"out",
        stderr: b"",
    };
    assert_eq!(other.record_command(&id, &command).unwrap(), 1);
    assert_eq!(workspaces.commands(&id, 0, 10).unwrap()[0].duration_ms, 7);
    assert_eq!(workspaces.command_output(&id, 1).unwrap().0, b"out");
    assert_eq!(workspaces.command_output(&id, 2).unwrap_err().code(), ErrorCode::NotFound);

    // The end of its time moves, in the VM process too.
    let change = RecordUpdate {
        name: Some(None),
        set_labels: vec![("a".to_owned(), "9".to_owned())],
        clear_labels: vec!["b".to_owned()],
        ttl_seconds: Some(3000),
    };
    let updated = other.update(&id, Workspace, &change).await.unwrap().record;
    assert_eq!((updated.name, updated.labels), (None, vec![("a".to_owned(), "9".to_owned())]));
    assert!((machine.status().await.unwrap().expires_at - updated.expires_at).abs() < 0.001);
    let absurd = RecordUpdate { ttl_seconds: Some(1), ..RecordUpdate::default() };
    assert_eq!(other.update(&id, Workspace, &absurd).await.unwrap_err().code(), ErrorCode::InvalidArgument);

    let begun = Instant::now();
    let stopped = other.stop(&id, Workspace).await.unwrap();
    println!("stop took {:?}", begun.elapsed());
    assert_eq!(stopped.record.state, RecordState::Stopped);
    assert_eq!(workspaces.machine(&id, Workspace).await.unwrap_err().code(), ErrorCode::InvalidState);
    assert_eq!(other.stop(&id, Workspace).await.unwrap().record.state, RecordState::Stopped);
    home.assert_no_machines().await;

    let begun = Instant::now();
    let started = workspaces.start(&id, Workspace, &NoProgress).await.unwrap();
    println!("start took {:?}", begun.elapsed());
    assert_eq!(started.record.state, RecordState::Started);
    assert_eq!(started.record.expires_at, updated.expires_at);
    let machine = other.machine(&id, Workspace).await.unwrap();
    assert_eq!(run(&machine, "cat note /etc/mark").await.unwrap(), "kept\nelsewhere\n");
    assert_eq!(workspaces.start(&id, Workspace, &NoProgress).await.unwrap().record.state, RecordState::Started);

    // A killed VM process leaves a stopped workspace.
    run(&machine, "echo more >> note; sync").await.unwrap();
    for pid in home.processes() {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    machine.ended().await;
    assert_eq!(other.info(&id, Workspace).await.unwrap().record.state, RecordState::Stopped);
    workspaces.start(&id, Workspace, &NoProgress).await.unwrap();
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    assert_eq!(run(&machine, "cat note").await.unwrap(), "kept\nmore\n");
    let log = run(&machine, "dmesg | grep EXT4-fs").await.unwrap();
    assert!(log.contains("recovery complete") && !log.contains("error"), "{log}");

    let begun = Instant::now();
    other.delete(&id, Workspace).await.unwrap();
    println!("delete took {:?}", begun.elapsed());
    assert_eq!(workspaces.info(&id, Workspace).await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(workspaces.delete(&id, Workspace).await.unwrap_err().code(), ErrorCode::NotFound);
    assert!(workspaces.list(Workspace).await.unwrap().is_empty());
    assert_eq!(home.record_files(), [""; 0]);
    home.assert_no_machines().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines, and waits a minute"]
async fn machines_are_made_cheaply_and_end_in_time() {
    let home = Home::new();
    let workspaces = home.workspaces();
    let mut wanted = new(Machine);
    wanted.spec.ttl = Duration::from_secs(60);
    let begun = Instant::now();
    let info = workspaces.create(wanted, &NoProgress).await.unwrap();
    assert_eq!(info.record.state, RecordState::Created);
    assert_eq!(info.record.execution_mode, "pending");
    let id = info.record.id;
    assert_eq!(home.record_files().len(), 2, "a directory and a lock: {:?}", home.record_files());
    assert_eq!(workspaces.machine(&id, Machine).await.unwrap_err().code(), ErrorCode::InvalidState);
    workspaces.start(&id, Machine, &NoProgress).await.unwrap();
    let machine = workspaces.machine(&id, Machine).await.unwrap();
    assert_eq!(run(&machine, "echo up").await.unwrap(), "up\n");

    // The VM process ends it, without anybody looking.
    let error = machine.ended().await;
    assert_eq!(error.code(), ErrorCode::Expired, "{error}");
    let lived = begun.elapsed().as_secs_f64();
    assert!((59.0..63.0).contains(&lived), "{lived}");
    let error = home.workspaces().info(&id, Machine).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Expired);
    assert_eq!(error.message(), format!("vm '{id}' expired and was automatically deleted"));
    assert_eq!(workspaces.info(&id, Machine).await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(home.record_files(), [""; 0]);
    home.assert_no_machines().await;
}
