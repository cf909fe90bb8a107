//! The frame format: what goes in comes out however the stream is cut, and no bytes make the decoder panic.

use proptest::collection::vec;
use proptest::prelude::*;
use pyro_agent_protocol::*;

fn text() -> impl Strategy<Value = String> {
    "[ -~\u{e9}\u{1F600}\"\\\\\n\0]{0,24}"
}

fn program() -> impl Strategy<Value = Program> {
    prop_oneof![vec(text(), 0..4).prop_map(Program::Argv), text().prop_map(Program::Shell)]
}

fn exec_request() -> impl Strategy<Value = ExecRequest> {
    (program(), proptest::option::of(text()), vec((text(), text()), 0..4), any::<u64>(), any::<bool>()).prop_map(
        |(program, cwd, env, timeout_ms, stdin)| ExecRequest {
            program,
            cwd,
            env,
            timeout_ms,
            stdin,
            keep: timeout_ms % 2 == 1,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (any::<Option<u64>>(), proptest::option::of(vec(any::<u8>(), 0..40)))
            .prop_map(|(unix_ns, seed)| Op::Hello(HelloRequest { unix_ns, seed: seed.map(Seed) })),
        exec_request().prop_map(Op::Exec),
        prop_oneof![Just(ShutdownMode::PowerOff), Just(ShutdownMode::Reboot)]
            .prop_map(|mode| Op::Shutdown(ShutdownRequest { mode })),
        "[a-z]{1,3}_later".prop_map(Op::Unsupported),
        file_op(),
        terminal_op(),
        service_op(),
        any::<u16>().prop_map(|port| Op::TcpConnect(TcpConnectRequest { port })),
    ]
}

fn file_op() -> impl Strategy<Value = Op> {
    (text(), text(), any::<bool>(), any::<u32>(), any::<u64>(), any::<u64>(), 0..6).prop_map(
        |(root, path, recursive, limit, offset, length, which)| match which {
            0 => Op::FileStat(FilePath { root, path }),
            1 => Op::FileList(FileListRequest { root, path, recursive, limit }),
            2 => Op::FileRead(FileReadRequest { root, path, offset, length }),
            3 => Op::FileApply(FileApplyRequest { root }),
            4 => Op::FileArchive(FilePath { root, path }),
            _ => Op::FileExtract(FilePath { root, path }),
        },
    )
}

fn terminal_op() -> impl Strategy<Value = Op> {
    (text(), vec((text(), text()), 0..3), any::<(u32, u32, u64)>(), any::<Option<u32>>(), 0..7).prop_map(
        |(id, env, (cols, rows, cursor), idle_ms, which)| match which {
            0 => Op::TerminalOpen(TerminalOpenRequest { cwd: id, cols, rows, env }),
            1 => Op::TerminalList(NoArguments {}),
            2 => Op::TerminalRead(TerminalReadRequest { id, cursor, max: cols, idle_ms }),
            3 => Op::TerminalWrite(TerminalId { id }),
            4 => Op::TerminalResize(TerminalResizeRequest { id, cols, rows }),
            5 => Op::TerminalSignal(TerminalSignalRequest { id, signal: "INT".to_owned() }),
            _ => Op::TerminalClose(TerminalId { id }),
        },
    )
}

fn service_op() -> impl Strategy<Value = Op> {
    (text(), program(), vec((text(), text()), 0..3), any::<u64>(), any::<(u32, u16)>(), 0..13).prop_map(
        |(name, program, meta, log_limit_bytes, (time, port), which)| match which {
            0 => Op::ServiceStart(ServiceStartRequest {
                name,
                program,
                cwd: "/".to_owned(),
                env: meta.clone(),
                log_limit_bytes,
                meta,
            }),
            1 => Op::ServiceStatus(ServiceName { name }),
            2 => Op::ServiceList(NoArguments {}),
            3 => Op::ServiceLogs(ServiceName { name }),
            4 => Op::ServiceStop(ServiceStopRequest { name, grace_ms: time }),
            5 => Op::ServiceRemove(ServiceName { name }),
            6 => Op::ServiceAnnotate(ServiceAnnotateRequest { name, meta }),
            7 => Op::ServiceWait(ServiceWaitRequest { name, max_ms: time }),
            8 => Op::ServiceProbe(ServiceProbeRequest { what: Readiness::File(name) }),
            9 => Op::ServiceProbe(ServiceProbeRequest { what: Readiness::Tcp(name, port) }),
            10 => Op::ServiceProbe(ServiceProbeRequest { what: Readiness::Http(name) }),
            11 => Op::ServiceRead(ServiceReadRequest {
                name,
                stream: LogStream::Stdout,
                cursor: log_limit_bytes,
                max: time,
            }),
            _ => Op::ServiceRead(ServiceReadRequest {
                name,
                stream: LogStream::Stderr,
                cursor: log_limit_bytes,
                max: time,
            }),
        },
    )
}

fn file_entry() -> impl Strategy<Value = FileEntry> {
    (text(), 0..4, any::<(u64, u32, u64)>(), proptest::option::of(text())).prop_map(
        |(path, kind, (size, mode, mtime_ms), link_target)| {
            let kind = [FileKind::File, FileKind::Directory, FileKind::Symlink, FileKind::Other][kind as usize];
            FileEntry { path, kind, size, mode, mtime_ms, link_target }
        },
    )
}

fn terminal() -> impl Strategy<Value = TerminalStatus> {
    (text(), text(), any::<(u32, u32, bool, u64)>(), any::<(Option<u64>, Option<i32>)>()).prop_map(
        |(id, cwd, (cols, rows, running, started_ms), (ended_ms, exit_code))| TerminalStatus {
            id,
            cwd,
            cols,
            rows,
            running,
            started_ms,
            ended_ms,
            exit_code,
        },
    )
}

fn service() -> impl Strategy<Value = ServiceStatus> {
    let numbers = any::<(Option<u32>, bool, u64, Option<u64>, Option<i32>)>();
    (text(), numbers, proptest::option::of(text()), vec((text(), text()), 0..3)).prop_map(
        |(name, (pid, running, started_ms, ended_ms, exit_code), signal, meta)| ServiceStatus {
            name,
            pid,
            running,
            started_ms,
            ended_ms,
            exit_code,
            signal,
            meta,
        },
    )
}

fn host_frame() -> impl Strategy<Value = HostFrame> {
    prop_oneof![
        (any::<u32>(), op()).prop_map(|(protocol, op)| HostFrame::Open(Open { protocol, op })),
        vec(any::<u8>(), 0..2000).prop_map(HostFrame::Stdin),
        Just(HostFrame::StdinEof),
        text().prop_map(HostFrame::Signal),
        vec(any::<u8>(), 0..2000).prop_map(HostFrame::Data),
        Just(HostFrame::DataEof),
        (text(), any::<Option<u64>>(), any::<Option<u32>>(), any::<Option<(u64, u64)>>()).prop_map(
            |(path, content_bytes, mode, replaces)| {
                let replaces = replaces.map(|(bytes, hash)| ContentSum { bytes, hash });
                HostFrame::Change(FileChangeHead { path, content_bytes, mode, replaces })
            }
        ),
        (0x20u8..0x80).prop_map(HostFrame::Unknown),
    ]
}

fn guest_frame() -> impl Strategy<Value = GuestFrame> {
    prop_oneof![
        (text(), any::<u64>(), any::<bool>(), vec((text(), any::<u64>()), 0..4)).prop_map(
            |(kernel, boot_ms, cgroups, steps)| {
                let boot_steps = steps.into_iter().map(|(name, done_us)| BootStep { name, done_us }).collect();
                GuestFrame::HelloReply(Box::new(HelloReply {
                    kernel,
                    boot_ms,
                    cgroups,
                    boot_steps,
                    ..HelloReply::default()
                }))
            }
        ),
        (text(), text()).prop_map(|(code, message)| GuestFrame::Error(ErrorReply { code, message })),
        any::<u32>().prop_map(|pid| GuestFrame::Started(Started { pid })),
        vec(any::<u8>(), 0..2000).prop_map(GuestFrame::Stdout),
        vec(any::<u8>(), 0..2000).prop_map(GuestFrame::Stderr),
        (any::<Option<i32>>(), proptest::option::of(text()), any::<bool>(), any::<Option<u64>>()).prop_map(
            |(exit_code, signal, timed_out, cpu_us)| {
                GuestFrame::Exited(Exited {
                    exit_code,
                    signal,
                    timed_out,
                    cpu_us,
                    kept: timed_out,
                    ..Exited::default()
                })
            }
        ),
        any::<u32>().prop_map(GuestFrame::StdinCredit),
        any::<bool>().prop_map(|clean| GuestFrame::GoingDown(GoingDown { clean })),
        vec(any::<u8>(), 0..2000).prop_map(GuestFrame::Data),
        vec(file_entry(), 0..4).prop_map(GuestFrame::Entries),
        terminal().prop_map(|terminal| GuestFrame::Terminal(Box::new(terminal))),
        service().prop_map(|service| GuestFrame::Service(Box::new(service))),
        any::<(u64, u64, u64, bool, bool)>().prop_map(|(bytes, entries, start, truncated, ready)| {
            GuestFrame::Done(Done { bytes, entries, start, truncated, ready })
        }),
        Just(GuestFrame::Connected),
    ]
}

/// Cuts `bytes` at the given places and collects every frame.
fn decode_in_pieces<F>(
    bytes: &[u8],
    cuts: &[usize],
    next: impl Fn(&mut FrameDecoder) -> Result<Option<F>, FrameError>,
) -> Vec<F> {
    let mut decoder = FrameDecoder::new();
    let mut frames = Vec::new();
    let mut rest = bytes;
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let (piece, tail) = rest.split_at(cut.min(rest.len()));
        decoder.push(piece);
        rest = tail;
        while let Some(frame) = next(&mut decoder).expect("encoded frames decode") {
            frames.push(frame);
        }
    }
    assert_eq!(decoder.pending_bytes(), 0);
    frames
}

proptest! {
    #[test]
    fn host_frames_survive_any_split(frames in vec(host_frame(), 0..8), cuts in vec(0usize..600, 0..20)) {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.encode(&mut bytes).unwrap();
        }
        prop_assert_eq!(decode_in_pieces(&bytes, &cuts, FrameDecoder::next_host), frames);
    }

    #[test]
    fn guest_frames_survive_any_split(frames in vec(guest_frame(), 0..8), cuts in vec(0usize..600, 0..20)) {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.encode(&mut bytes).unwrap();
        }
        prop_assert_eq!(decode_in_pieces(&bytes, &cuts, FrameDecoder::next_guest), frames);
    }

    #[test]
    fn garbage_never_panics(pieces in vec(vec(any::<u8>(), 0..64), 0..16)) {
        let mut host = FrameDecoder::new();
        let mut guest = FrameDecoder::new();
        for piece in &pieces {
            host.push(piece);
            while let Ok(Some(_)) = host.next_host() {}
            guest.push(piece);
            while let Ok(Some(_)) = guest.next_guest() {}
        }
    }

    /// Garbage behind a plausible header, so that the payload decoders are reached.
    #[test]
    fn garbage_payloads_never_panic(kind in any::<u8>(), payload in vec(any::<u8>(), 0..200)) {
        let mut bytes = (payload.len() as u32 + 1).to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend_from_slice(&payload);
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        let _ = decoder.next_host();
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        let _ = decoder.next_guest();
    }
}

#[test]
fn a_length_over_the_limit_is_refused_before_its_bytes_arrive() {
    let mut decoder = FrameDecoder::new();
    decoder.push(&(MAX_FRAME_BYTES as u32 + 1).to_le_bytes());
    assert!(matches!(decoder.next_host(), Err(FrameError::TooLarge { .. })));
    decoder.push(&[0; 64]);
    assert!(decoder.next_host().is_err(), "the error stays");
}

#[test]
fn an_empty_frame_is_refused() {
    let mut decoder = FrameDecoder::new();
    decoder.push(&[0, 0, 0, 0]);
    assert!(matches!(decoder.next_guest(), Err(FrameError::Empty)));
}

#[test]
fn an_oversized_request_is_refused_and_leaves_the_buffer_alone() {
    let mut out = vec![7];
    let request = ExecRequest::new(Program::Shell("x".repeat(MAX_FRAME_BYTES)));
    let frame = HostFrame::Open(Open::new(Op::Exec(request)));
    assert!(matches!(frame.encode(&mut out), Err(FrameError::TooLarge { .. })));
    assert_eq!(out, [7]);
}

#[test]
fn data_is_cut_into_chunks() {
    let bytes = vec![9u8; DATA_CHUNK_BYTES * 2 + 1];
    let mut out = Vec::new();
    encode_stdin(&bytes, &mut out);
    let frames = decode_in_pieces(&out, &[], FrameDecoder::next_host);
    let lengths: Vec<usize> =
        frames.iter().map(|f| if let HostFrame::Stdin(b) = f { b.len() } else { usize::MAX }).collect();
    assert_eq!(lengths, [DATA_CHUNK_BYTES, DATA_CHUNK_BYTES, 1]);
}

/// The bytes on the wire, so that a change of the format is seen.
#[test]
fn the_wire_format_is_fixed() {
    let mut out = Vec::new();
    let mut request = ExecRequest::new(Program::Argv(vec!["true".into()]));
    request.timeout_ms = 5;
    HostFrame::Open(Open::new(Op::Exec(request))).encode(&mut out).unwrap();
    let json = br#"{"protocol":1,"op":"exec","exec":{"program":{"argv":["true"]},"timeout_ms":5,"stdin":false}}"#;
    let mut expected = (json.len() as u32 + 1).to_le_bytes().to_vec();
    expected.push(0x01);
    expected.extend_from_slice(json);
    assert_eq!(out, expected);

    out.clear();
    encode_stdout(b"hi", &mut out);
    assert_eq!(out, [3, 0, 0, 0, 0x84, b'h', b'i']);
}

#[test]
fn what_follows_a_frame_is_left_over() {
    let mut bytes = Vec::new();
    GuestFrame::Connected.encode(&mut bytes).unwrap();
    bytes.extend_from_slice(b"HTTP/1.1");
    let mut decoder = FrameDecoder::new();
    decoder.push(&bytes);
    assert_eq!(decoder.next_guest().unwrap(), Some(GuestFrame::Connected));
    assert_eq!(decoder.into_rest(), b"HTTP/1.1");
}

#[test]
fn an_operation_without_its_arguments_is_refused() {
    for (op, is_refused) in [("file_stat", true), ("service_start", true), ("terminal_list", false), ("hello", false)] {
        let json = format!(r#"{{"protocol":1,"op":"{op}"}}"#);
        let mut bytes = (json.len() as u32 + 1).to_le_bytes().to_vec();
        bytes.push(0x01);
        bytes.extend_from_slice(json.as_bytes());
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next_host().is_err(), is_refused, "{op}");
    }
}

#[test]
fn unknown_members_and_operations_are_tolerated() {
    let json = br#"{"protocol":1,"op":"exec","new":1,"exec":{"program":{"shell":"ls"},"pty":{"rows":24}}}"#;
    let mut bytes = (json.len() as u32 + 1).to_le_bytes().to_vec();
    bytes.push(0x01);
    bytes.extend_from_slice(json);
    let frames = decode_in_pieces(&bytes, &[], FrameDecoder::next_host);
    assert_eq!(frames, [HostFrame::Open(Open::new(Op::Exec(ExecRequest::new(Program::Shell("ls".into())))))]);

    let json = br#"{"protocol":9,"op":"teleport","teleport":{"to":"/etc/passwd"}}"#;
    let mut bytes = (json.len() as u32 + 1).to_le_bytes().to_vec();
    bytes.push(0x01);
    bytes.extend_from_slice(json);
    let frames = decode_in_pieces(&bytes, &[], FrameDecoder::next_host);
    assert_eq!(frames, [HostFrame::Open(Open { protocol: 9, op: Op::Unsupported("teleport".into()) })]);
}

#[test]
fn a_seed_does_not_show_in_debug_output() {
    let open = Open::new(Op::Hello(HelloRequest { unix_ns: None, seed: Some(Seed(vec![222, 173])) }));
    let shown = format!("{open:?}");
    assert!(shown.contains("redacted") && !shown.contains("222"), "{shown}");
}
