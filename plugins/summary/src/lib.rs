//! What changed, ran and runs in a workspace, in one call.
//!
//! A group of its own, because it needs the rights of four others: whoever does not want that leaves
//! it out of the profile.

mod workspace_summary;

use workspace_summary::WorkspaceSummary;

pyro_plugin_sdk::export!(WorkspaceSummary);
