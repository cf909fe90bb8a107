//! `workspace_disk_list`.

use pyro_plugin_guest::{Artifact, workspace_root};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::image::Listed;

/// Entries of one listing; the result says when there are more.
const MAX_ENTRIES: usize = 5_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Stopped workspace
    pub workspace_id: String,
    /// Path on the disk; relative to /workspace
    #[serde(default = "workspace_root")]
    pub path: String,
    /// Whole tree
    #[serde(default)]
    pub recursive: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub path: String,
    pub recursive: bool,
    /// Sorted by path
    pub entries: Vec<Artifact>,
    /// More entries exist
    pub truncated: bool,
}

fn artifact(listed: Listed) -> Artifact {
    Artifact {
        path: listed.path,
        artifact_type: listed.kind.as_str().to_owned(),
        size_bytes: listed.size,
        link_target: listed.link_target,
    }
}

/// Lists the disk of a stopped workspace.
pub struct DiskList;

impl Tool for DiskList {
    const NAME: &'static str = "workspace_disk_list";
    const DESCRIPTION: &'static str = "Lists files on a stopped workspace's disk.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "disk", "list"],
            positionals: vec!["workspace_id", "path"],
            human: Some(Human::table("entries", &["artifact_type", "size_bytes", "path", "link_target"])),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let path = super::path(&arguments.path)?;
        let image = super::image(&arguments.workspace_id, Self::NAME)?;
        let (entries, truncated) = image.list(&path, arguments.recursive, MAX_ENTRIES).map_err(super::failed)?;
        Ok(Output {
            workspace_id: arguments.workspace_id,
            path,
            recursive: arguments.recursive,
            entries: entries.into_iter().map(artifact).collect(),
            truncated,
        })
    }
}
