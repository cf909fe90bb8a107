//! End-to-end tests: the built binary, real microVMs, no knowledge of the crates
//! beneath.

mod architecture;
mod bad_input;
mod disk_full;
mod environments;
mod kvm;
mod mcp;
mod run;
mod workspaces;
