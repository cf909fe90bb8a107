//! Commands over a socket, with and without cgroups.

mod support;

use std::time::{Duration, Instant};

use pyro_agent_protocol::*;
use support::{Agent, Collected, PATIENCE, eventually, is_running, write_program};

/// Runs `test` against a server that kills by process group and, where this machine allows it, one with cgroups.
fn on_each(test: impl Fn(&Agent)) {
    test(&Agent::without_cgroups());
    if let Some(agent) = Agent::with_cgroups() {
        test(&agent);
    }
}

fn argv(words: &[&str]) -> ExecRequest {
    ExecRequest::new(Program::Argv(words.iter().map(|word| (*word).to_owned()).collect()))
}

fn run(agent: &Agent, request: ExecRequest) -> Collected {
    agent.open(Op::Exec(request)).collect()
}

#[test]
fn exit_codes_and_split_streams() {
    on_each(|agent| {
        let all = agent.shell("echo out; echo err >&2; exit 7").collect();
        assert_eq!(all.stdout, b"out\n");
        assert_eq!(all.stderr, b"err\n");
        assert_eq!(all.exited().exit_code, Some(7));
        assert_eq!(all.exited().signal, None);
        assert!(!all.exited().timed_out && !all.exited().leftovers_killed);
        assert!(all.started.is_some());
        assert_eq!(all.exited().cpu_us.is_some(), agent.cgroups);
    });
}

#[test]
fn a_connection_is_kept_for_the_next_command() {
    on_each(|agent| {
        let request = |line: &str| ExecRequest { keep: true, ..ExecRequest::new(Program::Shell(line.to_owned())) };
        let mut host = agent.connect();
        for code in 0..5 {
            host.send(&HostFrame::Open(Open::new(Op::Exec(request(&format!("echo {code}; exit {code}"))))));
            let first = host.next();
            assert!(matches!(first, Some(GuestFrame::Started(_))), "{first:?}");
            let mut output = Vec::new();
            let exited = loop {
                match host.next() {
                    Some(GuestFrame::Stdout(bytes)) => output.extend(bytes),
                    Some(GuestFrame::Exited(exited)) => break exited,
                    other => panic!("unexpected: {other:?}"),
                }
            };
            assert_eq!((exited.exit_code, exited.kept), (Some(code), true));
            assert_eq!(output, format!("{code}\n").as_bytes());
        }
        // An operation that ends with the connection, on one that was kept.
        host.send(&HostFrame::Open(Open::new(Op::FileStat(FilePath { root: "/".into(), path: "/etc".into() }))));
        assert_eq!(host.answer().entries.len(), 1);

        // A command that cannot start closes it, and so does one that is not asked to keep it.
        let mut host = agent.open(Op::Exec(ExecRequest { keep: true, ..argv(&["no-such-program"]) }));
        assert_eq!(host.collect().error().code, codes::NOT_FOUND);
        let mut host = agent.open(Op::Exec(argv(&["true"])));
        assert!(!host.collect().exited().kept);
    });
}

#[test]
fn commands_of_kept_connections_do_not_hear_of_each_other() {
    on_each(|agent| {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    let mut host = agent.connect();
                    for round in 0..40 {
                        let line = format!("echo {thread} {round}");
                        let request = ExecRequest { keep: true, ..ExecRequest::new(Program::Shell(line)) };
                        host.send(&HostFrame::Open(Open::new(Op::Exec(request))));
                        host.started();
                        let said = Some(GuestFrame::Stdout(format!("{thread} {round}\n").into_bytes()));
                        assert_eq!(host.next(), said);
                        assert!(matches!(host.next(), Some(GuestFrame::Exited(Exited { exit_code: Some(0), .. }))));
                    }
                });
            }
        });
    });
}

#[test]
fn a_signal_that_comes_with_the_request_is_not_lost() {
    on_each(|agent| {
        for _ in 0..20 {
            let mut host = agent.connect();
            let request = Op::Exec(ExecRequest { stdin: true, ..argv(&["sleep", "60"]) });
            host.send_all(&[&HostFrame::Open(Open::new(request)), &HostFrame::Signal("TERM".into())]);
            assert_eq!(host.collect().exited().signal.as_deref(), Some("SIGTERM"));
        }
    });
}

#[test]
fn what_is_not_a_request_ends_a_kept_connection() {
    on_each(|agent| {
        let request = ExecRequest { keep: true, ..argv(&["true"]) };
        let mut host = agent.open(Op::Exec(request));
        while !matches!(host.next(), Some(GuestFrame::Exited(_))) {}
        host.send(&HostFrame::Signal("TERM".into()));
        assert_eq!(host.collect().error().code, codes::PROTOCOL_VIOLATION);
    });
}

#[test]
fn a_host_that_leaves_a_kept_connection_is_forgotten() {
    on_each(|agent| {
        for _ in 0..400 {
            let request = ExecRequest { keep: true, ..argv(&["true"]) };
            let mut host = agent.open(Op::Exec(request));
            while !matches!(host.next(), Some(GuestFrame::Exited(_))) {}
        }
        assert_eq!(run(agent, argv(&["true"])).exited().exit_code, Some(0));
    });
}

#[test]
fn a_signal_is_told_by_name() {
    on_each(|agent| {
        let all = agent.shell("kill -SEGV $$").collect();
        assert_eq!(all.exited().exit_code, None);
        assert_eq!(all.exited().signal.as_deref(), Some("SIGSEGV"));
    });
}

#[test]
fn output_need_not_be_text() {
    on_each(|agent| {
        let all = agent.shell(r"printf '\377\000\376'").collect();
        assert_eq!(all.stdout, [0xff, 0, 0xfe]);
    });
}

#[test]
fn a_program_is_found_in_the_path_of_the_command() {
    on_each(|agent| {
        assert_eq!(run(agent, argv(&["true"])).exited().exit_code, Some(0));
        assert_eq!(run(agent, argv(&["/bin/false"])).exited().exit_code, Some(1));

        let script = agent.dir().join("greet");
        write_program(&script, "#!/bin/sh\necho hello \"$1\"\n");
        let mut request = argv(&["greet", "you"]);
        request.env = vec![("PATH".into(), format!("/nowhere:{}", agent.dir().display()))];
        let denied = run(agent, request.clone());
        assert_eq!(denied.error().code, codes::PERMISSION_DENIED);
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(run(agent, request).stdout, b"hello you\n");
    });
}

#[test]
fn a_command_that_cannot_start_is_an_error_before_started() {
    on_each(|agent| {
        let script = agent.dir().join("no-first-line");
        write_program(&script, "echo hi\n");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut missing_cwd = argv(&["true"]);
        missing_cwd.cwd = Some("/no/such/dir".into());
        let mut file_as_cwd = argv(&["true"]);
        file_as_cwd.cwd = Some("/etc/passwd".into());
        let mut relative_cwd = argv(&["true"]);
        relative_cwd.cwd = Some("tmp".into());
        let mut nul_in_env = argv(&["true"]);
        nul_in_env.env = vec![("A".into(), "b\0".into())];
        let mut nul_in_cwd = argv(&["true"]);
        nul_in_cwd.cwd = Some("/\0".into());
        let mut bad_name = argv(&["true"]);
        bad_name.env = vec![("A=B".into(), "c".into())];
        for (request, code) in [
            (argv(&["no-such-program-here"]), codes::NOT_FOUND),
            (argv(&["/no/such/program"]), codes::NOT_FOUND),
            (argv(&["/etc/passwd"]), codes::PERMISSION_DENIED),
            (argv(&[script.to_str().unwrap()]), codes::NOT_EXECUTABLE),
            (argv(&[]), codes::INVALID_ARGUMENT),
            (argv(&[""]), codes::INVALID_ARGUMENT),
            (argv(&["echo", "a\0b"]), codes::INVALID_ARGUMENT),
            (ExecRequest::new(Program::Shell("echo \0".into())), codes::INVALID_ARGUMENT),
            (nul_in_env, codes::INVALID_ARGUMENT),
            (nul_in_cwd, codes::INVALID_ARGUMENT),
            (bad_name, codes::INVALID_ARGUMENT),
            (missing_cwd, codes::INVALID_CWD),
            (file_as_cwd, codes::INVALID_CWD),
            (relative_cwd, codes::INVALID_CWD),
        ] {
            let all = run(agent, request.clone());
            assert_eq!(all.error().code, code, "{request:?}: {:?}", all.error());
            assert!(all.started.is_none());
        }
    });
}

#[test]
fn cwd_and_environment() {
    on_each(|agent| {
        let mut request = argv(&["/bin/sh", "-c", "pwd; echo $PWD $A-$HOME-$TERM-$LANG; umask; ulimit -n"]);
        request.cwd = Some("/usr".into());
        request.env = vec![("A".into(), "1".into()), ("A".into(), "2".into()), ("HOME".into(), "/h".into())];
        let text = String::from_utf8(run(agent, request).stdout).unwrap();
        assert_eq!(text, "/usr\n/usr 2-/h-dumb-C.UTF-8\n0022\n1024\n");

        let names = run(agent, argv(&["env"])).stdout;
        let names = String::from_utf8(names).unwrap();
        assert!(!names.contains("CARGO"), "the agent's own environment leaked: {names}");
    });
}

#[test]
fn descriptors_of_the_agent_do_not_leak() {
    on_each(|agent| {
        let _other = agent.shell("sleep 30");
        let all = run(agent, argv(&["/bin/sh", "-c", "ls -l /proc/self/fd >&2; ls /proc/self/fd | wc -l"]));
        // 0, 1, 2 and the one that ls opens.
        assert_eq!(all.stdout, b"4\n", "{}", String::from_utf8_lossy(&all.stderr));
    });
}

#[test]
fn a_timeout_keeps_the_output_and_kills_the_tree() {
    on_each(|agent| {
        let mut request = ExecRequest::new(Program::Shell("echo before; sleep 60 & echo $!; sleep 60".into()));
        request.timeout_ms = 300;
        let began = Instant::now();
        let all = run(agent, request);
        assert!(began.elapsed() < PATIENCE / 2);
        let text = String::from_utf8(all.stdout.clone()).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("before"));
        let background: u32 = lines.next().unwrap().parse().unwrap();
        assert!(all.exited().timed_out);
        assert_eq!(all.exited().signal.as_deref(), Some("SIGKILL"));
        assert!((300..2000).contains(&all.exited().duration_ms), "{:?}", all.exited());
        eventually("the background child dies", || !is_running(background));
    });
}

#[test]
fn a_huge_timeout_is_no_timeout() {
    on_each(|agent| {
        let mut request = argv(&["true"]);
        request.timeout_ms = u64::MAX;
        assert_eq!(run(agent, request).exited().exit_code, Some(0));
    });
}

#[test]
fn a_background_child_does_not_hold_the_command() {
    on_each(|agent| {
        let began = Instant::now();
        let all = agent.shell("sleep 60 & echo $!; exit 3").collect();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(all.exited().exit_code, Some(3));
        assert_eq!(all.exited().leftovers_killed, agent.cgroups);
        let background: u32 = String::from_utf8(all.stdout).unwrap().trim().parse().unwrap();
        eventually("the background child dies", || !is_running(background));
    });
}

/// A process group does not hold it, a cgroup does.
#[test]
fn a_daemon_does_not_outlive_the_command() {
    let Some(agent) = Agent::with_cgroups() else {
        return;
    };
    let all = agent.shell("setsid sleep 60 >/dev/null 2>&1 & echo $!").collect();
    let daemon: u32 = String::from_utf8(all.stdout.clone()).unwrap().trim().parse().unwrap();
    assert!(all.exited().leftovers_killed);
    assert!(!is_running(daemon), "the end was told before the tree was dead");
}

#[test]
fn without_cgroups_a_daemon_that_holds_the_output_delays_the_end_only_briefly() {
    let agent = Agent::without_cgroups();
    let began = Instant::now();
    let all = agent.shell("setsid sleep 8 & echo done").collect();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(all.stdout, b"done\n");
    assert_eq!(all.exited().exit_code, Some(0));
}

#[test]
fn megabytes_through_stdin_and_back() {
    on_each(|agent| {
        let mut request = argv(&["cat"]);
        request.stdin = true;
        let mut host = agent.open(Op::Exec(request));
        let sent: Vec<u8> = (0..5_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
        let mut writer = host.stream.try_clone().unwrap();
        let bytes = sent.clone();
        // Ignores the window on purpose: the stream itself must hold such a host back.
        let thread = std::thread::spawn(move || {
            use std::io::Write;
            let mut frames = Vec::new();
            encode_stdin(&bytes, &mut frames);
            HostFrame::StdinEof.encode(&mut frames).unwrap();
            writer.write_all(&frames).unwrap();
        });
        let all = host.collect();
        thread.join().unwrap();
        assert_eq!(all.exited().exit_code, Some(0));
        assert!(all.stdout == sent, "{} bytes came back of {}", all.stdout.len(), sent.len());
        assert!(all.credit <= sent.len() && all.credit + STDIN_WINDOW_BYTES > sent.len(), "{}", all.credit);
    });
}

#[test]
fn stdin_is_empty_unless_asked_for() {
    on_each(|agent| {
        let all = run(agent, argv(&["cat"]));
        assert_eq!(all.exited().exit_code, Some(0));
        assert!(all.stdout.is_empty());

        let mut host = agent.open(Op::Exec(argv(&["sleep", "60"])));
        let pid = host.started();
        host.send(&HostFrame::Stdin(b"x".to_vec()));
        assert_eq!(host.collect().error().code, codes::PROTOCOL_VIOLATION);
        eventually("the command is killed", || !is_running(pid));
    });
}

#[test]
fn stdin_that_nobody_reads_does_not_stop_anything() {
    on_each(|agent| {
        let mut request = argv(&["sh", "-c", "exec <&-; sleep 0.2; echo fine"]);
        request.stdin = true;
        let mut host = agent.open(Op::Exec(request));
        for _ in 0..4 {
            host.send(&HostFrame::Stdin(vec![1; DATA_CHUNK_BYTES]));
        }
        host.send(&HostFrame::StdinEof);
        let all = host.collect();
        assert_eq!(all.stdout, b"fine\n");
        assert_eq!(all.exited().exit_code, Some(0));
    });
}

#[test]
fn a_signal_passes_stdin_that_the_command_does_not_read() {
    on_each(|agent| {
        let mut request = argv(&["sleep", "60"]);
        request.stdin = true;
        let mut host = agent.open(Op::Exec(request));
        for _ in 0..STDIN_WINDOW_BYTES / DATA_CHUNK_BYTES {
            host.send(&HostFrame::Stdin(vec![1; DATA_CHUNK_BYTES]));
        }
        host.send(&HostFrame::Signal("INT".into()));
        assert_eq!(host.collect().exited().signal.as_deref(), Some("SIGINT"));
    });
}

#[test]
fn signals_reach_the_whole_group() {
    on_each(|agent| {
        let mut host = agent.shell("trap 'echo got; exit 9' TERM; echo ready; sleep 60 & wait");
        host.started();
        assert_eq!(host.next(), Some(GuestFrame::Stdout(b"ready\n".to_vec())));
        host.send(&HostFrame::Signal("SIGTERM".into()));
        let all = host.collect();
        assert_eq!(all.stdout, b"got\n");
        assert_eq!(all.exited().exit_code, Some(9));

        let mut host = agent.shell("sleep 60");
        host.started();
        host.send(&HostFrame::Signal("SIGNONSENSE".into()));
        assert_eq!(host.collect().error().code, codes::INVALID_ARGUMENT);
    });
}

#[test]
fn dropping_the_connection_kills_the_tree() {
    on_each(|agent| {
        let mut host = agent.shell("sleep 60 & echo $!; wait");
        let main = host.started();
        let Some(GuestFrame::Stdout(line)) = host.next() else { panic!("no output") };
        let child: u32 = String::from_utf8(line).unwrap().trim().parse().unwrap();
        assert!(is_running(main) && is_running(child));
        drop(host);
        // Long before they would end by themselves.
        eventually("both die", || !is_running(main) && !is_running(child));
        // Not even a zombie is left.
        eventually("the process is reaped", || !std::path::Path::new(&format!("/proc/{main}")).exists());
    });
}

#[test]
fn dropping_the_connection_is_seen_behind_unread_stdin_and_unread_output() {
    on_each(|agent| {
        let mut request = argv(&["sh", "-c", "yes & sleep 60"]);
        request.stdin = true;
        let mut host = agent.open(Op::Exec(request));
        let pid = host.started();
        for _ in 0..STDIN_WINDOW_BYTES / DATA_CHUNK_BYTES {
            host.send(&HostFrame::Stdin(vec![1; DATA_CHUNK_BYTES]));
        }
        drop(host);
        eventually("the command dies", || !is_running(pid));
    });
}

/// The agent is this process: if it kept what the host does not read, its memory would show it.
#[test]
fn output_waits_for_the_host() {
    on_each(|agent| {
        const BYTES: usize = 100_000_000;
        let mut request = ExecRequest::new(Program::Shell(format!("head -c {BYTES} /dev/zero; echo end >&2")));
        request.timeout_ms = 60_000;
        let mut host = agent.open(Op::Exec(request));
        let pid = host.started();
        std::thread::sleep(Duration::from_millis(300));
        assert!(is_running(pid), "the command finished although nobody read its output");
        let mut received = 0;
        let before = resident_kib();
        let mut most = before;
        loop {
            match host.next() {
                Some(GuestFrame::Stdout(bytes)) => {
                    assert!(bytes.len() <= DATA_CHUNK_BYTES);
                    received += bytes.len();
                    most = most.max(resident_kib());
                }
                Some(GuestFrame::Stderr(bytes)) => assert_eq!(bytes, b"end\n"),
                Some(GuestFrame::Exited(exited)) => {
                    assert_eq!(exited.exit_code, Some(0));
                    break;
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
        assert_eq!(received, BYTES);
        assert!(most < before + 32 * 1024, "grew from {before} to {most} KiB");
    });
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
}

#[test]
fn a_slow_host_still_gets_everything_after_a_timeout() {
    on_each(|agent| {
        let mut request = ExecRequest::new(Program::Shell("head -c 60000 /dev/zero; sleep 60".into()));
        request.timeout_ms = 200;
        let mut host = agent.open(Op::Exec(request));
        std::thread::sleep(Duration::from_millis(900));
        let all = host.collect();
        assert_eq!(all.stdout.len(), 60_000);
        assert!(all.exited().timed_out);
    });
}

#[test]
fn many_at_once() {
    on_each(|agent| {
        let mut hosts: Vec<_> =
            (0..100).map(|n| agent.shell(&format!("sleep 0.3; echo {n}; exit {}", n % 50))).collect();
        let began = Instant::now();
        for (n, host) in hosts.iter_mut().enumerate() {
            let all = host.collect();
            assert_eq!(all.stdout, format!("{n}\n").as_bytes());
            assert_eq!(all.exited().exit_code, Some(n as i32 % 50));
        }
        assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    });
}

#[test]
fn more_than_the_limit_is_refused() {
    let agent = Agent::start(None, 2);
    let mut running = [agent.shell("sleep 60"), agent.shell("sleep 60")];
    for host in &mut running {
        host.started();
    }
    assert_eq!(agent.shell("true").collect().error().code, codes::LIMIT_EXCEEDED);
    drop(running);
    eventually("there is room again", || agent.shell("true").collect().exited.is_some());
}

#[test]
fn more_connections_than_slots_are_refused() {
    let agent = Agent::start(None, 1);
    let silent: Vec<_> = (0..65).map(|_| agent.connect()).collect();
    let mut host = agent.connect();
    assert_eq!(host.collect().error().code, codes::LIMIT_EXCEEDED);
    drop(silent);
    eventually("there is room again", || {
        agent
            .open(Op::Hello(HelloRequest::default()))
            .next()
            .is_some_and(|frame| matches!(frame, GuestFrame::HelloReply(_)))
    });
}

#[test]
fn the_kernel_tells_what_the_tree_used() {
    let Some(agent) = Agent::with_cgroups() else {
        return;
    };
    let all = agent.shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").collect();
    assert!(all.exited().cpu_us.is_some_and(|us| us > 1000), "{:?}", all.exited());
    assert!(!all.exited().oom_killed);
}

#[test]
fn cgroups_are_removed() {
    let Some(agent) = Agent::with_cgroups() else {
        return;
    };
    let name = |all: Collected| String::from_utf8(all.stdout).unwrap();
    let line = name(agent.shell("grep ^0:: /proc/self/cgroup").collect());
    let path = line.trim().strip_prefix("0::").unwrap().to_owned();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find_map(|l| l.split(' ').nth(1).filter(|_| l.contains(" cgroup2 "))).unwrap();
    // The path is relative to this process's cgroup namespace, which the tests share.
    let dir = format!("{mount}{path}");
    assert!(path.contains("exec-"), "{path}");
    eventually("the cgroup is removed", || !std::path::Path::new(&dir).exists());
}
