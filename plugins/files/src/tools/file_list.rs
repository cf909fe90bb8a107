//! `workspace_file_list`.

use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use pyro_plugin_guest::{Artifact, Guest, Kind, workspace_root};

/// Entries of one listing; the result says when there are more.
const MAX_ENTRIES: u32 = 5_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Directory or file in /workspace
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
    pub execution_mode: String,
}

/// Lists a directory, or names one file.
pub struct FileList;

impl Tool for FileList {
    const NAME: &'static str = "workspace_file_list";
    const DESCRIPTION: &'static str = "Lists files of a started workspace.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "file", "list"],
            positionals: vec!["workspace_id", "path"],
            human: Some(Human::table("entries", &["artifact_type", "size_bytes", "path", "link_target"])),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, "workspace_file_list")?;
        let path = pyro_plugin_guest::path(&arguments.path)?;
        let top = guest.stat(&path)?;
        let (entries, truncated) = if top.kind == Kind::Directory {
            guest.list(&path, arguments.recursive, MAX_ENTRIES)?
        } else {
            (vec![top], false)
        };
        Ok(Output {
            workspace_id: arguments.workspace_id,
            path,
            recursive: arguments.recursive,
            entries: entries.into_iter().filter_map(Artifact::of).collect(),
            truncated,
            execution_mode: guest.execution_mode(),
        })
    }
}
