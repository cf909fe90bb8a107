//! The workspace tools: a workspace's life, its tree and its history.

mod shape;
mod tools;

use tools::create::WorkspaceCreate;
use tools::delete::WorkspaceDelete;
use tools::diff::WorkspaceDiff;
use tools::export::WorkspaceExport;
use tools::list::WorkspaceList;
use tools::logs::WorkspaceLogs;
use tools::reset::WorkspaceReset;
use tools::start::WorkspaceStart;
use tools::status::WorkspaceStatus;
use tools::stop::WorkspaceStop;
use tools::sync_push::WorkspaceSyncPush;
use tools::update::WorkspaceUpdate;

pyro_plugin_sdk::export!(
    WorkspaceCreate,
    WorkspaceList,
    WorkspaceUpdate,
    WorkspaceStatus,
    WorkspaceStart,
    WorkspaceStop,
    WorkspaceReset,
    WorkspaceDelete,
    WorkspaceLogs,
    WorkspaceSyncPush,
    WorkspaceExport,
    WorkspaceDiff,
);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_contract_says() {
        let expected = [
            "workspace_create(environment*, vcpu_count=1, mem_mib=1024, ttl_seconds=600, seed_path, name, labels={})",
            "workspace_list()",
            "workspace_update(workspace_id*, name, clear_name=false, labels={}, clear_labels=[], ttl_seconds)",
            "workspace_status(workspace_id*)",
            "workspace_start(workspace_id*)",
            "workspace_stop(workspace_id*)",
            "workspace_reset(workspace_id*, snapshot=\"baseline\")",
            "workspace_delete(workspace_id*)",
            "workspace_logs(workspace_id*, after=0, limit=100)",
            "workspace_sync_push(workspace_id*, source_path*, dest=\"/workspace\")",
            "workspace_export(workspace_id*, path*, output_path*)",
            "workspace_diff(workspace_id*)",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
