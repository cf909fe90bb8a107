//! The file tools: listing, reading, writing, searching and patching a workspace.

pub mod exact_edit;
pub mod ignored;
pub mod search;
pub mod window;
