//! What changed, ran and runs in a workspace, in one call.
//!
//! A group of its own, because it needs the rights of four others: whoever does not want that leaves
//! it out of the profile.

mod workspace_summary;

use workspace_summary::WorkspaceSummary;

pyro_plugin_sdk::export!(WorkspaceSummary);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_contract_says() {
        let expected = ["workspace_summary(workspace_id*, commands=10)"];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
