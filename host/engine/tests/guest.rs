//! What the guest agent does besides commands, in a real machine: files, terminals, services, ports.
//!
//! Run on request, with the surroundings of the tests in `machine.rs`.

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use pyro_engine::{
    AgentSource, BootFiles, Content, Engine, EngineOptions, ErrorCode, ExecCommand, ExecEvent, ExecRequest, FileChange,
    FileKind, Machine, MachineSpec, NoProgress, Paths, environments::Environments,
};
use tempfile::TempDir;

struct Host {
    machine: Machine,
    // The machine's directory is in it.
    _home: TempDir,
}

async fn boot() -> Host {
    let shared = std::env::var_os("PYRO_TEST_HOME").expect("PYRO_TEST_HOME names a home with debian:12 installed");
    let agent = std::env::var_os("PYRO_AGENT").expect("PYRO_AGENT names the guest agent's file");
    let agent = AgentSource(fs::read(agent).unwrap().leak());
    let installed =
        Environments::new(&Paths::below(Path::new(&shared)), agent).ensure("debian:12", &NoProgress).unwrap();
    let mut options = EngineOptions::with_agent(agent).unwrap();
    options.vmm_program = vmm_program();
    options.max_machines = None;
    options.boot_limit = Duration::from_secs(120);
    let home = tempfile::tempdir().unwrap();
    let engine = Engine::open(Paths::below(home.path()), options).unwrap();
    let spec = MachineSpec { mem_mib: 256, ..MachineSpec::default() };
    Host { machine: engine.boot(BootFiles::from(&installed), spec).await.unwrap(), _home: home }
}

fn vmm_program() -> PathBuf {
    let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/machine");
    assert!(program.is_file(), "build it first: cargo build -p pyro-engine --example machine");
    program
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
    FileChange { path: path.to_owned(), content, mode }
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
