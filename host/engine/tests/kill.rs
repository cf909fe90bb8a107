//! A process that changes records is killed at many points; whoever looks next finds the old or the new state, and
//! nothing else: no process, file or row. See `machine.rs` for how the tests that boot machines are run.
#![allow(clippy::print_stdout, reason = "which seed was used and how many kills there were is worth a line")]
#![cfg_attr(not(debug_assertions), allow(dead_code, reason = "a release build has fewer tests"))]

mod support;

use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pyro_engine::{
    EngineError, ErrorCode, NoProgress,
    workspaces::{
        NewSecret,
        RecordKind::{self, Machine, Workspace},
        RecordState, RecordUpdate, SecretKind, Workspaces,
    },
};
use support::{Home, new, run, seed};

/// Says to this program, started again, that it is the one to be killed: an operation and a record's id.
const OPERATION: &str = "PYRO_TEST_OPERATION";
/// Where its state is.
const HOME: &str = "PYRO_TEST_STATE";

/// Not a test: what the process does that the tests below kill.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started by the tests of this file"]
async fn the_killed_process() {
    let (Ok(operation), Some(home)) = (std::env::var(OPERATION), std::env::var_os(HOME)) else { return };
    let workspaces = support::workspaces_in(home.as_ref());
    let (what, id) = operation.split_once(' ').unwrap_or((&operation, ""));
    act(&workspaces, what, id).await.unwrap();
}

async fn act(workspaces: &Workspaces, what: &str, id: &str) -> Result<(), EngineError> {
    match what {
        "create" => workspaces.create(seeded(), &NoProgress).await.map(drop),
        "start" => workspaces.start(id, Workspace, &NoProgress).await.map(drop),
        "stop" => workspaces.stop(id, Workspace).await.map(drop),
        "reset" => workspaces.reset(id, "baseline", &NoProgress).await.map(drop),
        "delete" => workspaces.delete(id, Workspace).await,
        "snapshot" => workspaces.create_snapshot(id, "mine").await.map(drop),
        "unsnapshot" => workspaces.delete_snapshot(id, "mine").await,
        "secret" => workspaces.set_secret(id, secret()).await.map(drop),
        "unsecret" => workspaces.remove_secret(id, "TOKEN").await,
        // Everything that boots nothing, again and again.
        "records" => loop {
            let id = workspaces.create(new(Machine), &NoProgress).await?.record.id;
            let change =
                RecordUpdate { ttl_seconds: Some(900), name: Some(Some("n".to_owned())), ..Default::default() };
            workspaces.update(&id, Machine, &change).await?;
            workspaces.stop(&id, Machine).await?;
            workspaces.delete(&id, Machine).await?;
        },
        // Everything that does, again and again.
        "everything" => loop {
            let id = workspaces.create(seeded(), &NoProgress).await?.record.id;
            for step in ["snapshot", "secret", "reset", "stop", "start", "unsecret", "unsnapshot", "stop", "delete"] {
                Box::pin(act(workspaces, step, &id)).await?;
            }
        },
        other => panic!("no operation {other}"),
    }
}

fn seeded() -> pyro_engine::workspaces::NewRecord {
    let mut wanted = new(Workspace);
    wanted.seed = Some(seed(&[("mark", "seed\n")]));
    wanted
}

fn secret() -> NewSecret {
    NewSecret { name: "TOKEN".to_owned(), value: b"hush".to_vec().into(), kind: SecretKind::Literal }
}

/// The process to be killed. It is in any case when this is dropped.
struct Doomed(Child);

impl Doomed {
    fn start(home: &Home, operation: &str, failpoint: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "the_killed_process"])
            .env(OPERATION, operation)
            .env(HOME, home.dir.path())
            .env("PYRO_FAILPOINT", failpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    async fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "it was to be killed and lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn kill(mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "it ended by itself");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        // It may have ended, and then neither does anything.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs an operation that dies at a point.
async fn die(home: &Home, operation: &str, failpoint: &str) {
    let status = Doomed::start(home, operation, failpoint).ended().await;
    assert_eq!(status.signal(), Some(9), "`{operation}` passed `{failpoint}`: {status}");
}

/// Looks as a fresh process does and checks that there are exactly the files, machines and processes of its records.
/// Returns their ids and states.
async fn look(home: &Home, kind: RecordKind, when: &str) -> Vec<(String, RecordState)> {
    let workspaces = home.workspaces();
    let begun = Instant::now();
    let (mut files, mut machines, mut found);
    'again: loop {
        (files, machines, found) = (Vec::new(), Vec::new(), Vec::new());
        for info in workspaces.list(kind).await.unwrap() {
            let id = info.record.id;
            files.extend([id.clone(), format!("{id}.lock")]);
            if kind == Workspace {
                files.push(format!("{id}/disk"));
                files.extend(workspaces.snapshots(&id).await.unwrap().iter().map(|row| format!("{id}/{}", row.file)));
                files.extend(info.secrets.iter().map(|_| format!("{id}/secret")));
            }
            if info.record.state == RecordState::Started {
                let lives = match workspaces.machine(&id, kind).await {
                    Ok(machine) => run(&machine, "echo lives").await.map(|said| (machine.id().to_owned(), said)),
                    Err(error) => Err(error),
                };
                match lives {
                    Ok((machine, said)) => {
                        assert_eq!(said, "lives\n", "{when}");
                        machines.push(machine);
                    }
                    // A stop was under way: its guest goes on shutting down and is stopped in a moment.
                    Err(error) => {
                        assert!(begun.elapsed() < Duration::from_secs(20), "{when}: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue 'again;
                    }
                }
            }
            found.push((id, info.record.state));
        }
        break;
    }
    // Which disk and which value file it is, is the record's own affair; how many there are is not.
    let mut there: Vec<String> = home
        .record_files()
        .into_iter()
        // Values that a running machine knew before are kept until it ends.
        .filter(|name| !name.contains("/retired."))
        .map(|name| match name.split_once('/') {
            Some((id, file)) if file.starts_with("disk.") => format!("{id}/disk"),
            Some((id, file)) if file.starts_with("secret.") => format!("{id}/secret"),
            _ => name,
        })
        .collect();
    files.sort();
    there.sort();
    assert_eq!(there, files, "{when}: files");
    machines.sort();
    let begun = Instant::now();
    loop {
        let mut dirs = home.machine_dirs();
        dirs.sort();
        // A VM process and its engine's process.
        if dirs == machines && home.processes().len() == machines.len() * 2 {
            return found;
        }
        // One that was just ended is still being reaped.
        assert!(begun.elapsed() < Duration::from_secs(5), "{when}: {dirs:?} for {machines:?}, {:?}", home.processes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn states(found: &[(String, RecordState)]) -> Vec<RecordState> {
    found.iter().map(|(_, state)| *state).collect()
}

// Only a build with debug assertions has the points to die at.
#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines"]
async fn a_create_that_dies_made_all_or_nothing() {
    let home = Home::new();
    for point in ["locked", "announced", "disk", "baseline", "booted", "made"] {
        die(&home, "create", &format!("create-{point}")).await;
        assert_eq!(states(&look(&home, Workspace, point).await), [], "{point}");
    }
    die(&home, "create", "create-done").await;
    let found = look(&home, Workspace, "create-done").await;
    assert_eq!(states(&found), [RecordState::Started]);
    let workspaces = home.workspaces();
    let machine = workspaces.machine(&found[0].0, Workspace).await.unwrap();
    assert_eq!(run(&machine, "cat mark").await.unwrap(), "seed\n");
    for point in ["delete-locked", "delete-announced", "delete-ended", "delete-erased"] {
        let id = match look(&home, Workspace, point).await.first() {
            Some((id, _)) => id.clone(),
            None => workspaces.create(seeded(), &NoProgress).await.unwrap().record.id,
        };
        die(&home, &format!("delete {id}"), point).await;
        let left = look(&home, Workspace, point).await;
        assert_eq!(left.len(), usize::from(point == "delete-locked"), "{point}");
    }
    home.assert_no_machines().await;
}

// Only a build with debug assertions has the points to die at.
#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines"]
async fn a_change_that_dies_is_made_or_not_made() {
    let home = Home::new();
    let workspaces = home.workspaces();
    let id = workspaces.create(seeded(), &NoProgress).await.unwrap().record.id;
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    run(&machine, "echo old > mark; sync").await.unwrap();
    let mark = async || {
        let machine = workspaces.machine(&id, Workspace).await.unwrap();
        run(&machine, "cat mark").await.unwrap()
    };

    for (point, saved) in [("announced", false), ("saved", false), ("added", true)] {
        die(&home, &format!("snapshot {id}"), &format!("snapshot-{point}")).await;
        assert_eq!(states(&look(&home, Workspace, point).await), [RecordState::Started]);
        assert_eq!(workspaces.snapshots(&id).await.unwrap().len() == 2, saved, "{point}");
    }
    for (point, saved) in [("announced", true), ("removed", false)] {
        die(&home, &format!("unsnapshot {id}"), &format!("unsnapshot-{point}")).await;
        look(&home, Workspace, point).await;
        assert_eq!(workspaces.snapshots(&id).await.unwrap().len() == 2, saved, "{point}");
    }
    for (point, kept) in [("announced", false), ("kept", true)] {
        die(&home, &format!("secret {id}"), &format!("secret-{point}")).await;
        look(&home, Workspace, point).await;
        assert_eq!(workspaces.secret_values(&id).await.unwrap().len() == 1, kept, "{point}");
    }
    for (point, kept) in [("announced", true), ("removed", false)] {
        die(&home, &format!("unsecret {id}"), &format!("unsecret-{point}")).await;
        look(&home, Workspace, point).await;
        assert_eq!(workspaces.secret_values(&id).await.unwrap().len() == 1, kept, "{point}");
    }

    die(&home, &format!("stop {id}"), "stop-locked").await;
    assert_eq!(states(&look(&home, Workspace, "stop-locked").await), [RecordState::Started]);
    die(&home, &format!("stop {id}"), "stop-ended").await;
    assert_eq!(states(&look(&home, Workspace, "stop-ended").await), [RecordState::Stopped]);
    for point in ["announced", "disk", "booted"] {
        die(&home, &format!("start {id}"), &format!("start-{point}")).await;
        assert_eq!(states(&look(&home, Workspace, point).await), [RecordState::Stopped], "{point}");
    }
    die(&home, &format!("start {id}"), "start-done").await;
    assert_eq!(states(&look(&home, Workspace, "start-done").await), [RecordState::Started]);
    assert_eq!(mark().await, "old\n");

    for point in ["announced", "disk", "booted", "unpacked"] {
        die(&home, &format!("reset {id}"), &format!("reset-{point}")).await;
        assert_eq!(states(&look(&home, Workspace, point).await), [RecordState::Started], "{point}");
        assert_eq!(mark().await, "old\n", "{point}");
        assert_eq!(workspaces.info(&id, Workspace).await.unwrap().record.reset_count, 0, "{point}");
    }
    for (done, point) in ["done", "ended"].iter().enumerate() {
        die(&home, &format!("reset {id}"), &format!("reset-{point}")).await;
        assert_eq!(states(&look(&home, Workspace, point).await), [RecordState::Started], "{point}");
        assert_eq!(mark().await, "seed\n", "{point}");
        assert_eq!(workspaces.info(&id, Workspace).await.unwrap().record.reset_count, done as u64 + 1);
    }
    workspaces.delete(&id, Workspace).await.unwrap();
    assert!(look(&home, Workspace, "the end").await.is_empty());
    home.assert_no_machines().await;
}

/// Numbers that look random; the seed is printed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an installed environment"]
async fn records_survive_kills_at_any_moment() {
    const KILLS: usize = 150;
    let home = Home::new();
    // The database is there before the first kill, and the first look.
    drop(home.workspaces());
    let mut dice = Dice::new();
    for number in 0..KILLS {
        let doomed = Doomed::start(&home, "records", "");
        tokio::time::sleep(Duration::from_micros(20_000 + dice.below(120_000))).await;
        doomed.kill();
        let found = look(&home, Machine, &format!("kill {number}")).await;
        assert!(found.len() <= 1, "{found:?}");
        for (id, _) in found {
            home.workspaces().delete(&id, Machine).await.unwrap();
        }
    }
    assert!(look(&home, Machine, "the end").await.is_empty());
    println!("{KILLS} kills");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines, for minutes"]
async fn workspaces_survive_kills_at_any_moment() {
    const KILLS: usize = 20;
    let home = Home::new();
    drop(home.workspaces());
    let mut dice = Dice::new();
    for number in 0..KILLS {
        let doomed = Doomed::start(&home, "everything", "");
        tokio::time::sleep(Duration::from_millis(dice.below(9000))).await;
        doomed.kill();
        // Every other time the machine's own process dies with it.
        if number % 2 == 1 {
            for pid in home.processes() {
                support::kill(pid);
            }
            // The kernel gives its locks back when the last of it is gone.
            home.assert_no_processes().await;
        }
        let found = look(&home, Workspace, &format!("kill {number}")).await;
        assert!(found.len() <= 1, "{found:?}");
        for (id, state) in found {
            let workspaces = home.workspaces();
            if state == RecordState::Stopped {
                workspaces.start(&id, Workspace, &NoProgress).await.unwrap();
            }
            let machine = workspaces.machine(&id, Workspace).await.unwrap();
            // Its tree is there, or the machine died before it was written.
            run(&machine, "cat mark 2>/dev/null || true; touch works; dmesg | grep -q 'EXT4-fs error' && exit 1; true")
                .await
                .unwrap();
            workspaces.delete(&id, Workspace).await.unwrap();
            assert_eq!(workspaces.info(&id, Workspace).await.unwrap_err().code(), ErrorCode::NotFound);
        }
    }
    assert!(look(&home, Workspace, "the end").await.is_empty());
    home.assert_no_machines().await;
    println!("{KILLS} kills");
}
