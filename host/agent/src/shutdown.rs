//! The guest's end.

use std::time::Duration;

use pyro_agent_protocol::{GoingDown, GuestFrame, ShutdownMode};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, mount_remount};
use rustix::system::{RebootCommand, reboot};
use rustix::time::Timespec;

use crate::server::ShutdownAsked;

/// How long killed processes may take to be gone before the file system is written anyway.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// How long the host may take to read the answer.
const ANSWER_WAIT_MS: i64 = 500;

/// Kills every process, writes all data, answers the host, and ends the machine. Only for PID 1 of a guest.
pub fn shut_down(asked: ShutdownAsked) -> ! {
    if let Some(cgroups) = &asked.cgroups {
        cgroups.kill_all();
    }
    crate::sys::signal_everybody(libc::SIGKILL);
    let all_gone = reap_all();
    rustix::fs::sync();
    let read_only = mount_remount("/", MountFlags::RDONLY, c"").is_ok();
    if let Some(mut stream) = asked.stream {
        stream.queue(&GuestFrame::GoingDown(GoingDown { clean: all_gone && read_only }));
        stream.flush();
        // The bytes leave the guest in the background. The host closes when it has read them.
        let mut fds = [PollFd::from_borrowed_fd(stream.fd(), PollFlags::RDHUP)];
        let wait = Timespec { tv_sec: 0, tv_nsec: ANSWER_WAIT_MS * 1_000_000 };
        let _ = poll(&mut fds, Some(&wait));
    }
    end_machine(asked.mode)
}

/// Ends the machine at once.
pub fn end_machine(mode: ShutdownMode) -> ! {
    let first = match mode {
        ShutdownMode::PowerOff => RebootCommand::PowerOff,
        ShutdownMode::Reboot => RebootCommand::Restart,
    };
    let _ = reboot(first);
    // A kernel without a way to power off returns; a restart always works.
    let _ = reboot(RebootCommand::Restart);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Reaps children until none is left. Returns false when some did not end in time.
fn reap_all() -> bool {
    use rustix::process::{WaitOptions, wait};
    let end = std::time::Instant::now() + KILL_WAIT;
    let mut pause = Duration::from_micros(200);
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Err(_) => return true,
            Ok(None) if std::time::Instant::now() >= end => return false,
            Ok(None) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
    }
}
