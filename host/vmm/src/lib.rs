//! One microVM: its devices, its memory, its start.
//!
//! [`Vmm`] is the machine on KVM: [`Vmm::build`] opens every file and sets the machine up,
//! [`Vmm::run`] runs it until it ends, and a [`VmmHandle`] steers it meanwhile. The devices that
//! the software engine shares are apart: [`vsock`] is the device, [`vhost_user`] offers it to
//! QEMU and [`virtio`] to KVM. [`selftest`] says whether this host's KVM can be used at all.
//!
//! Deliberately absent: PCI, firmware, network cards, graphics, hot-plug, and an async runtime.
//! `unsafe` is confined to `memory`, `virtio::iovec`, `kvm`, `vcpu`, `selftest` and the
//! descriptor glue of `vsock`, each block with its invariant.

pub mod acpi;
pub mod boot;
mod bus;
pub mod config;
pub mod console;
pub mod cpuid;
pub mod exit;
pub mod ioapic;
pub mod kernel;
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod sandbox;
pub mod selftest;
pub mod state;
pub mod stats;
mod vcpu;
pub mod vhost_user;
pub mod virtio;
mod vmm;
pub mod vsock;

pub use config::VmmConfig;
pub use exit::ExitReason;
pub use vmm::{Vmm, VmmError, VmmHandle};
