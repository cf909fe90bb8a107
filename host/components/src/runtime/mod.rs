//! Running components: the wasmtime engine, what is linked into an instance, and the limits of a call.
//!
//! ```text
//! Prepared (once per component)   compiled code + imports resolved -> InstancePre
//! call     (once per call)        Store + instance + both clocks, dropped at the end, never used again
//! ```
//!
//! A trap, a limit, a timeout and a dropped call all end the same way: the store goes, and with it every handle.

mod access;
mod aot;
mod attachments;
mod bindings;
mod blob;
mod call;
mod capture;
mod engine;
mod host;
mod host_files;
mod link;
mod meter;
mod prepare;
mod progress;
mod state;
mod vm;

pub(crate) use access::HostAccess;
pub(crate) use aot::AotCache;
pub(crate) use call::{CallRequest, CallScope, after, argument_bytes, before, call};
pub(crate) use engine::runtime;
pub use prepare::pack;
pub(crate) use prepare::{Prepared, prepare};
pub(crate) use state::config_json;
