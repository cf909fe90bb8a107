//! The snapshot tools: saved trees of a workspace, used by `workspace_reset`.

mod create;
mod delete;
mod list;
mod shape;

use create::SnapshotCreate;
use delete::SnapshotDelete;
use list::SnapshotList;

pyro_plugin_sdk::export!(SnapshotCreate, SnapshotList, SnapshotDelete);
