//! One file per tool.

pub mod create;
pub mod delete;
pub mod diff;
pub mod export;
pub mod list;
pub mod logs;
pub mod reset;
pub mod start;
pub mod status;
pub mod stop;
pub mod sync_push;
pub mod update;
