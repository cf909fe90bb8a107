//! `workspace_sync_push`.

use pyro_plugin_guest::{Guest, path, workspace_root};
use pyro_plugin_sdk::vm::{files, host_files};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use pyro_tree::WORKSPACE;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Host directory or tar
    pub source_path: String,
    /// Directory in /workspace
    #[serde(default = "workspace_root")]
    pub dest: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub execution_mode: String,
    pub workspace_sync: Sync,
}

/// What was copied.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Sync {
    /// directory or tar_archive
    pub mode: String,
    pub source_path: String,
    pub destination: String,
    pub entry_count: u64,
    pub bytes_written: u64,
}

/// Copies host files over a workspace's.
pub struct WorkspaceSyncPush;

impl Tool for WorkspaceSyncPush {
    const NAME: &'static str = "workspace_sync_push";
    const DESCRIPTION: &'static str = "Copies host files over a started workspace's; deletes none.";
    const HINTS: Hints =
        Hints { destructive: Some(true), idempotent: Some(true), open_world: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "sync", "push"],
            positionals: vec!["workspace_id", "source_path"],
            human: Some(Human::summary(
                "{workspace_sync.entry_count} entries, {workspace_sync.bytes_written} bytes copied to {workspace_sync.destination}",
            )),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let destination = path(&arguments.dest)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let archive = host_files::read_archive(&arguments.source_path)?;
        let (entry_count, bytes_written) = files::extract(guest.machine(), WORKSPACE, &destination, &archive.tar)?;
        Ok(Output {
            workspace_id: arguments.workspace_id,
            execution_mode: guest.execution_mode(),
            workspace_sync: Sync {
                mode: archive.mode,
                source_path: archive.source.unwrap_or(arguments.source_path),
                destination,
                entry_count,
                bytes_written,
            },
        })
    }
}
