//! The VM object of KVM: memory slots, split interrupt controller, event counters.
//!
//! Order matters (measured on Linux 6.18 at 250 Hz: 0.6 ms against 8-12 ms): all memory slots
//! right after `KVM_CREATE_VM`, then vCPUs, and everything that registers with KVM's I/O buses
//! (ioeventfds) last. A memory slot change after a bus registration waits for a full grace
//! period. Slots never change while the VM runs.

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::ioapic::{MsiRoute, PINS};
use crate::layout;
use crate::memory::GuestRam;

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// See the message.
    #[error("cannot open /dev/kvm: {0}")]
    Open(kvm_ioctls::Error),
    /// See the message.
    #[error("KVM has API version {0}, not 12")]
    ApiVersion(i32),
    /// See the message.
    #[error("this KVM lacks {0}")]
    MissingCap(&'static str),
    /// A call failed.
    #[error("{call} failed: {source}")]
    Call {
        /// The KVM call.
        call: &'static str,
        /// Its error.
        source: kvm_ioctls::Error,
    },
    /// See the message.
    #[error("cannot make an event counter: {0}")]
    EventFd(std::io::Error),
    /// See the message.
    #[error("too many interrupt routes")]
    Routes,
}

/// Names the KVM call in its error.
pub(crate) fn call<T>(name: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, KvmError> {
    result.map_err(|source| KvmError::Call { call: name, source })
}

/// What the VMM cannot do without.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "user memory slots"),
    (Cap::SplitIrqchip, "a split interrupt controller"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::ExtCpuid, "CPUID tables"),
    (Cap::MpState, "multiprocessor state"),
    (Cap::SetTssAddr, "a TSS address"),
];

/// Opens `/dev/kvm` and checks that it can do what every VM here needs.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(KvmError::Open)?;
    let version = kvm.get_api_version();
    if version != 12 {
        return Err(KvmError::ApiVersion(version));
    }
    match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::MissingCap(name)),
        None => Ok(kvm),
    }
}

/// One VM of KVM, without devices.
pub struct KvmVm {
    fd: VmFd,
    supported_cpuid: CpuId,
    tsc_deadline: bool,
    // Memory slots point into it.
    _ram: GuestRam,
}

impl KvmVm {
    /// Creates a VM with `ram` as its memory and the local APICs in the kernel.
    pub fn new(kvm: &Kvm, ram: &GuestRam) -> Result<Arc<KvmVm>, KvmError> {
        let fd = call("KVM_CREATE_VM", kvm.create_vm())?;
        for (slot, region) in (0u32..).zip(ram.iter()) {
            let host = region
                .get_host_address(vm_memory::MemoryRegionAddress(0))
                .map_err(|_| KvmError::MissingCap("host addresses of guest memory"))?;
            let memory = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
                flags: 0,
            };
            // SAFETY: the range is a mapping that `ram` owns; `KvmVm` keeps a clone of it, so it
            // stays mapped at least until the VM's descriptor is closed. Slots do not overlap:
            // they are distinct regions of one guest memory.
            let result = unsafe { fd.set_user_memory_region(memory) };
            call("KVM_SET_USER_MEMORY_REGION", result)?;
        }
        call("KVM_SET_TSS_ADDR", fd.set_tss_address(layout::KVM_TSS as usize))?;
        let mut split = kvm_enable_cap { cap: kvm_bindings::KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        split.args[0] = PINS as u64;
        call("KVM_CAP_SPLIT_IRQCHIP", fd.enable_cap(&split))?;
        let supported_cpuid = call("KVM_GET_SUPPORTED_CPUID", kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Arc::new(KvmVm { fd, supported_cpuid, tsc_deadline, _ram: ram.clone() }))
    }

    /// Creates a vCPU. All of them come before the first [`KvmVm::ioeventfd`].
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        call("KVM_CREATE_VCPU", self.fd.create_vcpu(u64::from(id)))
    }

    /// Returns the CPUID table that KVM supports.
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.supported_cpuid
    }

    /// Returns whether the local APIC timer has a TSC-deadline mode.
    pub fn tsc_deadline(&self) -> bool {
        self.tsc_deadline
    }

    /// Makes an event counter that raises line `gsi` when written.
    pub fn irqfd(&self, gsi: u32) -> Result<EventFd, KvmError> {
        let event = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(KvmError::EventFd)?;
        call("KVM_IRQFD", self.fd.register_irqfd(&event, gsi))?;
        Ok(event)
    }

    /// Signals `event` when the guest writes the 32-bit `value` to `address`.
    pub fn ioeventfd(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        let result = self.fd.register_ioevent(event, &IoEventAddress::Mmio(address), value);
        call("KVM_IOEVENTFD", result)
    }

    /// Replaces all interrupt routes.
    pub fn set_routes(&self, routes: &[MsiRoute]) -> Result<(), KvmError> {
        let entries: Vec<kvm_irq_routing_entry> = routes
            .iter()
            .map(|route| kvm_irq_routing_entry {
                gsi: route.gsi,
                type_: kvm_bindings::KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 {
                    msi: kvm_irq_routing_msi {
                        address_lo: route.address,
                        address_hi: 0,
                        data: route.data,
                        ..Default::default()
                    },
                },
                ..Default::default()
            })
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError::Routes)?;
        call("KVM_SET_GSI_ROUTING", self.fd.set_gsi_routing(&routing))
    }
}

impl std::fmt::Debug for KvmVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmVm").field("tsc_deadline", &self.tsc_deadline).finish_non_exhaustive()
    }
}
