//! The guest agent: the first and only permanent process of a microVM.
//!
//! It is started by the kernel from the initramfs ([`init`]), loads the drivers, switches to the root file system, and
//! then serves operations on vsock ([`server`]). It stays PID 1 and never executes another init.
//!
//! One thread and one epoll loop do everything but what the kernel offers only in blocking form: files. Those operations
//! each have a thread, of which there are few. A command costs a handful of system calls, nothing polls on a timer, and
//! a slow or silent host delays only its own operation. Every buffer has a limit: when the host does not read, the agent
//! stops reading the command's output, and the command waits.
//!
//! ```text
//! main ── init ──────────► server ──────────► shutdown
//!         modules, root,   accept ─► operation ─► stream (frames)
//!         mounts, cgroups            ├─► exec ─► spawn, cgroup
//!                                    ├─► worker (thread) ─► files, probes
//!                                    ├─► relay
//!                                    └─► kept: terminals, services
//! ```
//!
//! Deliberately absent: configuration files, a shell, users, and any trust in what the commands do. They run as root in
//! the guest; one that moves itself out of its cgroup harms only its own machine.

pub mod cgroup;
mod environment;
mod exec;
pub mod facts;
mod files;
pub mod init;
mod kept;
mod operation;
mod peer;
mod probe;
mod relay;
pub mod server;
pub mod shutdown;
mod spawn;
mod stream;
pub mod sys;
mod worker;
