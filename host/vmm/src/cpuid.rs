//! The CPU the guest sees: what KVM supports, with this VM's topology.
//!
//! Starts from `KVM_GET_SUPPORTED_CPUID` and changes only what depends on the vCPU: APIC ids,
//! one socket of single-threaded cores. Nothing is switched on that KVM did not report, with one
//! exception that KVM documents: the TSC-deadline bit depends on the in-kernel local APIC and is
//! reported by `KVM_CAP_TSC_DEADLINE_TIMER`. The PMU is hidden: its MSRs would be state to save.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::config::CpuidMask;

/// What depends on the VM rather than on the host.
#[derive(Debug, Clone)]
pub struct Topology<'a> {
    /// Number of vCPUs.
    pub vcpu_count: u8,
    /// Whether the local APIC timer has a TSC-deadline mode.
    pub tsc_deadline: bool,
    /// An operator's masks.
    pub masks: &'a [CpuidMask],
}

const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;

/// Returns the CPUID table of vCPU `id`, from the one that KVM supports.
pub fn for_vcpu(supported: &CpuId, topology: &Topology<'_>, id: u8) -> CpuId {
    let mut cpuid = supported.clone();
    // Extended topology leaves are written whole: KVM reports the host's.
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    let extended = supported.as_slice().iter().any(|entry| entry.function == 0xb);
    if extended {
        for index in 0..2 {
            // A full table (more than 80 entries) has been seen nowhere.
            if cpuid.push(extended_topology(topology, id, index)).is_err() {
                break;
            }
        }
    }
    for entry in cpuid.as_mut_slice() {
        adjust(entry, topology, id);
        for mask in topology.masks {
            if mask.leaf == entry.function && mask.subleaf.is_none_or(|index| index == entry.index) {
                entry.eax &= !mask.eax;
                entry.ebx &= !mask.ebx;
                entry.ecx &= !mask.ecx;
                entry.edx &= !mask.edx;
            }
        }
    }
    cpuid
}

fn adjust(entry: &mut kvm_cpuid_entry2, topology: &Topology<'_>, id: u8) {
    let count = u32::from(topology.vcpu_count);
    let id = u32::from(id);
    match entry.function {
        0x1 => {
            // APIC id, addressable ids, and the CLFLUSH line size that is there.
            entry.ebx = (entry.ebx & 0xffff) | (count.next_power_of_two() << 16) | (id << 24);
            entry.ecx |= LEAF1_ECX_HYPERVISOR;
            set(&mut entry.ecx, LEAF1_ECX_TSC_DEADLINE, topology.tsc_deadline);
            set(&mut entry.edx, LEAF1_EDX_HTT, count > 1);
        }
        // Intel caches: who shares, and how many cores the package has.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0b111;
            let sharing = if level >= 3 { count.next_power_of_two() - 1 } else { 0 };
            let cores = count.next_power_of_two() - 1;
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | (cores << 26);
        }
        // No performance counters.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD: size of the APIC id and number of cores.
        0x8000_0008 => {
            entry.ecx = (entry.ecx & !0xf0ff) | (count - 1) | (id_bits(topology.vcpu_count) << 12);
        }
        // AMD caches.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0b111;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
        }
        // AMD: APIC id, core id, one thread per core, one node.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Leaf 0xb: subleaf 0 has the threads of a core, subleaf 1 the cores of the package.
fn extended_topology(topology: &Topology<'_>, id: u8, index: u32) -> kvm_cpuid_entry2 {
    /// "ECX on input matters."
    const SIGNIFICANT_INDEX: u32 = 1;
    const LEVEL_THREADS: u32 = 1 << 8;
    const LEVEL_CORES: u32 = 2 << 8;
    let (shift, number, level) = match index {
        0 => (0, 1, LEVEL_THREADS),
        _ => (id_bits(topology.vcpu_count), u32::from(topology.vcpu_count), LEVEL_CORES),
    };
    kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: number,
        ecx: index | level,
        edx: u32::from(id),
        ..Default::default()
    }
}

/// Bits of an APIC id that tell cores apart.
fn id_bits(vcpu_count: u8) -> u32 {
    u32::from(vcpu_count).next_power_of_two().trailing_zeros()
}

fn set(word: &mut u32, bit: u32, on: bool) {
    if on {
        *word |= bit;
    } else {
        *word &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_id_and_all_agree_on_the_package() {
        let supported = CpuId::from_entries(&[
            entry(1, 0x806f8, 0xff04_0800, 0, 0),
            entry(0xa, 5, 6, 7, 8),
            entry(0xb, 1, 2, 3, 4),
            entry(0x8000_0008, 0x3030, 0, 0x7007, 0),
        ])
        .unwrap();
        let topology = Topology { vcpu_count: 3, tsc_deadline: true, masks: &[] };
        let cpuid = for_vcpu(&supported, &topology, 2);
        let first = find(&cpuid, 1, 0);
        assert_eq!(first.ebx, 0x0204_0800);
        assert_ne!(first.ecx & LEAF1_ECX_TSC_DEADLINE, 0);
        assert_ne!(first.edx & LEAF1_EDX_HTT, 0);
        assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 0x2002);
    }

    #[test]
    fn masks_clear_bits_and_never_set_them() {
        let supported = CpuId::from_entries(&[entry(7, 0, 0xffff, 0, 0)]).unwrap();
        let mask = CpuidMask { leaf: 7, subleaf: Some(0), ebx: 0xff, ..Default::default() };
        let topology = Topology { vcpu_count: 1, tsc_deadline: false, masks: &[mask] };
        assert_eq!(find(&for_vcpu(&supported, &topology, 0), 7, 0).ebx, 0xff00);
    }
}
