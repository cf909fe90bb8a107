//! One microVM: its devices, its memory, its start.
//!
//! The crate is synchronous; whoever runs a microVM gives it threads.

pub mod vhost_user;
pub mod vsock;
