//! Machines, for real: every test boots one on the software engine and looks at it from outside.
//!
//! They need an installed environment (`PYRO_TEST_HOME`), the guest agent's file (`PYRO_AGENT`) and this crate's example
//! `machine` as the VM process, so they are run on request:
//!
//! ```text
//! cargo build -p pyro-engine --example machine
//! PYRO_TEST_HOME=... PYRO_AGENT=... cargo test -p pyro-engine --test machine -- --ignored --test-threads 2
//! ```

mod support;

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use pyro_engine::{
    BootFiles, Engine, EngineError, EngineOptions, ErrorCode, ExecCommand, ExecEvent, ExecExit, ExecRequest,
    ExecSession, ExecutionMode, Lifetime, Machine, MachineSpec, MachineState,
};
use tempfile::TempDir;

struct Host {
    engine: Engine,
    files: BootFiles,
    home: TempDir,
}

fn host() -> Host {
    host_with(|_| {})
}

/// An engine with a run directory of its own over the environments of `PYRO_HOME`.
fn host_with(change: impl FnOnce(&mut EngineOptions)) -> Host {
    let home = tempfile::tempdir().unwrap();
    let (engine, files) = support::engine_with_files(home.path(), change);
    Host { engine, files, home }
}

impl Host {
    async fn boot(&self) -> Machine {
        self.engine.boot(self.files.clone(), small()).await.unwrap()
    }

    /// Waits until nothing of any machine is left: directories, VM processes, QEMUs.
    async fn assert_nothing_left(&self, ids: &[&str]) {
        let begun = Instant::now();
        loop {
            let dirs: Vec<String> = fs::read_dir(self.home.path().join("run"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name != ".lock")
                .collect();
            let processes: Vec<u32> = ids.iter().flat_map(|id| processes(id)).collect();
            if dirs.is_empty() && processes.is_empty() && zombies() == 0 {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "left behind: {dirs:?}, processes {processes:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn small() -> MachineSpec {
    MachineSpec { mem_mib: 256, ..MachineSpec::default() }
}

/// Returns the processes with this machine id on their command line.
fn processes(id: &str) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(id))
        })
        .collect()
}

/// Returns how many VM processes of this process ended and were not reaped.
fn zombies() -> usize {
    let own = std::process::id().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter(|stat| {
            let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
            fields.next() == Some("Z") && fields.next() == Some(&own)
        })
        .count()
}

fn qemu(id: &str) -> u32 {
    *processes(id).iter().find(|pid| is_qemu(**pid)).expect("a QEMU runs")
}

fn vmm(id: &str) -> u32 {
    *processes(id).iter().find(|pid| !is_qemu(**pid)).expect("a VM process runs")
}

fn is_qemu(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("qemu"))
}

fn kill(pid: u32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

fn shell(line: &str) -> ExecRequest {
    ExecRequest {
        command: ExecCommand::Shell(line.to_owned()),
        cwd: None,
        env: Vec::new(),
        timeout: Duration::from_secs(60),
        stdin: false,
    }
}

#[derive(Debug)]
struct Ran {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: ExecExit,
}

async fn collect(mut session: ExecSession) -> Result<Ran, EngineError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match session.next().await? {
            ExecEvent::Started { pid } => assert!(pid > 1),
            ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            ExecEvent::Exited(exit) => {
                return Ok(Ran { stdout, stderr, exit });
            }
        }
    }
}

async fn run(machine: &Machine, line: &str) -> Result<Ran, EngineError> {
    collect(machine.exec(shell(line)).await?).await
}

/// Starts a command and waits until the guest says that it runs.
async fn start(machine: &Machine, line: &str) -> ExecSession {
    let mut session = machine.exec(shell(line)).await.unwrap();
    assert!(matches!(session.next().await.unwrap(), ExecEvent::Started { .. }));
    session
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn a_machine_runs_commands_and_leaves_nothing() {
    let host = host();
    let machine = host.boot().await;
    let info = machine.status().await.unwrap();
    assert_eq!(info.state, MachineState::Running);
    assert_eq!(info.execution_mode, ExecutionMode::MicrovmQemuTcg);
    assert_eq!(host.engine.machines().await.unwrap().len(), 1);
    let timings = machine.timings();
    assert!(timings.kernel_ms > 0.0 && timings.agent_ms > 0.0 && timings.total_ms > timings.kernel_ms, "{timings:?}");

    let ran = run(&machine, "echo out; echo err >&2; exit 7").await.unwrap();
    assert_eq!((ran.stdout.as_slice(), ran.stderr.as_slice()), (b"out\n".as_slice(), b"err\n".as_slice()));
    assert_eq!((ran.exit.exit_code, ran.exit.shell_code(), ran.exit.timed_out), (Some(7), 7, false));

    let ran = run(&machine, "kill -TERM $$").await.unwrap();
    assert_eq!((ran.exit.signal.as_deref(), ran.exit.shell_code()), (Some("SIGTERM"), 143));

    let mut request = shell("pwd; echo $WORD");
    request.cwd = Some("/tmp".to_owned());
    request.env = vec![("WORD".to_owned(), "hello".to_owned())];
    assert_eq!(collect(machine.exec(request).await.unwrap()).await.unwrap().stdout, b"/tmp\nhello\n");

    let mut request = shell("sleep 100");
    request.timeout = Duration::from_millis(300);
    let ran = collect(machine.exec(request).await.unwrap()).await.unwrap();
    assert!(ran.exit.timed_out, "{ran:?}");

    // The guest's clock is the host's.
    let ran = run(&machine, "date +%s").await.unwrap();
    let guest: i64 = String::from_utf8(ran.stdout).unwrap().trim().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(guest.abs_diff(i64::try_from(now).unwrap()) <= 3, "{guest} {now}");

    let missing = ExecRequest { command: ExecCommand::Argv(vec!["no-such-program".into()]), ..shell("x") };
    let error = collect(machine.exec(missing).await.unwrap()).await.unwrap_err();
    assert_eq!((error.code(), error.guest_code()), (ErrorCode::NotStarted, Some("not_found")));

    assert_eq!(machine.connect(4).await.unwrap_err().code(), ErrorCode::NotStarted);

    let id = machine.id().to_owned();
    machine.end().await.unwrap();
    host.assert_nothing_left(&[&id]).await;
    assert_eq!(run(&machine, "true").await.unwrap_err().code(), ErrorCode::MachineDied);
    assert_eq!(host.engine.machine(&id).await.unwrap_err().code(), ErrorCode::NotFound);
    machine.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn input_output_and_signals_flow_at_once() {
    let host = host();
    let machine = host.boot().await;

    // More than every buffer on the way, both ways, unchanged.
    let mut request = shell("cat");
    request.stdin = true;
    let session = machine.exec(request).await.unwrap();
    let input = session.input();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let writer = {
        let sent = sent.clone();
        tokio::spawn(async move {
            input.write(&sent).await.unwrap();
            input.close().await.unwrap();
        })
    };
    let ran = collect(session).await.unwrap();
    writer.await.unwrap();
    assert!(ran.stdout == sent, "{} bytes of {}", ran.stdout.len(), sent.len());

    // A reader that takes its time makes the command wait, and loses nothing.
    let mut session = machine.exec(shell("head -c 20000000 /dev/zero; echo end >&2")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut count = 0;
    loop {
        match session.next().await.unwrap() {
            ExecEvent::Stdout(bytes) => count += bytes.len(),
            ExecEvent::Exited(exit) => break assert_eq!(exit.exit_code, Some(0)),
            _ => {}
        }
    }
    assert_eq!(count, 20_000_000);

    let mut session =
        start(&machine, "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.05; done").await;
    while !matches!(session.next().await.unwrap(), ExecEvent::Stdout(_)) {}
    session.input().signal("USR1").await.unwrap();
    assert_eq!(session.input().signal("NONSENSE").await.unwrap_err().code(), ErrorCode::InvalidArgument);
    let ran = collect(session).await.unwrap();
    assert_eq!((ran.stdout.as_slice(), ran.exit.exit_code), (b"caught\n".as_slice(), Some(3)));

    // Two at once take as long as one.
    let begun = Instant::now();
    let (one, two) = tokio::join!(run(&machine, "sleep 3"), run(&machine, "sleep 3"));
    assert_eq!((one.unwrap().exit.exit_code, two.unwrap().exit.exit_code), (Some(0), Some(0)));
    assert!(begun.elapsed() < Duration::from_millis(5500), "{:?}", begun.elapsed());
    machine.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn dropping_a_session_kills_what_it_started() {
    let host = host();
    let machine = host.boot().await;
    let alive = "n=0; for p in /proc/[0-9]*; do read -r c <$p/comm; [ \"$c\" = sleep ] && n=$((n+1)); done; echo $n";
    let session = start(&machine, "sleep 4242 & (setsid sleep 4242 &) ; sleep 4242").await;
    // A busy guest takes its time to start them.
    let begun = Instant::now();
    while run(&machine, alive).await.unwrap().stdout != b"3\n" {
        assert!(begun.elapsed() < Duration::from_secs(20), "the three never ran");
    }
    let kept = session.input();
    drop(session);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(run(&machine, alive).await.unwrap().stdout, b"0\n");
    assert!(kept.close().await.is_err());
    machine.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn a_killed_qemu_is_a_dead_machine() {
    let host = host();
    let machine = host.boot().await;
    let session = start(&machine, "sleep 100").await;
    let begun = Instant::now();
    kill(qemu(machine.id()));
    let error = collect(session).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::MachineDied, "{error}");
    assert!(error.message().contains("outcome is unknown") && error.message().contains("signal 9"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(run(&machine, "true").await.unwrap_err().code(), ErrorCode::MachineDied);
    host.assert_nothing_left(&[machine.id()]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn a_killed_vm_process_takes_its_machine_with_it() {
    let host = host();
    let machine = host.boot().await;
    let session = start(&machine, "sleep 100").await;
    let dir = host.home.path().join("run").join(machine.id());
    kill(vmm(machine.id()));
    let error = collect(session).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::MachineDied, "{error}");
    // It could not remove its directory; whoever used the machine did, before saying so.
    assert!(!dir.exists());
    host.assert_nothing_left(&[machine.id()]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn an_owned_machine_ends_with_its_owner() {
    let host = host();
    let home = host.home.path();
    // Another process makes a machine and is killed while it uses it.
    let mut owner = Command::new(support::example("machine"))
        .args([&host.files.kernel, &host.files.initramfs, &host.files.rootfs])
        .args(["--home"])
        .arg(home)
        .args(["--", "sleep", "1000"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let id = loop {
        assert!(owner.try_wait().unwrap().is_none(), "the owner ended");
        if let Some(machine) = host.engine.machines().await.unwrap().first()
            && machine.state == MachineState::Running
        {
            break machine.id.clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    owner.kill().unwrap();
    owner.wait().unwrap();
    host.assert_nothing_left(&[&id]).await;

    // The last handle of this process does it too.
    let machine = host.boot().await;
    let id = machine.id().to_owned();
    let again = machine.clone();
    drop(machine);
    assert!(run(&again, "true").await.is_ok());
    drop(again);
    host.assert_nothing_left(&[&id]).await;

    // So does giving up while it boots.
    let booting = tokio::time::timeout(Duration::from_millis(300), host.boot()).await;
    assert!(booting.is_err());
    host.assert_nothing_left(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn a_detached_machine_lives_until_it_is_ended() {
    let host = host();
    let spec = MachineSpec { lifetime: Lifetime::Detached, ..small() };
    let id = host.engine.boot(host.files.clone(), spec).await.unwrap().id().to_owned();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let found = host.engine.machine(&id).await.unwrap();
    let watching = host.engine.machine(&id).await.unwrap();
    assert_eq!(run(&found, "echo here").await.unwrap().stdout, b"here\n");

    // Clients that make no sense are told so, and cost the others nothing.
    let socket = host.home.path().join("run").join(&id).join("control.sock");
    let mut silent = Vec::new();
    for line in [&b"\n"[..], b"{\"op\":\"explode\"}\n", b"\xff\xff\n", b"[[[[\n", &[b'x'; 5000]] {
        let mut client = UnixStream::connect(&socket).unwrap();
        client.write_all(line).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut reply = String::new();
        let _ = client.read_to_string(&mut reply);
        assert!(reply.starts_with("{\"error\":{\"code\":\"invalid_argument\""), "{reply}");
        silent.push(UnixStream::connect(&socket).unwrap());
    }
    assert_eq!(run(&found, "echo here").await.unwrap().stdout, b"here\n");
    found.pause().await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_secs(1), run(&found, "true")).await;
    assert!(waiting.is_err(), "a paused machine runs nothing");
    found.resume().await.unwrap();
    assert_eq!(run(&found, "echo again").await.unwrap().stdout, b"again\n");

    found.end().await.unwrap();
    assert_eq!(watching.ended().await.code(), ErrorCode::MachineDied);
    host.assert_nothing_left(&[&id]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine, and waits a minute"]
async fn a_machine_ends_when_its_time_is_over() {
    let host = host();
    let spec = MachineSpec { ttl: Duration::from_secs(60), lifetime: Lifetime::Detached, ..small() };
    let begun = Instant::now();
    let machine = host.engine.boot(host.files.clone(), spec).await.unwrap();
    let session = start(&machine, "sleep 1000").await;
    let error = collect(session).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Expired, "{error}");
    let lived = begun.elapsed().as_secs_f64();
    assert!((59.5..63.0).contains(&lived), "{lived}");
    host.assert_nothing_left(&[machine.id()]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots a machine"]
async fn a_panic_is_told_with_the_console() {
    let host = host();
    let machine = host.boot().await;
    let error =
        run(&machine, "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 100").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::GuestPanic, "{error}");
    assert!(error.console_tail().unwrap().contains("Kernel panic"), "{:?}", error.console_tail());
    host.assert_nothing_left(&[machine.id()]).await;

    // Printing the words is no panic.
    let machine = host.boot().await;
    assert!(run(&machine, "echo 'Kernel panic' >/dev/console; sleep 3").await.is_ok());
    let error = run(&machine, "kill -9 -1; echo b >/proc/sysrq-trigger; sleep 100").await.unwrap_err();
    assert_ne!(error.code(), ErrorCode::Internal);
    host.assert_nothing_left(&[machine.id()]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines"]
async fn boots_that_fail_say_why() {
    let host = host_with(|options| options.max_machines = Some(1));
    let scratch = tempfile::tempdir().unwrap();

    let mut files = host.files.clone();
    files.kernel = scratch.path().join("none");
    let error = host.engine.boot(files, small()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BootFailed, "{error}");
    assert!(error.message().contains("none"), "{error}");

    let mut files = host.files.clone();
    files.rootfs = scratch.path().join("none");
    assert_eq!(host.engine.boot(files, small()).await.unwrap_err().code(), ErrorCode::Io);

    // No initramfs to speak of: the kernel finds no init.
    let mut files = host.files.clone();
    files.initramfs = scratch.path().join("initramfs");
    fs::write(&files.initramfs, [0; 4096]).unwrap();
    let error = host.engine.boot(files, small()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::GuestPanic, "{error}");
    assert!(error.console_tail().unwrap().contains("Kernel panic"), "{:?}", error.console_tail());

    // A root file system that is none: the agent gives up.
    let mut files = host.files.clone();
    files.rootfs = scratch.path().join("rootfs");
    fs::write(&files.rootfs, vec![0; 1 << 20]).unwrap();
    let error = host.engine.boot(files, small()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::GuestPanic, "{error}");
    assert!(error.console_tail().is_some_and(|tail| tail.contains("pyro-agent: fatal")), "{:?}", error.console_tail());

    let hasty = host_with(|options| options.boot_limit = Duration::from_millis(300));
    let error = hasty.engine.boot(hasty.files.clone(), small()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BootTimeout, "{error}");
    hasty.assert_nothing_left(&[]).await;

    let no_program = host_with(|options| options.vmm_program = "/no/such/program".into());
    let error = no_program.engine.boot(no_program.files.clone(), small()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::EngineUnavailable, "{error}");
    no_program.assert_nothing_left(&[]).await;

    let mute = host_with(|options| options.vmm_program = "/bin/false".into());
    let error = mute.engine.boot(mute.files.clone(), small()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BootFailed, "{error}");
    mute.assert_nothing_left(&[]).await;

    // Failures gave their places back.
    let machine = host.boot().await;
    let error = host.engine.boot(host.files.clone(), small()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::LimitExceeded, "{error}");
    machine.end().await.unwrap();
    host.boot().await.end().await.unwrap();
    host.assert_nothing_left(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "boots machines on a busy host"]
async fn a_busy_host_boots_all_the_same() {
    let host = host();
    let _busy = [Busy::start(), Busy::start()];
    for _ in 0..3 {
        let machine = host.boot().await;
        assert_eq!(run(&machine, "echo up").await.unwrap().stdout, b"up\n");
        machine.end().await.unwrap();
    }
}

/// A process that takes all the CPU it can get, until it is dropped.
struct Busy(std::process::Child);

impl Busy {
    fn start() -> Self {
        Self(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // It runs until it is killed, so neither fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
