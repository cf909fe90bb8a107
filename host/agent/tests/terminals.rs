//! Terminals: kept between connections, with a foreground job and a bounded memory.

mod support;

use std::time::{Duration, Instant};

use pyro_agent_protocol::*;
use support::{Agent, Answer, PATIENCE, eventually, is_running};

fn open_request(agent: &Agent) -> TerminalOpenRequest {
    TerminalOpenRequest { cwd: agent.dir().to_str().unwrap().to_owned(), cols: 80, rows: 24, env: Vec::new() }
}

fn open(agent: &Agent) -> String {
    let answer = agent.ask(Op::TerminalOpen(open_request(agent)));
    let terminal = answer.terminal();
    assert!(terminal.running && terminal.id.len() == 12 && terminal.started_ms > 1_600_000_000_000, "{terminal:?}");
    terminal.id.clone()
}

fn write(agent: &Agent, id: &str, text: &str) -> Answer {
    agent.feed(Op::TerminalWrite(TerminalId { id: id.to_owned() }), text.as_bytes())
}

fn read(agent: &Agent, id: &str, cursor: u64, idle_ms: Option<u32>) -> Answer {
    agent.ask(Op::TerminalRead(TerminalReadRequest { id: id.to_owned(), cursor, max: u32::MAX, idle_ms }))
}

fn signal(agent: &Agent, id: &str, signal: &str) -> Answer {
    agent.ask(Op::TerminalSignal(TerminalSignalRequest { id: id.to_owned(), signal: signal.to_owned() }))
}

fn close(agent: &Agent, id: &str) -> Answer {
    agent.ask(Op::TerminalClose(TerminalId { id: id.to_owned() }))
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.data).into_owned()
}

/// Waits until the terminal's output has `wanted`, and returns all of it.
fn output_with(agent: &Agent, id: &str, wanted: &str) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let all = text(&read(agent, id, 0, None));
        if all.contains(wanted) {
            return all;
        }
        assert!(Instant::now() < end, "never {wanted:?} in {all:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn on_each(test: impl Fn(&Agent)) {
    test(&Agent::without_cgroups());
    if let Some(agent) = Agent::with_cgroups() {
        test(&agent);
    }
}

#[test]
fn what_is_typed_is_run_and_outlives_connections() {
    on_each(|agent| {
        let id = open(agent);
        output_with(agent, &id, "pyro$ ");
        assert!(write(agent, &id, "a=12; cd /; echo $TERM-$a$a-$PWD-$(tty | cut -c1-9)\n").terminal().running);
        output_with(agent, &id, "xterm-256color-1212-/-/dev/pts/");
        write(agent, &id, "echo again$a\n");
        output_with(agent, &id, "again12");
        let listed = agent.ask(Op::TerminalList(NoArguments {}));
        assert_eq!(listed.terminals.iter().map(|t| t.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
        assert!(close(agent, &id).terminal().ended_ms.is_some());
        assert_eq!(read(agent, &id, 0, None).code(), codes::NOT_FOUND);
    });
}

#[test]
fn variables_come_with_the_request() {
    let agent = Agent::without_cgroups();
    let mut request = open_request(&agent);
    request.env = vec![("PS1".into(), "mine> ".into()), ("TOKEN".into(), "x1y".into())];
    let id = agent.ask(Op::TerminalOpen(request)).terminal().id.clone();
    output_with(&agent, &id, "mine> ");
    write(&agent, &id, "echo =$TOKEN=\n");
    output_with(&agent, &id, "=x1y=");
}

#[test]
fn the_size_is_the_programs_to_see() {
    on_each(|agent| {
        let id = open(agent);
        write(agent, &id, "stty size\n");
        output_with(agent, &id, "24 80");
        // The signal goes to the foreground job: from here on that is the shell.
        write(agent, &id, "trap 'echo changed' WINCH; echo ready$((1+1))\n");
        output_with(agent, &id, "ready2");
        let resize = |cols, rows| agent.ask(Op::TerminalResize(TerminalResizeRequest { id: id.clone(), cols, rows }));
        let answer = resize(132, 50);
        assert_eq!((answer.terminal().cols, answer.terminal().rows), (132, 50));
        write(agent, &id, "stty size\n");
        output_with(agent, &id, "50 132");
        output_with(agent, &id, "changed\r\n");
        for (cols, rows) in [(0, 1), (1, 0), (1001, 1), (u32::MAX, 1), (65_617, 24)] {
            assert_eq!(resize(cols, rows).code(), codes::INVALID_ARGUMENT);
        }
    });
}

#[test]
fn signals_reach_the_foreground_job_only() {
    on_each(|agent| {
        let id = open(agent);
        output_with(agent, &id, "$ ");
        write(
            agent,
            &id,
            "sh -c 'trap \"echo caught; exit 5\" INT; echo ready$((1+1)); while :; do sleep 0.1; done'\n",
        );
        output_with(agent, &id, "ready2");
        assert!(signal(agent, &id, "SIGINT").terminal().running);
        output_with(agent, &id, "caught");
        write(agent, &id, "echo code=$?; sleep 1000; echo after=$?\n");
        output_with(agent, &id, "code=5");
        // The shell needs a moment to give the terminal to its job.
        eventually("the sleep is killed", || {
            signal(agent, &id, "KILL").terminal();
            text(&read(agent, &id, 0, None)).contains("after=137") || !read(agent, &id, 0, None).terminal().running
        });
        // A KILL that came before its job ended the shell; either way nothing but a name it knows is sent.
        assert_eq!(signal(agent, &id, "USR1").code(), codes::INVALID_ARGUMENT);
        close(agent, &id);
    });
}

#[test]
fn a_read_waits_until_nothing_new_comes() {
    let agent = Agent::without_cgroups();
    let id = open(&agent);
    output_with(&agent, &id, "$ ");
    let first = read(&agent, &id, 0, Some(100));
    let cursor = first.done().start + first.data.len() as u64;
    write(&agent, &id, "for i in 1 2 3; do sleep 0.1; echo tick$i; done; sleep 60\n");
    let began = Instant::now();
    let ticks = read(&agent, &id, cursor, Some(500));
    assert!(text(&ticks).contains("tick3"), "{:?}", text(&ticks));
    assert!(began.elapsed() >= Duration::from_millis(700) && began.elapsed() < Duration::from_secs(5));
    assert_eq!(ticks.done().start, cursor);
    // The end of the terminal ends the wait, and so does enough output.
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            write(&agent, &id, "\x03exit 7\n");
        });
        loop {
            let last = read(&agent, &id, cursor + ticks.data.len() as u64, Some(9_000));
            if last.terminal().running {
                continue;
            }
            assert_eq!(last.terminal().exit_code, Some(7));
            break;
        }
    });
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let request = TerminalReadRequest { id: id.clone(), cursor: 0, max: 3, idle_ms: Some(9_000) };
    assert_eq!(agent.ask(Op::TerminalRead(request)).data.len(), 3);
    assert_eq!(write(&agent, &id, "x").code(), codes::INVALID_STATE);
    assert_eq!(signal(&agent, &id, "INT").code(), codes::INVALID_STATE);
    assert_eq!(close(&agent, &id).terminal().exit_code, Some(7));
}

#[test]
fn old_output_is_dropped_and_the_cursor_says_so() {
    let agent = Agent::without_cgroups();
    let id = open(&agent);
    write(&agent, &id, "stty -echo -opost; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo 'the''-end'; exit\n");
    eventually("the shell ends", || !read(&agent, &id, 0, None).terminal().running);
    let all = read(&agent, &id, 0, None);
    assert_eq!(all.data.len(), 1024 * 1024);
    assert!(all.done().start > 1_900_000, "{}", all.done().start);
    assert!(text(&all).contains("the-end"));
    let end = all.done().start + all.data.len() as u64;
    let part = read(&agent, &id, end - 10, None);
    assert_eq!((part.done().start, part.data.len()), (end - 10, 10));
    let past = read(&agent, &id, u64::MAX, None);
    assert_eq!((past.done().start, past.data.len()), (end, 0));
}

#[test]
fn closing_ends_everything_the_terminal_runs() {
    let Some(agent) = Agent::with_cgroups() else {
        return;
    };
    let id = open(&agent);
    output_with(&agent, &id, "$ ");
    let line = "(trap '' HUP; setsid sleep 1000 & echo b''g=$!; sleep 1000) & echo; sleep 1000 & echo f''g=$!\n";
    write(&agent, &id, line);
    let all = output_with(&agent, &id, "fg=");
    let pid = |all: &str, key: &str| -> u32 {
        all.split(key).filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).last().unwrap()
    };
    let fg = pid(&all, "fg=");
    let bg = pid(&output_with(&agent, &id, "bg="), "bg=");
    assert!(is_running(fg) && is_running(bg));
    let began = Instant::now();
    let closed = close(&agent, &id);
    assert!(!closed.terminal().running);
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    eventually("the jobs are gone", || !is_running(fg) && !is_running(bg));
    assert!(agent.ask(Op::TerminalList(NoArguments {})).terminals.is_empty());
}

#[test]
fn a_shell_that_ignores_its_hangup_is_killed() {
    on_each(|agent| {
        let id = open(agent);
        output_with(agent, &id, "$ ");
        write(agent, &id, "trap '' HUP; exec sh -c 'echo on$((1+1)); while :; do sleep 1; done'\n");
        output_with(agent, &id, "on2");
        let began = Instant::now();
        // The one who closes may leave.
        drop(agent.open(Op::TerminalClose(TerminalId { id: id.clone() })));
        eventually("it is forgotten", || agent.ask(Op::TerminalList(NoArguments {})).terminals.is_empty());
        assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    });
}

#[test]
fn bad_requests_and_too_many_are_refused() {
    let agent = Agent::without_cgroups();
    let refused = |change: fn(&mut TerminalOpenRequest)| {
        let mut request = open_request(&agent);
        change(&mut request);
        agent.ask(Op::TerminalOpen(request)).code().to_owned()
    };
    assert_eq!(refused(|r| r.cwd = "/no/such".into()), codes::INVALID_CWD);
    assert_eq!(refused(|r| r.cols = 0), codes::INVALID_ARGUMENT);
    assert_eq!(refused(|r| r.env = vec![("A=".into(), String::new())]), codes::INVALID_ARGUMENT);
    assert_eq!(write(&agent, "none", "x").code(), codes::NOT_FOUND);
    assert_eq!(close(&agent, "none").code(), codes::NOT_FOUND);
    let ids: Vec<String> = (0..16).map(|_| open(&agent)).collect();
    assert_eq!(agent.ask(Op::TerminalOpen(open_request(&agent))).code(), codes::LIMIT_EXCEEDED);
    close(&agent, &ids[3]);
    open(&agent);
}

#[test]
fn input_that_nobody_reads_is_bounded() {
    let agent = Agent::without_cgroups();
    let id = open(&agent);
    output_with(&agent, &id, "$ ");
    write(&agent, &id, "stty raw -echo; echo raw$((1+1)); exec sleep 1000\n");
    output_with(&agent, &id, "raw2");
    let block = "x".repeat(600_000);
    let answers: Vec<Answer> = (0..3).map(|_| write(&agent, &id, &block)).collect();
    assert!(answers[0].error.is_none(), "{:?}", answers[0]);
    assert_eq!(answers[2].code(), codes::LIMIT_EXCEEDED);
    assert_eq!(agent.shell("exit 4").collect().exited().exit_code, Some(4));
}
