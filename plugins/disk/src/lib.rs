//! The disk tools: the root disk of a stopped workspace.

pub mod image;
pub mod pages;
pub mod path;
