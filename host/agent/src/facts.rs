//! The guest's facts, its clock and its random generator.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use pyro_agent_protocol::{BootStep, HelloReply, HelloRequest, PROTOCOL, PROTOCOL_MIN};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// The most seed bytes used at once.
pub const MAX_SEED_BYTES: usize = 512;
/// A clock that is off by less is left alone. A real-time clock tells whole seconds, and nothing runs yet that a step at the
/// first greeting could disturb.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(10);

/// What is known since the boot.
#[derive(Debug, Clone, Default)]
pub struct BootFacts {
    /// When each step was done.
    pub steps: Vec<BootStep>,
    /// Milliseconds of the kernel's clock when the agent listened.
    pub ready_ms: u64,
}

impl BootFacts {
    /// Notes that the step `name` is done.
    pub fn done(&mut self, name: &str) {
        let now = monotonic();
        self.ready_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.steps
            .push(BootStep { name: name.to_owned(), done_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX) });
    }
}

/// Returns the time since the kernel started.
pub fn monotonic() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

/// Returns the guest's facts.
pub fn hello(boot: &BootFacts, cgroups: bool) -> HelloReply {
    let system = rustix::system::uname();
    let memory = rustix::system::sysinfo();
    let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    HelloReply {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: system.release().to_string_lossy().into_owned(),
        boot_ms: boot.ready_ms,
        boot_steps: boot.steps.clone(),
        mem_total_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
        cpus,
        hostname: system.nodename().to_string_lossy().into_owned(),
        cgroups,
        clock_stepped: false,
        seeded: false,
    }
}

/// Does what `request` asks of the system, and notes in `reply` what was done.
pub fn apply(request: &HelloRequest, reply: &mut HelloReply) {
    if let Some(unix_ns) = request.unix_ns {
        reply.clock_stepped = step_clock(Duration::from_nanos(unix_ns));
    }
    if let Some(seed) = &request.seed {
        let bytes = seed.0.get(..MAX_SEED_BYTES).unwrap_or(&seed.0);
        reply.seeded = !bytes.is_empty()
            && File::open("/dev/urandom").is_ok_and(|file| crate::sys::add_entropy(file.as_fd(), bytes).is_ok());
    }
}

/// Sets the wall clock unless it is close to `wanted`. Returns true when it was set.
fn step_clock(wanted: Duration) -> bool {
    let now = Duration::try_from(clock_gettime(ClockId::Realtime)).unwrap_or_default();
    if now.abs_diff(wanted) <= CLOCK_TOLERANCE {
        return false;
    }
    Timespec::try_from(wanted).is_ok_and(|time| clock_settime(ClockId::Realtime, time).is_ok())
}
