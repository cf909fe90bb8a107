//! One file per tool.

pub mod create;
pub mod delete;
pub mod exec;
pub mod list_environments;
pub mod network_info;
pub mod reap_expired;
pub mod start;
pub mod status;
pub mod stop;
