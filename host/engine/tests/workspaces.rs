//! Workspaces on real machines; see `machine.rs` for how they are run.

#![allow(clippy::print_stdout, reason = "how long things took is worth a line")]

mod support;

use std::time::{Duration, Instant};

use pyro_engine::{
    ErrorCode, NoProgress,
    workspaces::{
        NewCommand, NewSecret,
        RecordKind::{Machine, Workspace},
        RecordState, RecordUpdate, SecretKind,
    },
};
use support::{Home, new, run, seed};

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
    // A handle that was there before is told of it.
    while (machine.info().expires_at - updated.expires_at).abs() >= 0.001 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
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
        support::kill(pid);
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines"]
async fn trees_are_saved_and_brought_back() {
    let home = Home::new();
    let workspaces = home.workspaces();
    let mut wanted = new(Workspace);
    wanted.seed = Some(seed(&[("a.txt", "one\n"), ("dir/b.txt", "two\n")]));
    let info = workspaces.create(wanted, &NoProgress).await.unwrap();
    let id = info.record.id;
    assert_eq!((info.record.seed.entry_count, info.record.seed.bytes), (2, 8));
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    assert_eq!(run(&machine, "cat a.txt dir/b.txt").await.unwrap(), "one\ntwo\n");

    run(&machine, "echo changed > a.txt; rm dir/b.txt; echo new > c.txt; touch /etc/mark").await.unwrap();
    let saved = workspaces.create_snapshot(&id, "mine").await.unwrap();
    assert_eq!((saved.name.as_str(), saved.entry_count, saved.bytes), ("mine", 3, 12));
    assert_eq!(workspaces.create_snapshot(&id, "mine").await.unwrap_err().code(), ErrorCode::AlreadyExists);
    let error = workspaces.create_snapshot(&id, "baseline").await.unwrap_err();
    assert_eq!((error.code(), error.message()), (ErrorCode::InvalidArgument, "snapshot_name 'baseline' is reserved"));
    assert_eq!(workspaces.delete_snapshot(&id, "baseline").await.unwrap_err().code(), ErrorCode::InvalidArgument);
    assert_eq!(workspaces.disk(&id).await.unwrap_err().code(), ErrorCode::InvalidState);
    let names: Vec<String> = workspaces.snapshots(&id).await.unwrap().into_iter().map(|row| row.name).collect();
    assert_eq!(names, ["baseline", "mine"]);
    let mut names: Vec<String> = tar::Archive::new(workspaces.read_snapshot(&id, "mine").await.unwrap())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["a.txt", "c.txt", "dir/"]);

    // Back to the beginning: a new machine, on which nothing but the tree is old.
    let command = NewCommand {
        command: "true",
        cwd: "/workspace",
        exit_code: Some(0),
        duration_ms: 1,
        execution_mode: "microvm_qemu_tcg",
        recorded_at: 1.0,
        stdout: b"",
        stderr: b"",
    };
    workspaces.record_command(&id, &command).unwrap();
    let begun = Instant::now();
    let (info, to) = workspaces.reset(&id, "baseline", &NoProgress).await.unwrap();
    println!("reset took {:?}", begun.elapsed());
    assert_eq!((info.record.reset_count, info.command_count, to.name.as_str()), (1, 0, "baseline"));
    assert_ne!(machine.ended().await.code(), ErrorCode::Expired);
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    assert_eq!(
        run(&machine, "cat a.txt dir/b.txt; ls -A; ls /etc/mark 2>&1 || true").await.unwrap().lines().count(),
        5
    );
    assert_eq!(home.machine_dirs(), [machine.id()]);

    // Stopped, it is reset all the same, and its disk can be read.
    workspaces.stop(&id, Workspace).await.unwrap();
    let mut magic = [0; 2];
    std::os::unix::fs::FileExt::read_exact_at(&workspaces.disk(&id).await.unwrap(), &mut magic, 1024 + 0x38).unwrap();
    assert_eq!(magic, [0x53, 0xef]);
    // Who reads it is not disturbed by a start, in any process.
    let disk = home.workspaces().disk(&id).await.unwrap();
    let error = workspaces.start(&id, Workspace, &NoProgress).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Conflict, "{error}");
    assert_eq!(workspaces.info(&id, Workspace).await.unwrap().record.state, RecordState::Stopped);
    assert_eq!(home.machine_dirs(), [""; 0]);
    drop(disk);
    workspaces.start(&id, Workspace, &NoProgress).await.unwrap();
    workspaces.stop(&id, Workspace).await.unwrap();
    assert_eq!(workspaces.reset(&id, "none", &NoProgress).await.unwrap_err().code(), ErrorCode::NotFound);
    let (info, _) = workspaces.reset(&id, "mine", &NoProgress).await.unwrap();
    assert_eq!((info.record.state, info.record.reset_count), (RecordState::Started, 2));
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    assert_eq!(run(&machine, "cat a.txt c.txt; ls -A dir").await.unwrap(), "changed\nnew\n");

    workspaces.delete_snapshot(&id, "mine").await.unwrap();
    assert_eq!(workspaces.delete_snapshot(&id, "mine").await.unwrap_err().code(), ErrorCode::NotFound);
    // A directory, a disk, the baseline, a lock.
    assert_eq!(home.record_files().len(), 4, "{:?}", home.record_files());
    workspaces.delete(&id, Workspace).await.unwrap();
    assert_eq!(home.record_files(), [""; 0]);
    home.assert_no_machines().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines"]
async fn a_seed_that_cannot_be_unpacked_leaves_nothing() {
    let home = Home::new();
    let workspaces = home.workspaces();
    let mut wanted = new(Workspace);
    let mut rubbish = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut rubbish, &[b'x'; 4096]).unwrap();
    wanted.seed = Some((rubbish, seed(&[]).1));
    let error = workspaces.create(wanted, &NoProgress).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");

    // A caller that goes away, at any time.
    for wait in [0, 20, 300, 900] {
        let create = workspaces.create(new(Workspace), &NoProgress);
        assert!(tokio::time::timeout(Duration::from_millis(wait), create).await.is_err());
    }
    // No room for a machine.
    let full =
        pyro_engine::workspaces::Workspaces::open(home.engine(|options| options.max_machines = Some(0))).unwrap();
    let error = full.create(new(Workspace), &NoProgress).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::LimitExceeded, "{error}");

    let begun = Instant::now();
    while !(home.record_files().is_empty() && home.machine_dirs().is_empty()) {
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?} {:?}", home.record_files(), home.machine_dirs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(workspaces.list(Workspace).await.unwrap().is_empty());
    home.assert_no_machines().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines"]
async fn secrets_are_in_the_guests_memory_only() {
    let home = Home::new();
    let workspaces = home.workspaces();
    let mut wanted = new(Workspace);
    wanted.secrets = vec![secret("TOKEN", "hush-hush-7f3a")];
    let info = workspaces.create(wanted, &NoProgress).await.unwrap();
    let id = info.record.id.clone();
    assert_eq!((info.secrets[0].name.as_str(), info.secrets[0].source_kind.as_str()), ("TOKEN", "literal"));
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    let look = "cd /run/pyro-secrets && stat -c '%a %n' . * && cat TOKEN && findmnt -no FSTYPE -T .";
    assert_eq!(run(&machine, look).await.unwrap(), "700 .\n600 TOKEN\nhush-hush-7f3atmpfs\n");

    workspaces.set_secret(&id, secret("TOKEN", "new-value-91c2")).await.unwrap();
    workspaces.set_secret(&id, secret("OTHER", "x")).await.unwrap();
    assert_eq!(run(&machine, "cat /run/pyro-secrets/*").await.unwrap(), "xnew-value-91c2");
    let values = home.workspaces().secret_values(&id).await.unwrap();
    let values: Vec<(&str, &[u8])> = values.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    assert_eq!(values, [("OTHER", &b"x"[..]), ("TOKEN", b"new-value-91c2")]);
    workspaces.remove_secret(&id, "OTHER").await.unwrap();
    assert_eq!(workspaces.remove_secret(&id, "OTHER").await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(run(&machine, "ls /run/pyro-secrets").await.unwrap(), "TOKEN\n");

    // A new machine gets them; the disk, the snapshots and the database never do.
    workspaces.create_snapshot(&id, "s").await.unwrap();
    workspaces.reset(&id, "s", &NoProgress).await.unwrap();
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    assert_eq!(run(&machine, "cat /run/pyro-secrets/TOKEN").await.unwrap(), "new-value-91c2");
    // They need none of the guest's programs, which may be gone.
    run(&machine, "rm /usr/bin/mkdir && sync").await.unwrap();
    workspaces.stop(&id, Workspace).await.unwrap();
    for file in home.record_files().iter().filter(|name| !name.contains("/secret.")) {
        let path = home.dir.path().join("state/records").join(file);
        if path.is_file() {
            assert!(!contains(&path, "new-value-91c2") && !contains(&path, "hush-hush-7f3a"), "{file}");
        }
    }
    for name in ["state.db", "state.db-wal"] {
        assert!(!contains(&home.dir.path().join("state").join(name), "new-value"), "{name}");
    }
    workspaces.start(&id, Workspace, &NoProgress).await.unwrap();
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    let look = "cd /run/pyro-secrets && stat -c '%a %u %g %n' . && cat TOKEN";
    assert_eq!(run(&machine, look).await.unwrap(), "700 0 0 .\nnew-value-91c2");
    run(&machine, "rm -r /run/pyro-secrets && echo > /run/pyro-secrets").await.unwrap();
    let error = workspaces.set_secret(&id, secret("OTHER", "x")).await.unwrap_err();
    assert_eq!(error.hint(), Some("remove `/run/pyro-secrets` in the guest"), "{error}");
    workspaces.delete(&id, Workspace).await.unwrap();
    assert_eq!(home.record_files(), [""; 0]);
    home.assert_no_machines().await;
}

fn secret(name: &str, value: &str) -> NewSecret {
    NewSecret { name: name.to_owned(), value: value.as_bytes().to_vec().into(), kind: SecretKind::Literal }
}

/// Returns whether a file holds a text. The holes of a disk are not read.
fn contains(path: &std::path::Path, needle: &str) -> bool {
    use std::io::{Read, Seek};
    let Ok(mut file) = std::fs::File::open(path) else { return false };
    let finder = aho_corasick::AhoCorasick::new([needle]).unwrap();
    let mut at = 0;
    while let Ok(from) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let to = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(from)).unwrap();
        file.seek(std::io::SeekFrom::Start(from)).unwrap();
        if finder.stream_find_iter((&file).take(to - from)).next().is_some() {
            return true;
        }
        at = to;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines"]
async fn published_ports_outlive_the_client() {
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpStream},
    };
    let home = Home::new();
    let workspaces = home.workspaces();
    let id = workspaces.create(new(Workspace), &NoProgress).await.unwrap().record.id;
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    // Says its first line back in capitals; one connection after another.
    let server = "use Socket; socket(S,PF_INET,SOCK_STREAM,0); setsockopt(S,SOL_SOCKET,SO_REUSEADDR,1); \
        bind(S,sockaddr_in(8080,INADDR_LOOPBACK)) or die; listen(S,64); \
        while(accept(C,S)){ my $all=q(); while(sysread(C,my $b,65536)){$all.=$b} syswrite(C,uc $all); close C }";
    let config = pyro_engine::ServiceConfig {
        name: "upper".to_owned(),
        program: pyro_engine::ExecCommand::Argv(vec!["perl".to_owned(), "-e".to_owned(), server.to_owned()]),
        cwd: "/".to_owned(),
        env: Vec::new(),
        log_limit_bytes: 4096,
        meta: Vec::new(),
    };
    machine.service_start(config).await.unwrap();
    while !machine.service_probe(pyro_engine::Readiness::Tcp("127.0.0.1".to_owned(), 8080)).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(machine);
    let machine = home.workspaces().machine(&id, Workspace).await.unwrap();
    let port = machine.publish(8080, None, Some("web".to_owned())).await.unwrap();
    let closed = machine.publish(8081, None, None).await.unwrap();
    assert_eq!(machine.published().await.unwrap(), [port.clone(), closed.clone()]);
    let error = machine.publish(8080, Some(port.host_port), None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AlreadyExists);
    drop(machine);
    drop(workspaces);

    let ask = |port: u16, bytes: &[u8]| {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let bytes = bytes.to_vec();
        std::thread::spawn(move || {
            let mut writer = client.try_clone().unwrap();
            let sent = std::thread::spawn(move || {
                let _ = writer.write_all(&bytes);
                let _ = writer.shutdown(Shutdown::Write);
            });
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer);
            sent.join().unwrap();
            answer
        })
    };
    assert_eq!(ask(port.host_port, b"hello").join().unwrap(), b"HELLO");
    let large = vec![b'x'; 2 << 20];
    assert_eq!(ask(port.host_port, &large).join().unwrap(), large.to_ascii_uppercase());
    let many: Vec<_> = (0..32).map(|n| (n, ask(port.host_port, format!("n{n}").as_bytes()))).collect();
    for (n, answer) in many {
        assert_eq!(answer.join().unwrap(), format!("N{n}").as_bytes());
    }
    // Nothing listens in the guest: the connection is closed without a byte.
    assert_eq!(ask(closed.host_port, b"").join().unwrap(), b"");

    let workspaces = home.workspaces();
    let machine = workspaces.machine(&id, Workspace).await.unwrap();
    let mut open = TcpStream::connect(("127.0.0.1", port.host_port)).unwrap();
    open.write_all(b"x").unwrap();
    machine.unpublish(port.host_port).await.unwrap();
    assert_eq!(machine.unpublish(port.host_port).await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(open.read(&mut [0; 1]).unwrap_or(0), 0, "a withdrawn port cuts its connections");
    assert!(TcpStream::connect(("127.0.0.1", port.host_port)).is_err());
    workspaces.stop(&id, Workspace).await.unwrap();
    assert!(TcpStream::connect(("127.0.0.1", closed.host_port)).is_err());
    workspaces.delete(&id, Workspace).await.unwrap();
    home.assert_no_machines().await;
}
