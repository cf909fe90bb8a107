//! One microVM: its devices, its memory, its start.
//!
//! The crate is synchronous; whoever runs a microVM gives it threads.

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
