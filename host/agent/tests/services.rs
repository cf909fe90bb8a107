//! Services and what reaches them: their life, their logs, probes, and connections to ports.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pyro_agent_protocol::*;
use support::{Agent, Answer, eventually, is_running};

fn config(agent: &Agent, name: &str, line: &str) -> ServiceStartRequest {
    ServiceStartRequest {
        name: name.to_owned(),
        program: Program::Shell(line.to_owned()),
        cwd: agent.dir().to_str().unwrap().to_owned(),
        env: vec![("WORD".into(), "hello".into())],
        log_limit_bytes: 10_000,
        meta: vec![("port".into(), "80".into())],
    }
}

fn start(agent: &Agent, name: &str, line: &str) -> Answer {
    agent.ask(Op::ServiceStart(config(agent, name, line)))
}

fn named(name: &str) -> ServiceName {
    ServiceName { name: name.to_owned() }
}

fn wait(agent: &Agent, name: &str) -> ServiceStatus {
    agent.ask(Op::ServiceWait(ServiceWaitRequest { name: name.to_owned(), max_ms: 20_000 })).service().clone()
}

fn stop(agent: &Agent, name: &str, grace_ms: u32) -> Answer {
    agent.ask(Op::ServiceStop(ServiceStopRequest { name: name.to_owned(), grace_ms }))
}

fn on_each(test: impl Fn(&Agent)) {
    test(&Agent::without_cgroups());
    if let Some(agent) = Agent::with_cgroups() {
        test(&agent);
    }
}

#[test]
fn a_service_goes_on_and_ends_with_its_logs() {
    on_each(|agent| {
        let started = start(agent, "web", "echo out $WORD; echo err >&2; read x; echo $PWD; sleep 0.3; exit 3");
        let service = started.service();
        assert!(service.running && service.pid.is_some_and(is_running) && service.ended_ms.is_none(), "{service:?}");
        assert_eq!(service.meta, [("port".to_owned(), "80".to_owned())]);
        assert_eq!(start(agent, "web", "true").code(), codes::ALREADY_EXISTS);
        let early = agent.ask(Op::ServiceWait(ServiceWaitRequest { name: "web".into(), max_ms: 1 }));
        assert!(early.service().running);
        let ended = wait(agent, "web");
        assert_eq!((ended.running, ended.exit_code, ended.pid, &ended.signal), (false, Some(3), None, &None));
        assert!(ended.ended_ms.unwrap() >= ended.started_ms + 250, "{ended:?}");
        let logs = agent.ask(Op::ServiceLogs(named("web")));
        let out = String::from_utf8(logs.stdout.clone()).unwrap();
        assert_eq!(out, format!("out hello\n{}\n", agent.dir().display()));
        assert_eq!((logs.stderr.as_slice(), logs.done().truncated), (b"err\n".as_slice(), false));

        // A finished one is replaced, and then removed.
        assert!(start(agent, "web", "kill -USR1 $$").service().running);
        assert_eq!(wait(agent, "web").signal.as_deref(), Some("SIGUSR1"));
        assert!(agent.ask(Op::ServiceLogs(named("web"))).stdout.is_empty());
        agent.ask(Op::ServiceRemove(named("web"))).done();
        assert_eq!(agent.ask(Op::ServiceStatus(named("web"))).code(), codes::NOT_FOUND);
    });
}

#[test]
fn stopping_asks_the_whole_tree_and_then_kills_it() {
    on_each(|agent| {
        start(agent, "polite", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done");
        eventually("it is up", || !agent.ask(Op::ServiceLogs(named("polite"))).stdout.is_empty());
        assert_eq!(agent.ask(Op::ServiceRemove(named("polite"))).code(), codes::INVALID_STATE);
        assert_eq!(stop(agent, "polite", 10_000).service().exit_code, Some(0));
        assert!(agent.ask(Op::ServiceLogs(named("polite"))).stdout.ends_with(b"bye\n"));
        assert_eq!(stop(agent, "polite", 10_000).service().exit_code, Some(0));

        start(agent, "stubborn", "trap '' TERM; echo up; while :; do sleep 0.05; done");
        eventually("it is up", || !agent.ask(Op::ServiceLogs(named("stubborn"))).stdout.is_empty());
        let began = Instant::now();
        assert_eq!(stop(agent, "stubborn", 300).service().signal.as_deref(), Some("SIGKILL"));
        assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(3));
        assert_eq!(stop(agent, "none", 0).code(), codes::NOT_FOUND);
    });
}

#[test]
fn what_a_service_leaves_behind_is_killed() {
    let Some(agent) = Agent::with_cgroups() else {
        return;
    };
    start(&agent, "forks", "setsid sleep 1000 & echo $!; exit 0");
    assert_eq!(wait(&agent, "forks").exit_code, Some(0));
    let logs = agent.ask(Op::ServiceLogs(named("forks")));
    let child = String::from_utf8(logs.stdout).unwrap().trim().parse().unwrap();
    eventually("its child is gone", || !is_running(child));

    // The children get their TERM too.
    start(
        &agent,
        "tree",
        "sh -c 'trap \"echo child >&2; exit\" TERM; echo up; while :; do sleep 0.05; done' & trap 'wait; exit 4' TERM; wait",
    );
    eventually("it is up", || !agent.ask(Op::ServiceLogs(named("tree"))).stdout.is_empty());
    assert_eq!(stop(&agent, "tree", 5_000).service().exit_code, Some(4));
    // The shell itself may tell of its killed sleep first.
    assert!(agent.ask(Op::ServiceLogs(named("tree"))).stderr.ends_with(b"child\n"));
}

#[test]
fn logs_are_bounded_and_never_block() {
    let agent = Agent::without_cgroups();
    start(&agent, "loud", "seq 1 100000; seq 1 5 >&2");
    assert_eq!(wait(&agent, "loud").exit_code, Some(0));
    let logs = agent.ask(Op::ServiceLogs(named("loud")));
    assert_eq!(logs.stdout.len(), 10_000);
    assert!(logs.stdout.ends_with(b"99999\n100000\n") && logs.done().truncated);
    assert_eq!(logs.stderr, b"1\n2\n3\n4\n5\n");
    // One that never stops leaves room for others.
    start(&agent, "endless", "yes");
    let began = Instant::now();
    assert_eq!(agent.shell("exit 6").collect().exited().exit_code, Some(6));
    assert_eq!(stop(&agent, "endless", 1000).service().signal.as_deref(), Some("SIGTERM"));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_log_is_read_from_any_place_on() {
    let agent = Agent::without_cgroups();
    start(&agent, "loud", "seq 1 100000; seq 1 5 >&2; exit 2");
    wait(&agent, "loud");
    let read = |stream, cursor, max| {
        let answer = agent.ask(Op::ServiceRead(ServiceReadRequest { name: "loud".into(), stream, cursor, max }));
        assert_eq!(answer.service().exit_code, Some(2));
        (answer.done().start, String::from_utf8(answer.data.clone()).unwrap())
    };
    let whole: u64 = (1..=100_000_u64).map(|number| number.to_string().len() as u64 + 1).sum();
    // The oldest is gone: what is read begins later than asked.
    assert_eq!(read(LogStream::Stdout, 0, 4).0, whole - 10_000);
    assert_eq!(read(LogStream::Stdout, whole - 7, 4), (whole - 7, "1000".to_owned()));
    assert_eq!(read(LogStream::Stdout, whole, 4), (whole, String::new()));
    assert_eq!(read(LogStream::Stderr, 2, 100), (2, "2\n3\n4\n5\n".to_owned()));
    let none = ServiceReadRequest { name: "none".into(), ..ServiceReadRequest::default() };
    assert_eq!(agent.ask(Op::ServiceRead(none)).code(), codes::NOT_FOUND);
}

#[test]
fn services_are_listed_annotated_and_bounded() {
    let agent = Agent::without_cgroups();
    for name in ["b", "a", "c"] {
        start(&agent, name, "sleep 1000").service();
    }
    let names: Vec<String> =
        agent.ask(Op::ServiceList(NoArguments {})).services.into_iter().map(|service| service.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let annotate =
        |meta: Vec<(String, String)>| agent.ask(Op::ServiceAnnotate(ServiceAnnotateRequest { name: "a".into(), meta }));
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let answer = annotate(vec![pair("port", "81"), pair("ready", "yes")]);
    assert_eq!(answer.service().meta, [pair("port", "81"), pair("ready", "yes")]);
    assert_eq!(annotate(vec![pair("big", &"x".repeat(40_000))]).code(), codes::LIMIT_EXCEEDED);
    assert_eq!(agent.ask(Op::ServiceStatus(named("a"))).service().meta.len(), 2);

    for number in 3..32 {
        start(&agent, &format!("n{number}"), "sleep 1000").service();
    }
    assert_eq!(start(&agent, "more", "true").code(), codes::LIMIT_EXCEEDED);
    stop(&agent, "n3", 1000).service();
    start(&agent, "n3", "sleep 1000").service();
}

#[test]
fn what_ended_first_makes_room() {
    let agent = Agent::without_cgroups();
    let names = || -> Vec<String> {
        agent.ask(Op::ServiceList(NoArguments {})).services.into_iter().map(|service| service.name).collect()
    };
    for number in 0..32 {
        start(&agent, &format!("n{number:02}"), "sleep 1000").service();
    }
    // Not in the order they were started.
    for name in ["n07", "n03"] {
        stop(&agent, name, 1000).service();
        std::thread::sleep(Duration::from_millis(5));
    }
    // Nothing goes for one that cannot start, nor for one that takes the place of its predecessor.
    let mut request = config(&agent, "bad", "true");
    request.cwd = "/no/such".into();
    assert_eq!(agent.ask(Op::ServiceStart(request)).code(), codes::INVALID_CWD);
    start(&agent, "n03", "true").service();
    wait(&agent, "n03");
    assert!(names().len() == 32 && names().contains(&"n07".to_owned()), "{:?}", names());

    start(&agent, "more", "sleep 1000").service();
    assert_eq!(agent.ask(Op::ServiceStatus(named("n07"))).code(), codes::NOT_FOUND);
    assert!(!agent.ask(Op::ServiceStatus(named("n03"))).service().running);
    start(&agent, "still", "sleep 1000").service();
    assert_eq!(agent.ask(Op::ServiceStatus(named("n03"))).code(), codes::NOT_FOUND);
    assert_eq!(names().len(), 32);
    assert_eq!(start(&agent, "too-many", "true").code(), codes::LIMIT_EXCEEDED);
}

#[test]
fn a_service_that_cannot_start_is_none() {
    let agent = Agent::without_cgroups();
    let refused = |change: fn(&mut ServiceStartRequest)| {
        let mut request = config(&agent, "bad", "true");
        change(&mut request);
        agent.ask(Op::ServiceStart(request)).code().to_owned()
    };
    assert_eq!(refused(|r| r.program = Program::Argv(vec!["no-such-program".into()])), codes::NOT_FOUND);
    assert_eq!(refused(|r| r.cwd = "/no/such".into()), codes::INVALID_CWD);
    assert_eq!(refused(|r| r.name = String::new()), codes::INVALID_ARGUMENT);
    assert_eq!(refused(|r| r.name = "x".repeat(200)), codes::INVALID_ARGUMENT);
    assert!(agent.ask(Op::ServiceList(NoArguments {})).services.is_empty());
    // A finished one stays when its successor cannot start.
    start(&agent, "bad", "echo first");
    wait(&agent, "bad");
    assert_eq!(refused(|r| r.cwd = "/no/such".into()), codes::INVALID_CWD);
    assert_eq!(agent.ask(Op::ServiceLogs(named("bad"))).stdout, b"first\n");
}

#[test]
fn probes_tell_what_is_ready() {
    let agent = Agent::without_cgroups();
    let probe = |what: Readiness| agent.ask(Op::ServiceProbe(ServiceProbeRequest { what }));
    let ready = |what: Readiness| probe(what).done().ready;

    let file = agent.dir().join("ready").to_str().unwrap().to_owned();
    assert!(!ready(Readiness::File(file.clone())));
    std::fs::write(&file, "").unwrap();
    assert!(ready(Readiness::File(file)));
    assert_eq!(probe(Readiness::File("ready".into())).code(), codes::INVALID_ARGUMENT);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(ready(Readiness::Tcp("127.0.0.1".into(), port)));
    assert!(ready(Readiness::Tcp("localhost".into(), port)));
    // It accepts, but never answers: the probe gives up, and others do not wait for it.
    let address = format!("http://127.0.0.1:{port}/x?y=1");
    let began = Instant::now();
    let mut silent = agent.open(Op::ServiceProbe(ServiceProbeRequest { what: Readiness::Http(address.clone()) }));
    assert_eq!(agent.shell("exit 2").collect().exited().exit_code, Some(2));
    assert!(began.elapsed() < Duration::from_millis(1500));
    assert!(!silent.answer().done().ready);
    assert!(began.elapsed() < Duration::from_secs(4));

    let serving = listener.try_clone().unwrap();
    // The probes before left their connections in the queue.
    serving.set_nonblocking(true).unwrap();
    while serving.accept().is_ok() {}
    serving.set_nonblocking(false).unwrap();
    let server = std::thread::spawn(move || {
        for status in ["200 OK", "302 Found", "404 Not Found", "500 Oh", "garbage"] {
            let (mut stream, _) = serving.accept().unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..count]).into_owned();
            assert!(request.starts_with("GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
            stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).unwrap();
        }
    });
    let answers: Vec<bool> = (0..5).map(|_| ready(Readiness::Http(address.clone()))).collect();
    server.join().unwrap();
    assert_eq!(answers, [true, true, false, false, false]);
    drop(listener);
    assert!(!ready(Readiness::Tcp("127.0.0.1".into(), port)));
    assert!(!ready(Readiness::Http(address)));
    assert_eq!(probe(Readiness::Http("https://127.0.0.1/".into())).code(), codes::INVALID_ARGUMENT);
}

#[test]
fn a_port_is_reached_with_half_closes() {
    let agent = Agent::without_cgroups();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let size = 5_000_000;
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        // The other direction is still open.
        stream.write_all(&all).unwrap();
        stream.write_all(b"end").unwrap();
    });
    let mut host = agent.open(Op::TcpConnect(TcpConnectRequest { port }));
    let mut answer = [0; 5];
    host.stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [1, 0, 0, 0, 0x8e]);
    let sent: Vec<u8> = (0..size as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        let mut writing = host.stream.try_clone().unwrap();
        let sent = &sent;
        scope.spawn(move || {
            writing.write_all(sent).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        host.stream.read_to_end(&mut received).unwrap();
    });
    server.join().unwrap();
    assert_eq!(received.len(), size + 3);
    assert!(received[..size] == sent && received.ends_with(b"end"));
    eventually("the agent forgets the connection", || {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(host.stream.as_fd(), rustix::event::PollFlags::RDHUP)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    });
}

#[test]
fn a_port_that_speaks_first_and_one_where_nobody_listens() {
    let agent = Agent::without_cgroups();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut host = agent.open(Op::TcpConnect(TcpConnectRequest { port }));
    // What is sent before the answer is not lost.
    host.stream.write_all(b"early").unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"220 hello\r\n").unwrap();
    let mut early = [0; 5];
    stream.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
    assert_eq!(host.next(), Some(GuestFrame::Connected));
    drop(host);
    // The host's end is passed on.
    let mut rest = Vec::new();
    assert!(stream.read_to_end(&mut rest).is_ok_and(|count| count == 0));
    drop((stream, listener));
    let refused = agent.open(Op::TcpConnect(TcpConnectRequest { port })).answer();
    assert_eq!(refused.code(), codes::NOT_FOUND);
    assert!(refused.error.unwrap().message.contains(&port.to_string()));
}
