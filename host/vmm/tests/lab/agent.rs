//! A small client of the guest's agent, over any stream into the guest.

use std::io::{Read, Write};

use pyro_agent_protocol::{ExecRequest, FrameDecoder, GuestFrame, HostFrame, Op, Open, Program};

/// What a command did.
pub struct Done {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
}

impl Done {
    /// Returns both outputs as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&[self.stdout.as_slice(), &self.stderr].concat()).into_owned()
    }
}

/// Asks for an operation on a fresh stream.
pub fn open(stream: &mut impl Write, op: Op) {
    let mut bytes = Vec::new();
    HostFrame::Open(Open::new(op)).encode(&mut bytes).expect("a frame");
    stream.write_all(&bytes).expect("a listening agent");
}

/// Returns the operation that runs a program.
pub fn exec_op(program: Program) -> Op {
    let mut request = ExecRequest::new(program);
    request.cwd = Some("/".to_owned());
    Op::Exec(request)
}

/// Runs a program on a fresh stream and waits for its end.
pub fn exec(mut stream: impl Read + Write, program: Program) -> Done {
    open(&mut stream, exec_op(program));
    let mut done = Done { code: None, stdout: Vec::new(), stderr: Vec::new() };
    follow(&mut stream, |frame| match frame {
        GuestFrame::Stdout(bytes) => {
            done.stdout.extend_from_slice(&bytes);
            false
        }
        GuestFrame::Stderr(bytes) => {
            done.stderr.extend_from_slice(&bytes);
            false
        }
        GuestFrame::Exited(exited) => {
            done.code = exited.exit_code;
            true
        }
        GuestFrame::Error(error) => panic!("{error:?}"),
        _ => false,
    });
    done
}

/// Starts a program that does not end, and returns when it has printed `line`. It ends with the stream.
pub fn start_until(stream: &mut (impl Read + Write), program: Program, line: &str) {
    open(stream, exec_op(program));
    let mut text = String::new();
    follow(stream, |frame| match frame {
        GuestFrame::Stdout(bytes) | GuestFrame::Stderr(bytes) => {
            text.push_str(&String::from_utf8_lossy(&bytes));
            text.contains(line)
        }
        GuestFrame::Exited(_) | GuestFrame::Error(_) => panic!("the program ended: {text}"),
        _ => false,
    });
}

/// Gives every frame to `see` until it returns true.
fn follow(stream: &mut impl Read, mut see: impl FnMut(GuestFrame) -> bool) {
    let mut decoder = FrameDecoder::new();
    let mut bytes = vec![0; 64 * 1024];
    loop {
        while let Some(frame) = decoder.next_guest().expect("a frame") {
            if see(frame) {
                return;
            }
        }
        let count = stream.read(&mut bytes).expect("the agent's bytes");
        assert!(count > 0, "the agent hung up");
        decoder.push(&bytes[..count]);
    }
}
