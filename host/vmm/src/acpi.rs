//! ACPI tables: the only way Debian's kernel finds this machine's devices.
//!
//! A hardware-reduced machine (ACPI 6.5, section 4.1): no PM timer, no SCI, no legacy interrupt
//! controller. The DSDT holds one `LNRO0005` device per virtio-mmio window (the id that Linux's
//! `virtio_mmio` module binds to), the serial port, the VM generation id and a generic event
//! device. There is no PCI, no keyboard controller and no real-time clock, and the FADT says so,
//! which saves the kernel from waiting for them.

use acpi_tables::aml::{
    Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate,
    Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout;
use crate::memory::GuestRam;

const OEM_ID: [u8; 6] = *b"PYRO  ";
const OEM_TABLE_ID: [u8; 8] = *b"PYROVM  ";
const OEM_REVISION: u32 = 1;

/// "no VGA" and "no CMOS real-time clock"; the 8042 bit is clear (ACPI 6.5, table 5.11).
const IAPC_BOOT_ARCH: u16 = (1 << 2) | (1 << 5);

/// A virtio-mmio window and its interrupt line.
#[derive(Debug, Clone, Copy)]
pub struct VirtioWindow {
    /// First address.
    pub base: u32,
    /// Interrupt line.
    pub gsi: u32,
}

/// The tables could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// See the message.
    #[error("ACPI tables need {0} bytes, more than their area has")]
    TooLarge(usize),
    /// Guest memory refused a write.
    #[error("cannot write ACPI tables: {0}")]
    Write(#[from] GuestMemoryError),
}

/// All tables of one machine, with their guest addresses.
#[derive(Debug)]
pub struct AcpiTables {
    /// Root pointer, for [`layout::RSDP`].
    pub rsdp: Vec<u8>,
    /// DSDT, FADT, MADT and XSDT with their addresses.
    pub tables: Vec<(u64, Vec<u8>)>,
}

/// Builds the tables of a machine with these vCPUs and devices, in the order of the devices.
pub fn build(vcpu_count: u8, windows: &[VirtioWindow]) -> AcpiTables {
    let mut tables = Vec::new();
    let mut next = layout::ACPI;
    let mut place = |bytes: Vec<u8>| {
        let address = next;
        next = (next + bytes.len() as u64).next_multiple_of(16);
        tables.push((address, bytes));
        address
    };
    let dsdt = place(build_dsdt(windows));
    let fadt = place(build_fadt(dsdt));
    let madt = place(build_madt(vcpu_count));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(to_bytes(&xsdt));
    AcpiTables { rsdp: to_bytes(&Rsdp::new(OEM_ID, xsdt)), tables }
}

/// Writes the tables to guest memory.
pub fn write(ram: &GuestRam, tables: &AcpiTables) -> Result<(), AcpiError> {
    for (address, bytes) in &tables.tables {
        if address + bytes.len() as u64 > layout::ACPI_END {
            return Err(AcpiError::TooLarge(bytes.len()));
        }
        ram.write_slice(bytes, GuestAddress(*address))?;
    }
    ram.write_slice(&tables.rsdp, GuestAddress(layout::RSDP))?;
    Ok(())
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn build_fadt(dsdt: u64) -> Vec<u8> {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = IAPC_BOOT_ARCH.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    to_bytes(&fadt.finalize())
}

fn build_madt(vcpu_count: u8) -> Vec<u8> {
    let controller = LocalInterruptController::Address(layout::LAPIC as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, controller);
    for id in 0..vcpu_count {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    to_bytes(&madt)
}

fn build_dsdt(windows: &[VirtioWindow]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, window) in windows.iter().enumerate() {
        virtio_device(index, *window, &mut bytes);
    }
    serial_device(&mut bytes);
    generation_id_devices(&mut bytes);
    let mut scope = Vec::new();
    Scope::new("\\_SB_".into(), vec![&RawAml(&bytes)]).to_aml_bytes(&mut scope);
    // S5 needs a sleep type for each of two registers; the second is not used here.
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&layout::SLEEP_TYPE_OFF, &layout::SLEEP_TYPE_OFF, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut scope);
    // Revision 2: integers have 64 bits.
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&scope);
    dsdt.as_slice().to_vec()
}

/// AML bytes that were built before.
struct RawAml<'a>(&'a [u8]);

impl Aml for RawAml<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0);
    }
}

/// An edge-triggered, active-high, exclusive interrupt.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn virtio_device(index: usize, window: VirtioWindow, sink: &mut Vec<u8>) {
    Device::new(
        Path::new(&format!("V{index:03}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &(index as u32)),
            // DMA is cache coherent.
            &Name::new("_CCA".into(), &aml::ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, window.base, layout::MMIO_SIZE as u32),
                    &interrupt(window.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

fn serial_device(sink: &mut Vec<u8>) {
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8),
                    &interrupt(layout::SERIAL_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// The VM generation id (Microsoft's "Virtual Machine Generation ID") and the event device that
/// tells the guest when it changed.
fn generation_id_devices(sink: &mut Vec<u8>) {
    let (low, high) = (layout::VM_GENERATION_ID as u32, (layout::VM_GENERATION_ID >> 32) as u32);
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"PYRO0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(sink);
    Device::new(
        "GEDV".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt(layout::EVENT_GSI)])),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&If::new(
                    &Equal::new(&aml::Arg(0), &layout::EVENT_GSI),
                    vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &0x80u8)],
                )],
            ),
        ],
    )
    .to_aml_bytes(sink);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn windows(count: u32) -> Vec<VirtioWindow> {
        (0..count)
            .map(|i| VirtioWindow {
                base: (layout::MMIO + u64::from(i) * layout::MMIO_SIZE) as u32,
                gsi: layout::VIRTIO_GSI + i,
            })
            .collect()
    }

    #[test]
    fn every_table_has_its_length_and_checksum() {
        let built = build(32, &windows(11));
        assert_eq!(sum(&built.rsdp), 0);
        for (address, bytes) in &built.tables {
            assert_eq!(sum(bytes), 0, "checksum of the table at {address:#x}");
            assert_eq!(u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize, bytes.len());
        }
        let ram = crate::memory::allocate(1 << 20).unwrap();
        write(&ram, &built).unwrap();
    }

    /// `iasl` disassembles what we built and compiles it again without an error.
    #[test]
    fn the_reference_compiler_accepts_the_dsdt() {
        let directory = tempfile::tempdir().unwrap();
        let aml = directory.path().join("dsdt.aml");
        std::fs::write(&aml, &build(4, &windows(3)).tables[0].1).unwrap();
        let run = |args: &[&str]| Command::new("iasl").args(args).current_dir(directory.path()).output();
        let Ok(disassembled) = run(&["-d", "dsdt.aml"]) else {
            // The CI image has acpica-tools; elsewhere the checksum test above still runs.
            return;
        };
        assert!(disassembled.status.success(), "{disassembled:?}");
        let source = std::fs::read_to_string(directory.path().join("dsdt.dsl")).unwrap();
        for expected in ["LNRO0005", "PNP0501", "ACPI0013", "VM_Gen_Counter", "Notify (\\_SB.VGEN, 0x80)", "_S5"] {
            assert!(source.contains(expected), "no {expected} in:\n{source}");
        }
        let compiled = run(&["-p", "again", "dsdt.dsl"]).unwrap();
        let text = String::from_utf8_lossy(&compiled.stdout).into_owned() + &String::from_utf8_lossy(&compiled.stderr);
        assert!(text.contains(" 0 Errors"), "{text}");
        assert!(text.contains(" 0 Warnings"), "{text}");
    }
}
