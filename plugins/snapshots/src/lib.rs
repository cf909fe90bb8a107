//! The snapshot tools: saved trees of a workspace, used by `workspace_reset`.

mod create;
mod delete;
mod list;
mod shape;

use create::SnapshotCreate;
use delete::SnapshotDelete;
use list::SnapshotList;

pyro_plugin_sdk::export!(SnapshotCreate, SnapshotList, SnapshotDelete);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_contract_says() {
        let expected = [
            "snapshot_create(workspace_id*, snapshot_name*)",
            "snapshot_list(workspace_id*)",
            "snapshot_delete(workspace_id*, snapshot_name*)",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
