//! What the guest agent does besides commands, in a real machine: files, terminals, services, ports.
//!
//! Run on request, with the surroundings of the tests in `machine.rs`.

mod support;

use std::{
    fs::File,
    io::{Read, Seek, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use pyro_engine::{
    Content, ErrorCode, ExecCommand, ExecEvent, ExecRequest, FileChange, FileKind, Machine, MachineSpec, Readiness,
    ServiceConfig, TerminalRequest, TerminalState,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Host {
    machine: Machine,
    // The machine's directory is in it.
    _home: TempDir,
}

async fn boot() -> Host {
    let home = tempfile::tempdir().unwrap();
    let (engine, files) = support::engine_with_files(home.path(), |_| {});
    let spec = MachineSpec { mem_mib: 256, ..MachineSpec::default() };
    Host { machine: engine.boot(files, spec).await.unwrap(), _home: home }
}

async fn run(machine: &Machine, line: &str) -> String {
    let request = ExecRequest {
        command: ExecCommand::Shell(line.to_owned()),
        cwd: None,
        env: Vec::new(),
        timeout: Duration::from_secs(60),
        stdin: false,
    };
    let mut session = machine.exec(request).await.unwrap();
    let mut output = String::new();
    loop {
        match session.next().await.unwrap() {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => output.push_str(&String::from_utf8_lossy(&bytes)),
            ExecEvent::Exited(exit) => {
                assert_eq!(exit.shell_code(), 0, "{line}: {output}");
                return output;
            }
            ExecEvent::Started { .. } => {}
        }
    }
}

fn change(path: &str, content: Option<Content>, mode: Option<u32>) -> FileChange {
    FileChange { path: path.to_owned(), content, mode, replaces: None }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn files_go_in_and_out() {
    let host = boot().await;
    let machine = &host.machine;
    let root = "/workspace";

    let mut on_disk = tempfile::tempfile().unwrap();
    on_disk.write_all(b"before a part of a file after").unwrap();
    let part = Content::File { file: Arc::new(on_disk), offset: 7, length: 16 };
    let changes = vec![
        change("/workspace/dir/text", Some(Content::Bytes(b"hello\n".as_slice().into())), Some(0o600)),
        change("/workspace/part", Some(part), None),
    ];
    machine.file_apply(root, changes).await.unwrap();
    assert_eq!(run(machine, "cat dir/text part; stat -c %a dir/text part").await, "hello\na part of a file600\n644\n");
    assert_eq!(machine.file_read(root, "/workspace/dir/text", 1, 3).await.unwrap(), (b"ell".to_vec(), 6));

    let entry = machine.file_stat(root, "/workspace/dir").await.unwrap();
    assert_eq!((entry.path.as_str(), entry.kind), ("/workspace/dir", FileKind::Directory));
    let (entries, more) = machine.file_list(root, root, true, 10).await.unwrap();
    let paths: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(
        (paths.as_slice(), more),
        (["/workspace/dir", "/workspace/dir/text", "/workspace/part"].as_slice(), false)
    );
    let (entries, more) = machine.file_list("/", "/usr", true, 5000).await.unwrap();
    assert_eq!((entries.len(), more), (5000, true));

    run(machine, "ln -s /etc dir/out").await;
    let denied = machine.file_read(root, "/workspace/dir/out/passwd", 0, 10).await.unwrap_err();
    assert_eq!(denied.code(), ErrorCode::Denied, "{denied}");
    let missing = machine.file_stat(root, "/workspace/none").await.unwrap_err();
    assert_eq!(missing.code(), ErrorCode::NotFound, "{missing}");
    let refused =
        machine.file_apply(root, vec![change("/workspace/part", None, None), change("/workspace/none", None, None)]);
    assert_eq!(refused.await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(run(machine, "cat part").await, "a part of a file");
    machine.file_apply(root, vec![change("/workspace/part", None, None)]).await.unwrap();
    assert_eq!(run(machine, "ls -A").await, "dir\n");
    machine.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn large_archives_go_in_and_out() {
    const MIB: usize = 1024 * 1024;
    const SIZE: usize = 256;
    let host = boot().await;
    let machine = &host.machine;

    // One large file and some small ones.
    let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
    let block: Vec<u8> = (0..MIB as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut add = |path: String, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        let content = std::iter::repeat_n(block.as_slice(), SIZE).flatten().copied().take(size).collect::<Vec<u8>>();
        tar.append_data(&mut header, path, content.as_slice()).unwrap();
    };
    add("large".to_owned(), SIZE * MIB);
    for number in 0..500 {
        add(format!("many/{}/{number}", number % 10), 1000);
    }
    let tar = tar.into_inner().unwrap();
    let size = tar.metadata().unwrap().len();

    let begun = Instant::now();
    let counted = machine.extract("/workspace", "/workspace", tar).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(counted, (501, (SIZE * MIB + 500_000) as u64));
    report("in", size, took);

    let mut out = tempfile::tempfile().unwrap();
    let begun = Instant::now();
    let bytes = machine.archive("/workspace", "/workspace", out.try_clone().unwrap()).await.unwrap();
    report("out", bytes, begun.elapsed());
    assert_eq!(bytes, out.metadata().unwrap().len());
    out.rewind().unwrap();
    let mut files = 0;
    for entry in tar::Archive::new(&mut out).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            files += 1;
            let mut piece = vec![0; MIB];
            let count = entry.read(&mut piece).unwrap();
            assert_eq!(piece[..count], block[..count]);
        }
    }
    assert_eq!(files, 501);

    // A bad archive changes nothing, and its reason comes although the host is still sending.
    let mut bad = tempfile::tempfile().unwrap();
    bad.write_all(&vec![b'x'; 20 * MIB]).unwrap();
    let before = run(machine, "ls -AR /workspace | md5sum").await;
    let error = machine.extract("/workspace", "/workspace", bad).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
    assert_eq!(run(machine, "ls -AR /workspace | md5sum").await, before);
    machine.end().await.unwrap();
}

/// Linux copies what is sent on a vsock into one piece of memory, and refuses it (ENOMEM) when there is none so large.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn a_guest_whose_memory_is_in_pieces_sends_all_the_same() {
    // The kernel can neither move nor take back a page of a pipe: of two pipes that are filled in turns, one is emptied
    // again. The tables of large pipes take what pieces are left of 64 KiB and more.
    const IN_PIECES: &str = r#"
import fcntl, os, resource, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
def available_kib():
    return int(next(line for line in open("/proc/meminfo") if line.startswith("MemAvailable")).split()[1])
pairs, tables, page = [], [], bytes(4096)
while available_kib() > 16 * 1024:
    pairs.append((os.pipe(), os.pipe()))
    for _ in range(16):
        for _, writer in pairs[-1]:
            os.write(writer, page)
for (reader, _), _ in pairs:
    os.read(reader, 16 * 4096)
try:
    while True:
        tables.append(os.pipe())
        fcntl.fcntl(tables[-1][0], fcntl.F_SETPIPE_SZ, 4 << 20)
except OSError as error:
    print(error, flush=True)
time.sleep(1000)
"#;
    const SIZE: usize = 20 * 1024 * 1024;
    let host = boot().await;
    let machine = &host.machine;
    run(machine, &format!("yes | head -c {SIZE} > large")).await;
    let config = ServiceConfig {
        name: "pieces".to_owned(),
        program: ExecCommand::Argv(["python3", "-c", IN_PIECES].map(str::to_owned).to_vec()),
        cwd: "/".to_owned(),
        env: Vec::new(),
        log_limit_bytes: 4096,
        meta: Vec::new(),
    };
    machine.service_start(config).await.unwrap();
    let begun = Instant::now();
    let said = loop {
        let logs = machine.service_logs("pieces").await.unwrap();
        if !logs.stdout.is_empty() || !logs.stderr.is_empty() {
            break String::from_utf8_lossy(&[logs.stdout, logs.stderr].concat()).into_owned();
        }
        assert!(begun.elapsed() < Duration::from_secs(100), "the guest's memory was never in pieces");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(said.contains("Cannot allocate memory"), "{said}");

    let mut out = tempfile::tempfile().unwrap();
    machine.archive("/workspace", "/workspace", out.try_clone().unwrap()).await.unwrap();
    out.rewind().unwrap();
    let mut archive = tar::Archive::new(out);
    let mut content = Vec::new();
    archive.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut content).unwrap();
    assert!(content.len() == SIZE && content.chunks(2).all(|line| line == b"y\n"), "{} bytes", content.len());
    let printed = run(machine, "cat large").await;
    assert_eq!((printed.len(), printed.as_bytes() == content), (SIZE, true));
    machine.end().await.unwrap();
}

#[expect(clippy::print_stderr, reason = "shown by --nocapture, for those who look at throughput")]
fn report(way: &str, bytes: u64, took: Duration) {
    eprintln!("{way}: {:.0} MiB/s", bytes as f64 / 1024.0 / 1024.0 / took.as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn a_guest_that_is_asked_to_ends_by_itself() {
    let host = boot().await;
    let into: File = tempfile::tempfile().unwrap();
    host.machine.shut_down().await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), host.machine.ended()).await.expect("the machine ends");
    let error = host.machine.archive("/", "/etc", into).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::MachineDied, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn a_terminal_is_kept_between_calls() {
    let host = boot().await;
    let machine = &host.machine;
    let request = TerminalRequest { cwd: "/workspace".to_owned(), cols: 100, rows: 30, env: Vec::new() };
    let opened = machine.terminal_open(request).await.unwrap();
    assert_eq!((opened.state, opened.cols, opened.rows), (TerminalState::Running, 100, 30));
    let id = opened.id.as_str();
    let until = async |wanted: &str| {
        let begun = Instant::now();
        loop {
            let read = machine.terminal_read(id, 0, u32::MAX, Some(Duration::from_millis(50))).await.unwrap();
            let text = String::from_utf8_lossy(&read.data).into_owned();
            if text.contains(wanted) {
                return read;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "never {wanted:?} in {text:?}");
        }
    };
    until("pyro$ ").await;
    machine.terminal_write(id, b"stty size; echo $0-$PWD-$((6*7)); tty\n").await.unwrap();
    until("30 100").await;
    until("bash-/workspace-42").await;
    until("/dev/pts/").await;
    machine.terminal_resize(id, 90, 20).await.unwrap();
    machine.terminal_write(id, b"sh -c 'echo in$((1+1)); exec sleep 1000'\n").await.unwrap();
    until("in2").await;
    machine.terminal_signal(id, "INT").await.unwrap();
    machine.terminal_write(id, b"echo code=$?; stty size\n").await.unwrap();
    let read = until("20 90").await;
    assert!(String::from_utf8_lossy(&read.data).contains("code=130"), "{}", String::from_utf8_lossy(&read.data));
    let rest = machine.terminal_read(id, read.next, u32::MAX, None).await.unwrap();
    assert!(rest.start >= read.next);
    assert_eq!(machine.terminal_list().await.unwrap().len(), 1);
    let closed = machine.terminal_close(id).await.unwrap();
    assert!(closed.state == TerminalState::Stopped && closed.ended_at.is_some(), "{closed:?}");
    let error = machine.terminal_read(id, 0, 1, None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
    machine.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn a_service_is_kept_and_its_port_reached() {
    let host = boot().await;
    let machine = &host.machine;
    // The image has perl but no server; a few lines make one that echoes and then adds a word.
    let server = r#"
        use Socket; $| = 1; print "up\n";
        socket(S, PF_INET, SOCK_STREAM, 0); setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
        bind(S, sockaddr_in(8080, INADDR_LOOPBACK)); listen(S, 9);
        while (accept(C, S)) {
            if (fork() == 0) { while (sysread(C, $b, 65536)) { syswrite(C, $b) } syswrite(C, "end"); exit }
            close C
        }"#;
    let config = |name: &str, program| ServiceConfig {
        name: name.to_owned(),
        program,
        cwd: "/workspace".to_owned(),
        env: Vec::new(),
        log_limit_bytes: 1 << 20,
        meta: vec![("kind".to_owned(), "echo".to_owned())],
    };
    let program = ExecCommand::Argv(["perl", "-e", server].map(str::to_owned).to_vec());
    let started = machine.service_start(config("echo", program.clone())).await.unwrap();
    assert!(started.running && started.pid.is_some(), "{started:?}");
    let error = machine.service_start(config("echo", program)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AlreadyExists, "{error}");
    let missing = machine.service_start(config("x", ExecCommand::Argv(vec!["no-such".to_owned()]))).await.unwrap_err();
    assert_eq!((missing.code(), missing.guest_code()), (ErrorCode::NotStarted, Some("not_found")));

    let begun = Instant::now();
    while !machine.service_probe(Readiness::Tcp("127.0.0.1".to_owned(), 8080)).await.unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the service never listened");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!machine.service_probe(Readiness::Http("http://localhost:81/".to_owned())).await.unwrap());
    assert!(machine.service_probe(Readiness::File("/etc/passwd".to_owned())).await.unwrap());

    // Both ways at once, and one end after the other.
    let mut stream = machine.connect_tcp(8080).await.unwrap();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut reading, mut writing) = stream.split();
    let mut received = Vec::new();
    let (_, read) = tokio::join!(
        async {
            writing.write_all(&sent).await.unwrap();
            writing.shutdown().await.unwrap();
        },
        reading.read_to_end(&mut received)
    );
    read.unwrap();
    assert_eq!(received.len(), sent.len() + 3);
    assert!(received.starts_with(&sent) && received.ends_with(b"end"));
    assert_eq!(machine.connect_tcp(81).await.unwrap_err().code(), ErrorCode::NotFound);

    let annotated = machine.service_annotate("echo", vec![("ready".to_owned(), "yes".to_owned())]).await.unwrap();
    assert_eq!(annotated.meta.len(), 2);
    assert!(machine.service_wait("echo", Duration::from_millis(50)).await.unwrap().running);
    assert_eq!(machine.service_logs("echo").await.unwrap().stdout, b"up\n");
    assert_eq!(machine.service_remove("echo").await.unwrap_err().code(), ErrorCode::InvalidState);
    let stopped = machine.service_stop("echo", Duration::from_secs(5)).await.unwrap();
    assert_eq!((stopped.running, stopped.signal.as_deref()), (false, Some("SIGTERM")));
    assert_eq!(machine.service_status("echo").await.unwrap(), stopped);
    assert_eq!(machine.service_list().await.unwrap(), [stopped]);
    machine.service_remove("echo").await.unwrap();
    assert!(machine.service_list().await.unwrap().is_empty());
    machine.end().await.unwrap();
}
