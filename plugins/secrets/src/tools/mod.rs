//! One file per tool.

pub mod list;
pub mod remove;
pub mod set;
