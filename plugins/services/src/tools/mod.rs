//! One file per tool.

pub mod list;
pub mod logs;
pub mod restart;
pub mod start;
pub mod status;
pub mod stop;
