//! vCPU threads: run, exit, pause, stop.
//!
//! ```text
//!            set_wanted(Paused) + kick            set_wanted(Running)
//!   running ──────────────────────────▶ parked ──────────────────────▶ running
//!      └───────────────── set_wanted(Ended) + kick ─────────────────────▶ gone
//! ```
//!
//! A kick sets `immediate_exit` in the vCPU's shared page and sends a signal: whichever side of
//! entering the guest the thread is on, it comes out.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_run, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::bus::Bus;
use crate::exit::{CrashCause, CrashReport, ExitReason};
use crate::kvm::{KvmError, call};
use crate::memory::GuestRam;
use crate::state::{VcpuState, save_vcpu};
use crate::virtio::lock;

/// What a VM's vCPUs should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Run the guest.
    Running,
    /// Stand still between two instructions, device accesses completed.
    Paused,
    /// End the thread.
    Ended,
}

/// Steers all vCPU threads of a VM.
pub struct VcpuControl {
    state: Mutex<ControlState>,
    changed: Condvar,
}

struct ControlState {
    wanted: Wanted,
    parked: usize,
    alive: usize,
    kickers: Vec<Kicker>,
    /// Counts the saves asked for.
    save_round: u64,
    saved: Vec<Result<VcpuState, KvmError>>,
}

/// A way to get one vCPU thread out of the guest.
#[derive(Debug)]
pub(crate) struct Kicker {
    thread: libc::pthread_t,
    page: Arc<RunPage>,
    alive: bool,
}

impl Default for VcpuControl {
    fn default() -> VcpuControl {
        let state = ControlState {
            wanted: Wanted::Paused,
            parked: 0,
            alive: 0,
            kickers: Vec::new(),
            save_round: 0,
            saved: Vec::new(),
        };
        VcpuControl { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl VcpuControl {
    /// Changes what the vCPUs should do and returns when they all do it.
    ///
    /// Must not be called from a vCPU thread.
    pub fn set_wanted(&self, wanted: Wanted) {
        let mut state = lock(&self.state);
        if state.wanted != Wanted::Ended {
            state.wanted = wanted;
        }
        if state.wanted != Wanted::Running {
            for kicker in state.kickers.iter().filter(|kicker| kicker.alive) {
                kicker.kick();
            }
        }
        self.changed.notify_all();
        loop {
            let arrived = match state.wanted {
                Wanted::Running => state.parked == 0,
                Wanted::Paused => state.parked == state.alive,
                Wanted::Ended => state.alive == 0,
            };
            if arrived {
                return;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns what the vCPUs should do.
    pub fn wanted(&self) -> Wanted {
        lock(&self.state).wanted
    }

    /// Saves all vCPUs, in order. They must be paused; otherwise returns nothing.
    pub fn save(&self) -> Result<Vec<VcpuState>, KvmError> {
        let mut state = lock(&self.state);
        if state.wanted != Wanted::Paused || state.parked != state.alive {
            return Ok(Vec::new());
        }
        state.saved.clear();
        state.save_round += 1;
        self.changed.notify_all();
        while state.saved.len() < state.alive {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut saved = std::mem::take(&mut state.saved).into_iter().collect::<Result<Vec<_>, _>>()?;
        saved.sort_by_key(|vcpu| vcpu.id);
        Ok(saved)
    }

    fn enter(&self, page: Arc<RunPage>) -> usize {
        let mut state = lock(&self.state);
        state.alive += 1;
        // SAFETY: no preconditions; a thread may always ask for its own id.
        let thread = unsafe { libc::pthread_self() };
        state.kickers.push(Kicker { thread, page, alive: true });
        state.kickers.len() - 1
    }

    fn leave(&self, index: usize) {
        let mut state = lock(&self.state);
        state.alive -= 1;
        if let Some(kicker) = state.kickers.get_mut(index) {
            kicker.alive = false;
        }
        self.changed.notify_all();
    }

    /// Waits while a pause is wanted. Returns whether the guest should run on.
    fn park(&self, page: &RunPage, save: &dyn Fn() -> Result<VcpuState, KvmError>) -> bool {
        let mut state = lock(&self.state);
        loop {
            match state.wanted {
                Wanted::Running => {
                    // Under the lock, so that the next kick is not lost.
                    page.set_immediate_exit(false);
                    return true;
                }
                Wanted::Ended => return false,
                Wanted::Paused => {
                    state.parked += 1;
                    self.changed.notify_all();
                    let mut round = state.save_round;
                    while state.wanted == Wanted::Paused {
                        if state.save_round != round {
                            round = state.save_round;
                            // One at a time: the lock is held, and saving is short.
                            let saved = save();
                            state.saved.push(saved);
                            self.changed.notify_all();
                        }
                        state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                    state.parked -= 1;
                    self.changed.notify_all();
                }
            }
        }
    }
}

impl Kicker {
    /// Makes a kicker for a vCPU that the calling thread runs. The thread must outlive it.
    pub(crate) fn new(vcpu: &VcpuFd) -> io::Result<Kicker> {
        // SAFETY: no preconditions; a thread may always ask for its own id.
        let thread = unsafe { libc::pthread_self() };
        Ok(Kicker { thread, page: Arc::new(RunPage::map(vcpu)?), alive: true })
    }

    /// Gets the thread out of the guest, or keeps it from entering.
    pub(crate) fn kick(&self) {
        self.page.set_immediate_exit(true);
        // SAFETY: the thread is alive: either `alive` is cleared under the control's lock before
        // it ends, and the caller holds that lock, or the maker of `Kicker::new` waits for us.
        unsafe { libc::pthread_kill(self.thread, kick_signal()) };
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes the kick signal interrupt system calls instead of ending the process.
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    vmm_sys_util::signal::register_signal_handler(kick_signal(), ignore)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// A second mapping of the page that KVM shares with user space: lets other threads set
/// `immediate_exit` while the vCPU's own thread owns the descriptor.
#[derive(Debug)]
struct RunPage(NonNull<kvm_run>);

// SAFETY: the only access is one byte through an atomic.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    fn map(vcpu: &VcpuFd) -> io::Result<RunPage> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; nothing else is
        // affected. KVM's page is larger than the structure's fixed part, which is all we touch.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<kvm_run>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(RunPage).ok_or_else(io::Error::last_os_error)
    }

    fn set_immediate_exit(&self, on: bool) {
        // SAFETY: the mapping lives as long as `self`, the field is one byte, and both KVM and
        // this VMM access it as a whole.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) };
        flag.store(u8::from(on), Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped, and no reference into it exists.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<kvm_run>()) };
    }
}

/// A vCPU that has not started.
pub struct Vcpu {
    /// Number, which is also the APIC id.
    pub id: u8,
    /// KVM's object.
    pub fd: VcpuFd,
}

/// What a vCPU thread shares with the VM.
#[derive(Clone)]
pub struct VcpuShared {
    /// Where exits go.
    pub bus: Arc<Bus>,
    /// Who steers it.
    pub control: Arc<VcpuControl>,
    /// For the bytes at a failing instruction.
    pub ram: GuestRam,
    /// Runs first in the thread: where it enters its jail, or must end.
    pub setup: Arc<dyn Fn() -> bool + Send + Sync>,
    /// MSRs to save.
    pub msrs: Arc<Vec<u32>>,
}

impl Vcpu {
    /// Starts the thread. The vCPU stays parked until the control says otherwise.
    pub fn start(self, shared: VcpuShared) -> io::Result<JoinHandle<()>> {
        let page = Arc::new(RunPage::map(&self.fd)?);
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("vcpu-{}", self.id)).spawn(move || {
            let index = shared.control.enter(page.clone());
            let _ = ready.send(());
            // The owner may have blocked it, and threads inherit that.
            let _ = vmm_sys_util::signal::unblock_signal(kick_signal());
            if (shared.setup)() {
                let mut vcpu = self;
                vcpu.run(&shared, &page);
            }
            shared.control.leave(index);
        })?;
        // Counted before anybody waits for all of them.
        let _ = started.recv();
        Ok(thread)
    }

    fn run(&mut self, shared: &VcpuShared, page: &RunPage) {
        let bus = &shared.bus;
        let id = self.id;
        if !shared.control.park(page, &|| save_vcpu(&self.fd, id, &shared.msrs)) {
            return;
        }
        loop {
            let crash = match self.fd.run() {
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    bus.memory_write(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    bus.memory_read(address, data);
                    continue;
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    bus.port_write(port, data);
                    continue;
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    bus.port_read(port, data);
                    continue;
                }
                Err(error) if error.errno() == libc::EINTR => {
                    bus.counters.kicks.add(1);
                    if !shared.control.park(page, &|| save_vcpu(&self.fd, id, &shared.msrs)) {
                        return;
                    }
                    continue;
                }
                Err(error) if error.errno() == libc::EAGAIN => continue,
                // Edge-triggered lines have nothing to do at the end of an interrupt.
                Ok(VcpuExit::IoapicEoi(_) | VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {
                    bus.counters.other.add(1);
                    continue;
                }
                Ok(VcpuExit::Shutdown) => CrashCause::TripleFault,
                Ok(VcpuExit::FailEntry(reason, _)) => CrashCause::FailEntry { reason },
                Ok(VcpuExit::InternalError) => CrashCause::InternalError { suberror: 0 },
                Ok(other) => CrashCause::Unexpected { exit: format!("{other:?}") },
                Err(error) => CrashCause::RunError { errno: error.errno() },
            };
            let report = report(&mut self.fd, self.id, crash, &shared.ram);
            let reason = match (&report.cause, bus.tail.panic()) {
                // A kernel without a working reset ends its panic in a triple fault.
                (CrashCause::TripleFault, Some(message)) => ExitReason::GuestPanic { message },
                _ => ExitReason::Crash { report: Box::new(report) },
            };
            bus.exit.set(reason);
            return;
        }
    }
}

/// Collects what a vCPU that cannot go on can still tell.
pub fn report(fd: &mut VcpuFd, id: u8, cause: CrashCause, ram: &GuestRam) -> CrashReport {
    let regs: kvm_regs = fd.get_regs().unwrap_or_default();
    let sregs: kvm_sregs = fd.get_sregs().unwrap_or_default();
    let cause = match cause {
        CrashCause::InternalError { .. } => CrashCause::InternalError { suberror: suberror(fd) },
        cause => cause,
    };
    let linear = sregs.cs.base.wrapping_add(regs.rip);
    let mut bytes = [0; 15];
    let physical = fd.translate_gva(linear).ok().filter(|found| found.valid != 0);
    let found = match physical {
        Some(found) if ram.read_slice(&mut bytes, GuestAddress(found.physical_address)).is_ok() => &bytes[..],
        _ => &[],
    };
    CrashReport::new(cause, id, &regs, &sregs, found)
}

fn suberror(fd: &mut VcpuFd) -> u32 {
    // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member of the
    // union; it is plain integers in any case.
    unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// Sets the MSRs that firmware would have set: fast string operations on, memory write-back.
///
/// Without the latter Linux would not use the page attribute table.
pub fn set_boot_msrs(fd: &VcpuFd) -> Result<(), KvmError> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    const ENABLED_WRITE_BACK: u64 = 0x806;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    for msr in [entry(IA32_MISC_ENABLE, FAST_STRINGS), entry(IA32_MTRR_DEF_TYPE, ENABLED_WRITE_BACK)] {
        let Ok(msrs) = Msrs::from_entries(&[msr]) else {
            continue;
        };
        // A KVM that refuses one (a count of 0) has its own idea of it: let it.
        call("KVM_SET_MSRS", fd.set_msrs(&msrs))?;
    }
    Ok(())
}
