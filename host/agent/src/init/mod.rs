//! From the kernel's first instruction in user space to a system that commands can run in.
//!
//! ```text
//! initramfs: /dev /proc /sys ─► modules ─► root device ─► root mounted ─► switch root
//! root:      /dev/pts /dev/shm /run ─► cgroups ─► loopback, host name ─► listening
//! ```
//!
//! Every step that commands cannot do without is fatal when it fails; see [`fatal`]. The rest is reported to the kernel
//! log. There is no waiting but for the root device.

mod cmdline;
pub mod fatal;
mod modules;
mod mounts;
mod root;

use std::io;
use std::path::Path;

use pyro_agent_protocol::{AGENT_PORT, READY_PORT};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::cgroup::CgroupRoot;
use crate::facts::{BootFacts, hello};
use crate::server::{Config, MAX_EXECS, Server};
use crate::{shutdown, sys};
use fatal::{FatalError, log};

pub use cmdline::Cmdline;

/// Where commands start when they name no directory.
const WORKSPACE: &str = "/workspace";
/// The parent of the commands' cgroups.
const CGROUP_PARENT: &str = "/sys/fs/cgroup/pyro";

/// The hard limit of open files, which commands inherit; the agent itself needs some for every command.
const NOFILE_HARD: u64 = 524_288;

/// Boots the guest, serves the host, and ends the machine. Only for PID 1.
pub fn main() -> ! {
    fatal::catch_panics();
    match boot_and_serve() {
        Ok(asked) => shutdown::shut_down(asked),
        Err(error) => fatal::end(&error),
    }
}

fn boot_and_serve() -> Result<crate::server::ShutdownAsked, FatalError> {
    let mut boot = BootFacts::default();
    boot.done("agent started");

    mounts::mount_early()?;
    mounts::fill_stdio()?;
    sys::ignore_broken_pipes();
    let child_signal = sys::child_signal_fd().map_err(FatalError::step("watch for ended children"))?;
    hurry_rcu();
    report("yield to commands", sys::do_not_preempt());
    let cmdline = Cmdline::read()?;
    boot.done("early mounts");

    modules::load_all(Path::new("/modules"))?;
    boot.done("modules loaded");

    root::mount(&cmdline)?;
    boot.done("root mounted");
    root::switch()?;
    mounts::mount_late()?;
    boot.done("root switched");

    let cgroups = CgroupRoot::open(Path::new(CGROUP_PARENT))
        .inspect_err(|error| log(&format!("no cgroups for commands: {error}")))
        .ok();
    boot.done("cgroups");

    let files = Rlimit { current: Some(NOFILE_HARD), maximum: Some(NOFILE_HARD) };
    report("raise the limit of open files", setrlimit(Resource::Nofile, files).map_err(Into::into));
    report("bring the loopback interface up", sys::loopback_up());
    let hostname = cmdline.hostname.as_deref().unwrap_or("pyro");
    report("set the host name", rustix::system::sethostname(hostname.as_bytes()).map_err(Into::into));
    if let Err(error) = std::fs::create_dir_all(WORKSPACE) {
        log(&format!("cannot create {WORKSPACE}: {error}"));
    }
    match crate::files::staging::start(crate::files::staging::RECORDS) {
        0 => {}
        left => log(&format!("removed {left} changes that were not complete")),
    }

    let listener = sys::vsock_listen(AGENT_PORT).map_err(FatalError::step("listen on vsock"))?;
    boot.done("listening");

    let ready = pyro_agent_protocol::GuestFrame::HelloReply(Box::new(hello(&boot, cgroups.is_some())));
    let mut server = Server::new(Config {
        listener,
        cgroups,
        default_cwd: WORKSPACE.to_owned(),
        boot,
        child_signal: Some(child_signal),
        max_execs: MAX_EXECS,
    })?;
    match sys::vsock_connect(READY_PORT) {
        Ok(connection) => server.announce(connection, &ready),
        Err(error) => log(&format!("cannot tell the host that the guest is ready: {error}")),
    }
    Ok(server.run()?)
}

/// Makes the kernel end its grace periods at once: a guest has few CPUs, and module loading, mounts and cgroups wait for
/// tens of milliseconds each otherwise.
fn hurry_rcu() {
    report("hurry RCU", std::fs::write("/sys/kernel/rcu_expedited", "1"));
}

fn report(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log(&format!("cannot {what}: {error}"));
    }
}
