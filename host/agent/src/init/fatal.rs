//! The kernel log, and what happens when the guest cannot go on.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

use pyro_agent_protocol::ShutdownMode;
use rustix::process::getpid;
use thiserror::Error;

use crate::server::ServerError;
use crate::shutdown::end_machine;

/// Why the guest cannot go on.
#[derive(Debug, Error)]
pub enum FatalError {
    /// A step of the boot failed.
    #[error("cannot {what}: {source}")]
    Step {
        /// The step.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// A file or device was refused.
    #[error("cannot {what} {path}: {source}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The root device did not appear.
    #[error("no root device {path} after {waited_ms} ms")]
    NoRootDevice {
        /// Its path.
        path: String,
        /// How long it was waited for.
        waited_ms: u128,
    },
    /// The kernel command line is wrong.
    #[error("{0}")]
    Cmdline(String),
    /// The server failed.
    #[error(transparent)]
    Server(#[from] ServerError),
}

impl FatalError {
    /// Returns a function that turns an error into a failed step.
    pub fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Step { what, source: source.into() }
    }

    /// Returns a function that turns an error into a refused path.
    pub fn path<E: Into<io::Error>>(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Path { what, path, source: source.into() }
    }
}

/// Writes one line to the kernel log at warning level.
pub fn log(message: &str) {
    write_line("<4>", message);
}

/// Says why, and restarts the machine, which ends it: the VMM is told not to reboot.
pub fn end(error: &dyn std::error::Error) -> ! {
    // Level 0 reaches the console however quiet the kernel was told to be.
    write_line("<0>", &format!("fatal: {error}"));
    end_machine(ShutdownMode::Reboot)
}

/// Makes a panic end the machine as [`end`] does.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        write_line("<0>", &format!("fatal: {info}"));
        if getpid().is_init() {
            end_machine(ShutdownMode::Reboot);
        }
    }));
}

fn write_line(level: &str, message: &str) {
    // One line, whatever the message holds.
    let message = message.replace(['\n', '\r'], " ");
    let written = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(format!("{level}pyro-agent: {message}\n").as_bytes()));
    if written.is_err()
        && let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console")
    {
        let _ = console.write_all(format!("pyro-agent: {message}\n").as_bytes());
    }
}
