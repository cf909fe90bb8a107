//! The `pyro` program from outside, without a microVM: what is typed, what is on the wire, what comes back.

mod cli;
mod contract;
mod errors;
mod mcp;
mod support;
