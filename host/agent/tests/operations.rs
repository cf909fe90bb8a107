//! Everything but commands: greetings, shutdown, and hosts that misbehave.

mod support;

use std::io::Write;

use pyro_agent_protocol::*;
use support::Agent;

#[test]
fn hello_tells_the_facts() {
    let agent = Agent::without_cgroups();
    let mut host = agent.open(Op::Hello(HelloRequest { unix_ns: Some(1), seed: Some(Seed(vec![1; 32])) }));
    let Some(GuestFrame::HelloReply(reply)) = host.next() else { panic!("no reply") };
    assert_eq!((reply.protocol_min, reply.protocol_max), (PROTOCOL_MIN, PROTOCOL));
    assert_eq!(reply.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(reply.mem_total_bytes > 1 << 20 && reply.cpus > 0 && !reply.kernel.is_empty());
    // Only PID 1 of a guest may touch its system.
    assert!(!reply.clock_stepped && !reply.seeded && !reply.cgroups);
    assert!(host.next().is_none(), "the agent closes after the answer");
}

#[test]
fn shutdown_ends_the_server_and_leaves_the_answer_to_its_owner() {
    let agent = Agent::without_cgroups();
    let asked = agent.shut_down();
    assert_eq!(asked.mode, ShutdownMode::Reboot);
    assert!(asked.stream.is_some());
}

#[test]
fn an_unknown_operation_or_protocol_is_refused() {
    let agent = Agent::without_cgroups();
    let all = agent.open(Op::Unsupported("teleport".into())).collect();
    assert_eq!(all.error().code, codes::UNSUPPORTED);
    assert!(all.error().message.contains("teleport"));

    let mut host = agent.connect();
    host.send(&HostFrame::Open(Open { protocol: 99, op: Op::Hello(HelloRequest::default()) }));
    assert_eq!(host.collect().error().code, codes::UNSUPPORTED_PROTOCOL);
}

#[test]
fn a_host_that_breaks_the_protocol_is_told_and_closed() {
    let agent = Agent::without_cgroups();
    let mut long = (MAX_FRAME_BYTES as u32 + 1).to_le_bytes().to_vec();
    long.extend([1; 16]);
    let mut not_json = 5u32.to_le_bytes().to_vec();
    not_json.extend(*b"\x01{{{{");
    for bytes in [vec![0; 4], long, not_json, vec![1, 0, 0, 0, 3], b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let mut host = agent.connect();
        host.stream.write_all(&bytes).unwrap();
        assert_eq!(host.collect().error().code, codes::PROTOCOL_VIOLATION, "{bytes:?}");
    }
    // The server is unharmed.
    assert_eq!(agent.shell("exit 4").collect().exited().exit_code, Some(4));
}

#[test]
fn unknown_frames_are_ignored() {
    let agent = Agent::without_cgroups();
    let mut host = agent.connect();
    host.stream.write_all(&[2, 0, 0, 0, 0x55, 9]).unwrap();
    host.send(&HostFrame::Open(Open::new(Op::Exec(ExecRequest::new(Program::Shell("exit 5".into()))))));
    assert_eq!(host.collect().exited().exit_code, Some(5));
}

#[test]
fn a_second_open_ends_the_command() {
    let agent = Agent::without_cgroups();
    let mut host = agent.shell("sleep 60");
    host.started();
    host.send(&HostFrame::Open(Open::new(Op::Hello(HelloRequest::default()))));
    assert_eq!(host.collect().error().code, codes::PROTOCOL_VIOLATION);
}
