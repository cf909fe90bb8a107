//! The device against a model of a guest driver that shares nothing with it but memory.

mod abuse;
pub(crate) mod driver;
mod flow;
mod lifecycle;
mod properties;
