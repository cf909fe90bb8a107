//! One file per tool.

pub mod output;
pub mod stop;
