//! What a snapshot keeps of a VM: plain, versioned, serialisable state.
//!
//! Saving is here; restoring comes with snapshots. The order of saving is KVM's: MP state first
//! (reading it delivers pending INIT and SIPI), events last (reading others may change them).
//! MSRs are the ones KVM lists, plus an operator's: never a list of our own.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::ioapic::Ioapic;
use crate::kvm::{KvmError, call};
use crate::virtio::mmio::MmioState;
use crate::vsock::VsockState;

/// Version of every structure here.
pub const STATE_VERSION: u32 = 1;

/// Most MSRs per KVM call.
const MSR_BATCH: usize = 256;

/// State of a whole VM besides its memory and disks.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// [`STATE_VERSION`] of the writer.
    pub version: u32,
    /// Each vCPU, by number.
    pub vcpus: Vec<VcpuState>,
    /// The interrupt controller.
    pub ioapic: Ioapic,
    /// Each device window, in order.
    pub devices: Vec<MmioState>,
    /// The vsock device.
    pub vsock: Option<VsockState>,
}

/// State of one vCPU.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are KVM's structures")]
pub struct VcpuState {
    pub version: u32,
    pub id: u8,
    pub mp_state: kvm_mp_state,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub xsave: kvm_xsave,
    pub xcrs: kvm_xcrs,
    pub debugregs: kvm_debugregs,
    pub lapic: kvm_lapic_state,
    pub tsc_khz: Option<u32>,
    pub cpuid: CpuId,
    pub msrs: Vec<(u32, u64)>,
    pub events: kvm_vcpu_events,
}

/// Returns the MSRs to save: KVM's list and an operator's additions, without doubles.
pub fn msr_list(kvm: &Kvm, extra: &[u32]) -> Result<Vec<u32>, KvmError> {
    let mut list = call("KVM_GET_MSR_INDEX_LIST", kvm.get_msr_index_list())?.as_slice().to_vec();
    list.extend_from_slice(extra);
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

/// Saves a vCPU. Runs in its thread, outside `KVM_RUN`, with all exits completed.
pub fn save_vcpu(fd: &VcpuFd, id: u8, msrs: &[u32]) -> Result<VcpuState, KvmError> {
    Ok(VcpuState {
        version: STATE_VERSION,
        id,
        mp_state: call("KVM_GET_MP_STATE", fd.get_mp_state())?,
        regs: call("KVM_GET_REGS", fd.get_regs())?,
        sregs: call("KVM_GET_SREGS", fd.get_sregs())?,
        xsave: call("KVM_GET_XSAVE", fd.get_xsave())?,
        xcrs: call("KVM_GET_XCRS", fd.get_xcrs())?,
        debugregs: call("KVM_GET_DEBUGREGS", fd.get_debug_regs())?,
        lapic: call("KVM_GET_LAPIC", fd.get_lapic())?,
        tsc_khz: fd.get_tsc_khz().ok(),
        cpuid: call("KVM_GET_CPUID2", fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES))?,
        msrs: save_msrs(fd, msrs)?,
        events: call("KVM_GET_VCPU_EVENTS", fd.get_vcpu_events())?,
    })
}

/// Reads MSRs. One that KVM lists but refuses to read on this CPU is left out.
fn save_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let mut saved = Vec::with_capacity(indices.len());
    for batch in indices.chunks(MSR_BATCH) {
        let mut rest = batch;
        while !rest.is_empty() {
            let entries: Vec<kvm_msr_entry> =
                rest.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
            let Ok(mut msrs) = Msrs::from_entries(&entries) else {
                return Err(KvmError::MissingCap("MSR lists"));
            };
            // KVM stops at the first one it refuses and returns how many it read.
            let count = call("KVM_GET_MSRS", fd.get_msrs(&mut msrs))?;
            saved.extend(msrs.as_slice().iter().take(count).map(|entry| (entry.index, entry.data)));
            rest = rest.get(count + 1..).unwrap_or_default();
        }
    }
    Ok(saved)
}
