//! Proves, in milliseconds, that this host's KVM can run an unmodified kernel.
//!
//! `/dev/kvm` existing is no proof: a paravirtual KVM opens and answers like a real one, runs
//! simple guests, and fails a stock kernel with `KVM_EXIT_INTERNAL_ERROR`. So a tiny guest does
//! what kernels do that such hosts cannot: it goes from real mode to long mode, takes a
//! breakpoint and returns from it, swaps GS, does a locked 16-byte exchange, saves and restores
//! its extended state where CPUID offers it, takes an interrupt that arrives through an irqfd,
//! and halts.
//!
//! The verdict holds for one boot of one kernel on one CPU; [`run_cached`] keeps it. A VM that
//! later dies of a KVM fault overrules it with [`mark_unusable`].

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuExit;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::cpuid::{self, Topology};
use crate::exit::CrashCause;
use crate::ioapic::MsiRoute;
use crate::kvm::{self, KvmError, KvmVm, call};
use crate::memory::{self, GuestRam, MemoryError};
use crate::vcpu;

/// Time after which a guest that neither passes nor fails has failed. A real KVM needs well under
/// a millisecond; the limit is for KVM in a software CPU on a busy host.
const LIMIT: Duration = Duration::from_secs(2);

/// Time after which the interrupt is sent again. One that comes between `sti` and `hlt` is to be held off until the guest
/// halts; QEMU 7.2's SVM forgets that when it enters the guest anew there (once in some 2000 tests), and the guest halts
/// after its interrupt. A kernel's next timer wakes it; this guest has none.
const AGAIN: Duration = Duration::from_millis(100);

/// File of the verdict in the directory given to [`run_cached`].
const VERDICT_FILE: &str = "kvm-verdict.json";

/// Whether KVM can be used here, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether an unmodified kernel can run.
    pub usable: bool,
    /// The proof, or what went wrong, for a person.
    pub reason: String,
    /// Time the test took, in microseconds.
    pub elapsed_us: u64,
}

/// A verdict with what it holds for.
#[derive(Serialize, Deserialize)]
struct Kept {
    host: String,
    verdict: Verdict,
}

/// Runs the test.
pub fn run() -> Verdict {
    let started = Instant::now();
    let (usable, reason) = match run_guest() {
        Ok(()) => (true, "a test guest passed: long mode, breakpoint, cmpxchg16b, xsave, interrupt, halt".to_owned()),
        Err(error) => (false, error.to_string()),
    };
    let elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    Verdict { usable, reason, elapsed_us }
}

/// Returns the verdict kept in `directory` for this boot, kernel and CPU, or runs the test and
/// keeps its verdict there.
///
/// A verdict that cannot be kept is returned all the same.
pub fn run_cached(directory: &Path) -> Verdict {
    let host = host_key();
    if let Ok(bytes) = fs::read(directory.join(VERDICT_FILE))
        && let Ok(kept) = serde_json::from_slice::<Kept>(&bytes)
        && kept.host == host
    {
        return kept.verdict;
    }
    let verdict = run();
    // Absent or forbidden today may be there tomorrow without a reboot.
    if Path::new("/dev/kvm").exists() && kvm::open().is_ok() {
        let _ = keep(directory, host, &verdict);
    }
    verdict
}

/// Makes `reason` the verdict for this boot, kernel and CPU: a VM found out what the test did not.
pub fn mark_unusable(directory: &Path, reason: String) -> io::Result<()> {
    keep(directory, host_key(), &Verdict { usable: false, reason, elapsed_us: 0 })
}

fn keep(directory: &Path, host: String, verdict: &Verdict) -> io::Result<()> {
    use std::io::Write;
    let bytes = serde_json::to_vec(&Kept { host, verdict: verdict.clone() })?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // Renamed into place, so that a reader never sees half of it.
    let staging = directory.join(format!("{VERDICT_FILE}.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staging)?;
    file.write_all(&bytes)?;
    fs::rename(&staging, directory.join(VERDICT_FILE))
}

/// Names what a verdict holds for: this boot, this kernel, this CPU.
fn host_key() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = first_page("/proc/cpuinfo");
    let model = cpu.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    [
        read("/proc/sys/kernel/random/boot_id"),
        read("/proc/sys/kernel/osrelease"),
        read("/proc/sys/kernel/version"),
        model.to_owned(),
    ]
    .join("|")
}

/// Reads the beginning of a file: of `/proc/cpuinfo` the first CPU, because the kernel takes its time for each of many.
fn first_page(path: &str) -> String {
    let mut bytes = Vec::new();
    // What was read before a failure is good.
    let _ = fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Debug, thiserror::Error)]
enum SelftestError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Write(#[from] GuestMemoryError),
    #[error("cannot prepare the test: {0}")]
    Prepare(io::Error),
    #[error("the test guest got wrong results {0}")]
    WrongResult(&'static str),
    #[error("the test guest did not end within {} s, {stage}", LIMIT.as_secs())]
    Hung { stage: &'static str },
    #[error("the test guest failed {stage}: {report}")]
    Crash { stage: &'static str, report: String },
}

/// What the guest was doing after it reported a stage.
fn stage_name(stage: u8) -> &'static str {
    match stage {
        0 => "in real mode",
        1 => "on the way to long mode",
        2 => "at a breakpoint",
        3 => "at a locked 16-byte exchange",
        4 => "saving its extended state",
        5 => "enabling its local APIC",
        6 => "waiting for an interrupt",
        _ => "at the end",
    }
}

mod place {
    //! Where things are in the test guest's 64 KiB.
    pub const GDTR: u64 = 0x600;
    pub const IDTR: u64 = 0x610;
    pub const GDT: u64 = 0x620;
    pub const CODE: u64 = 0x1000;
    pub const PML4: u64 = 0x2000;
    pub const PDPT: u64 = 0x3000;
    pub const PD_LOW: u64 = 0x4000;
    pub const PD_APIC: u64 = 0x5000;
    pub const IDT: u64 = 0x6000;
    pub const SIZE: u64 = 0x1_0000;
}

/// Vector of the interrupt that arrives through an irqfd.
const VECTOR: u8 = 0x40;
/// The line it arrives on.
const GSI: u32 = 5;

const PORT_STAGE: u16 = 0x80;
const PORT_INTERRUPT: u16 = 0x81;
const PORT_PASSED: u16 = 0x82;
const PORT_WRONG: u16 = 0x83;

// The guest. It is linked into this program as data and runs at `place::CODE`, so it only uses
// relative jumps and fixed addresses: 0x700 breakpoint seen, 0x701 interrupt seen, 0x710 operand
// of cmpxchg16b, 0x900 xsave area, 0x8000 stack.
std::arch::global_asm!(
    r#"
    .pushsection .rodata.pyro_selftest, "a", @progbits
    .hidden pyro_selftest_start
    .globl pyro_selftest_start
    .hidden pyro_selftest_breakpoint
    .globl pyro_selftest_breakpoint
    .hidden pyro_selftest_interrupt
    .globl pyro_selftest_interrupt
    .hidden pyro_selftest_end
    .globl pyro_selftest_end
    .code16
pyro_selftest_start:
    cli
    mov al, 1
    out 0x80, al
    lgdt [0x600]
    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov eax, 0x2000
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000001
    mov cr0, eax
    .byte 0xea
    .word 3f - pyro_selftest_start + 0x1000
    .word 0x08
    .code64
3:
    mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov esp, 0x8000
    lidt [0x610]
    mov al, 2
    out 0x80, al
    int3
    cmp byte ptr [0x700], 1
    jne 9f
    swapgs
    swapgs
    mov al, 3
    out 0x80, al
    mov eax, 1
    cpuid
    bt ecx, 13
    jnc 4f
    xor eax, eax
    xor edx, edx
    mov ebx, 1
    mov ecx, 2
    lock cmpxchg16b [0x710]
    jne 9f
    cmp qword ptr [0x718], 2
    jne 9f
4:
    mov al, 4
    out 0x80, al
    mov eax, 1
    cpuid
    bt ecx, 26
    jnc 5f
    mov rax, cr4
    or rax, 0x40000
    mov cr4, rax
    xor ecx, ecx
    mov eax, 3
    xor edx, edx
    xsetbv
    mov eax, 3
    xor edx, edx
    xsave [0x900]
    xrstor [0x900]
5:
    mov al, 5
    out 0x80, al
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xf0], 0x1ff
    mov al, 6
    out 0x80, al
    out 0x81, al
    sti
6:
    hlt
    cmp byte ptr [0x701], 1
    jne 6b
    cli
    mov al, 7
    out 0x80, al
    out 0x82, al
9:
    out 0x83, al
    hlt
    jmp 9b
pyro_selftest_breakpoint:
    inc byte ptr [0x700]
    iretq
pyro_selftest_interrupt:
    push rdi
    mov byte ptr [0x701], 1
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xb0], 0
    pop rdi
    iretq
pyro_selftest_end:
    .popsection
    "#
);

unsafe extern "C" {
    static pyro_selftest_start: u8;
    static pyro_selftest_breakpoint: u8;
    static pyro_selftest_interrupt: u8;
    static pyro_selftest_end: u8;
}

/// The guest's code and the offsets of its two handlers.
fn guest_code() -> (&'static [u8], u64, u64) {
    let start = &raw const pyro_selftest_start;
    let offset = |symbol: *const u8| symbol.addr() - start.addr();
    // SAFETY: the symbols bracket one read-only section that the assembler laid out in this order,
    // so the range is initialised, immutable and lives as long as the program.
    let code = unsafe { std::slice::from_raw_parts(start, offset(&raw const pyro_selftest_end)) };
    let breakpoint = offset(&raw const pyro_selftest_breakpoint) as u64;
    (code, breakpoint, offset(&raw const pyro_selftest_interrupt) as u64)
}

fn write_guest(ram: &GuestRam) -> Result<(), SelftestError> {
    let (code, breakpoint, interrupt) = guest_code();
    let put = |value: u64, at: u64| ram.write_obj(value, GuestAddress(at));
    ram.write_slice(code, GuestAddress(place::CODE))?;
    // Null, 64-bit code, data.
    for (index, descriptor) in (0u64..).zip([0, 0x00af_9a00_0000_ffff, 0x00cf_9200_0000_ffff]) {
        put(descriptor, place::GDT + index * 8)?;
    }
    ram.write_obj(3 * 8 - 1u16, GuestAddress(place::GDTR))?;
    put(place::GDT, place::GDTR + 2)?;
    ram.write_obj(0xfffu16, GuestAddress(place::IDTR))?;
    put(place::IDT, place::IDTR + 2)?;
    for (vector, offset) in [(3u64, breakpoint), (u64::from(VECTOR), interrupt)] {
        // A present interrupt gate to the code segment; handlers are below 64 KiB.
        put((place::CODE + offset) | (0x08 << 16) | (0x8e00 << 32), place::IDT + vector * 16)?;
    }
    // The first 2 MiB and the local APIC, each as one large page.
    const TABLE: u64 = 0b11;
    const LARGE: u64 = 0b1000_0011;
    put(place::PDPT | TABLE, place::PML4)?;
    put(place::PD_LOW | TABLE, place::PDPT)?;
    put(place::PD_APIC | TABLE, place::PDPT + 3 * 8)?;
    put(LARGE, place::PD_LOW)?;
    // Uncached, as the APIC is.
    put(0xfee0_0000 | LARGE | (1 << 4), place::PD_APIC + 503 * 8)?;
    Ok(())
}

fn run_guest() -> Result<(), SelftestError> {
    let kvm = kvm::open()?;
    let ram = memory::allocate(place::SIZE)?;
    let vm = KvmVm::new(&kvm, &ram)?;
    write_guest(&ram)?;
    let mut fd = vm.create_vcpu(0)?;
    let topology = Topology { vcpu_count: 1, tsc_deadline: vm.tsc_deadline(), masks: &[] };
    let table = cpuid::for_vcpu(vm.supported_cpuid(), &topology, 0);
    call("KVM_SET_CPUID2", fd.set_cpuid2(&table))?;
    let mut sregs = call("KVM_GET_SREGS", fd.get_sregs())?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    call("KVM_SET_SREGS", fd.set_sregs(&sregs))?;
    let regs = kvm_bindings::kvm_regs { rip: place::CODE, rflags: 2, ..Default::default() };
    call("KVM_SET_REGS", fd.set_regs(&regs))?;
    vm.set_routes(&[MsiRoute { gsi: GSI, address: 0xfee0_0000, data: u32::from(VECTOR) }])?;
    let line = vm.irqfd(GSI)?;

    vcpu::install_kick_handler().map_err(SelftestError::Prepare)?;
    let kicker = vcpu::Kicker::new(&fd).map_err(SelftestError::Prepare)?;
    let (done, watch) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (line, started) = (&line, Instant::now());
        scope.spawn(move || {
            while watch.recv_timeout(AGAIN) == Err(RecvTimeoutError::Timeout) {
                let _ = line.write(1);
                // Ends a guest that spins or sleeps for ever.
                if started.elapsed() >= LIMIT {
                    kicker.kick();
                }
            }
        });
        let result = run_vcpu(&mut fd, &ram, line);
        drop(done);
        result
    })
}

fn run_vcpu(
    fd: &mut kvm_ioctls::VcpuFd,
    ram: &GuestRam,
    line: &vmm_sys_util::eventfd::EventFd,
) -> Result<(), SelftestError> {
    let started = Instant::now();
    let mut stage = 0;
    loop {
        let cause = match fd.run() {
            Ok(VcpuExit::IoOut(PORT_STAGE, [reached])) => {
                stage = *reached;
                continue;
            }
            Ok(VcpuExit::IoOut(PORT_INTERRUPT, _)) => {
                line.write(1).map_err(SelftestError::Prepare)?;
                continue;
            }
            Ok(VcpuExit::IoOut(PORT_PASSED, _)) => return Ok(()),
            Ok(VcpuExit::IoOut(PORT_WRONG, _)) => {
                return Err(SelftestError::WrongResult(stage_name(stage)));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                if started.elapsed() >= LIMIT {
                    return Err(SelftestError::Hung { stage: stage_name(stage) });
                }
                continue;
            }
            Ok(VcpuExit::InternalError) => CrashCause::InternalError { suberror: 0 },
            Ok(VcpuExit::FailEntry(reason, _)) => CrashCause::FailEntry { reason },
            Ok(VcpuExit::Shutdown) => CrashCause::TripleFault,
            Ok(other) => CrashCause::Unexpected { exit: format!("{other:?}") },
            Err(error) => CrashCause::RunError { errno: error.errno() },
        };
        let report = vcpu::report(fd, 0, cause, ram).to_string();
        return Err(SelftestError::Crash { stage: stage_name(stage), report });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_fits_its_page_and_its_tables_are_in_memory() {
        let (code, breakpoint, interrupt) = guest_code();
        assert!(code.len() < 0x1000 && breakpoint < interrupt && (interrupt as usize) < code.len());
        // `cli` first: real mode starts with the right instruction.
        assert_eq!(code[0], 0xfa);
        write_guest(&memory::allocate(place::SIZE).unwrap()).unwrap();
    }

    #[test]
    fn a_verdict_is_kept_for_this_host_only() {
        let directory = tempfile::tempdir().unwrap();
        mark_unusable(directory.path(), "a VM died".to_owned()).unwrap();
        assert_eq!(run_cached(directory.path()).reason, "a VM died");
        let other = Kept {
            host: "elsewhere".to_owned(),
            verdict: Verdict { usable: true, reason: String::new(), elapsed_us: 0 },
        };
        fs::write(directory.path().join(VERDICT_FILE), serde_json::to_vec(&other).unwrap()).unwrap();
        assert!(!run_cached(directory.path()).reason.is_empty());
        fs::write(directory.path().join(VERDICT_FILE), b"{").unwrap();
        assert!(!run_cached(directory.path()).reason.is_empty());
    }

    /// Whatever KVM this host has, the test comes to a verdict in bounded time.
    #[test]
    fn a_verdict_always_comes() {
        let verdict = run();
        assert!(!verdict.reason.is_empty());
        assert!(verdict.elapsed_us < 10_000_000, "{verdict:?}");
    }
}
