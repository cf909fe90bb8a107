//! `workspace_disk_read`.

use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Stopped workspace
    pub workspace_id: String,
    /// File on the disk; relative to /workspace
    pub path: String,
    /// Bytes returned at most
    #[serde(default = "max_bytes")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_bytes: u32,
}

fn max_bytes() -> u32 {
    65_536
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub path: String,
    /// Of the whole file
    pub size_bytes: u64,
    pub max_bytes: u32,
    /// Bytes that are no UTF-8 are replaced
    pub content: String,
    pub truncated: bool,
}

/// Reads a file of the disk of a stopped workspace.
pub struct DiskRead;

impl Tool for DiskRead {
    const NAME: &'static str = "workspace_disk_read";
    const DESCRIPTION: &'static str = "Reads a file on a stopped workspace's disk.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "disk", "read"],
            positionals: vec!["workspace_id", "path"],
            human: Some(Human {
                text: Some("content"),
                summary: Some("{path}: {size_bytes} bytes, truncated: {truncated}"),
                content_only: true,
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let path = super::path(&arguments.path)?;
        let image = super::image(&arguments.workspace_id, Self::NAME)?;
        let most = usize::try_from(arguments.max_bytes).unwrap_or(usize::MAX);
        let content = image.read(&path, most).map_err(super::failed)?;
        Ok(Output {
            workspace_id: arguments.workspace_id,
            path,
            size_bytes: content.size,
            max_bytes: arguments.max_bytes,
            truncated: content.size > content.bytes.len() as u64,
            content: String::from_utf8_lossy(&content.bytes).into_owned(),
        })
    }
}
