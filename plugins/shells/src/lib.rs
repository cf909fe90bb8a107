//! The shell tools: interactive terminals in a workspace.

pub mod cursor;
pub mod plain;
