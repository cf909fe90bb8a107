//! One file per tool.

pub mod list;
pub mod publish;
pub mod unpublish;
