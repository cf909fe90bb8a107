//! What the end-to-end tests share: the built binary with a home of its own, and
//! a raw MCP client. Nothing here knows pyro's crates: the tests see what a user
//! sees.

mod client;
mod home;

pub use client::{Client, Transport};
pub use home::{Finished, Home, Running};
