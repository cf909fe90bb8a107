//! One microVM as a process of its own: `microvm CONFIG.json SOCKET`.
//!
//! CONFIG is a [`VmmConfig`]. SOCKET is a Unix socket of the host side of vsock, in the protocol that Firecracker has: a
//! client sends `CONNECT PORT\n`, is answered `OK PORT\n`, and talks to the guest. The agent's word that it is ready
//! arrives as a connection to SOCKET_1025, where somebody listens. The program ends with the guest.
#![allow(clippy::print_stderr, reason = "a program says why it ends")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::mpsc;

use pyro_agent_protocol::READY_PORT;
use pyro_vmm::vsock::{ConnectOutcome, VsockHandle};
use pyro_vmm::{ExitReason, Vmm, VmmConfig};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, socket] = arguments.as_slice() else {
        eprintln!("usage: microvm CONFIG.json SOCKET");
        return ExitCode::FAILURE;
    };
    match run(config, socket) {
        Ok(ExitReason::PowerOff | ExitReason::Reset) => ExitCode::SUCCESS,
        Ok(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &str, socket: &str) -> Result<ExitReason, Box<dyn std::error::Error>> {
    let config: VmmConfig = serde_json::from_slice(&std::fs::read(config)?)?;
    let listener = UnixListener::bind(socket)?;
    let vmm = Vmm::build(&config)?;
    if let Some(vsock) = vmm.handle().vsock() {
        announce(&vsock, format!("{socket}_{READY_PORT}"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connect(&vsock, stream);
            }
        });
    }
    Ok(vmm.run())
}

/// Passes the agent's word on. The device's thread may not open files, so another one does.
fn announce(vsock: &VsockHandle, path: String) {
    let (tell, told) = mpsc::channel();
    vsock.listen(READY_PORT, move |stream| {
        let _ = tell.send(stream);
    });
    std::thread::spawn(move || {
        for guest in told {
            let _ = UnixStream::connect(&path);
            drop::<UnixStream>(guest);
        }
    });
}

/// Reads a client's line and gives its stream to the device.
fn connect(vsock: &VsockHandle, mut stream: UnixStream) {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && line.len() < 32 && stream.read_exact(&mut byte).is_ok() {
        line.extend(byte);
    }
    let port = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix("CONNECT ")?.trim().parse().ok());
    let Some(port) = port else { return };
    vsock.connect(port, stream, move |outcome, mut stream| {
        if outcome == ConnectOutcome::Connected {
            let _ = stream.write_all(format!("OK {port}\n").as_bytes());
        }
    });
}
