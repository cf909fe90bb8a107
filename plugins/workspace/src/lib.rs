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
