//! One file per tool.

pub mod close;
pub mod list;
pub mod open;
pub mod read;
pub mod resize;
pub mod signal;
pub mod write;
