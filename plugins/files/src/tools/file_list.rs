//! `workspace_file_list`.

use pyro_plugin_sdk::{Call, Cli, Hints, JsonSchema, Tool, ToolError};
use pyro_tree::WORKSPACE;
use serde::{Deserialize, Serialize};

use pyro_plugin_guest::{Entry, Guest, Kind};

/// Entries of one listing; the result says when there are more.
const MAX_ENTRIES: u32 = 5_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Directory or file in /workspace
    #[serde(default = "workspace")]
    pub path: String,
    /// Whole tree
    #[serde(default)]
    pub recursive: bool,
}

fn workspace() -> String {
    WORKSPACE.to_owned()
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub path: String,
    pub recursive: bool,
    /// Sorted by path
    pub entries: Vec<Listed>,
    /// More entries exist
    pub truncated: bool,
    pub execution_mode: String,
}

/// A path of the workspace.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Listed {
    pub path: String,
    /// file, directory or symlink
    pub artifact_type: String,
    /// 0 for a directory, the target's length for a symlink
    pub size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
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
            entries: entries.into_iter().filter_map(listed).collect(),
            truncated,
            execution_mode: guest.execution_mode(),
        })
    }
}

/// Devices, sockets and pipes have no place in the result.
fn listed(entry: Entry) -> Option<Listed> {
    let (artifact_type, size_bytes) = match entry.kind {
        Kind::File => ("file", entry.size),
        Kind::Directory => ("directory", 0),
        Kind::Symlink => ("symlink", entry.link_target.as_ref().map_or(entry.size, |target| target.len() as u64)),
        Kind::Other => return None,
    };
    Some(Listed {
        path: entry.path,
        artifact_type: artifact_type.to_owned(),
        size_bytes,
        link_target: entry.link_target,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, size: u64, link_target: Option<&str>) -> Entry {
        Entry {
            path: "/workspace/x".into(),
            kind,
            size,
            mode: 0o644,
            mtime_ms: 0,
            link_target: link_target.map(str::to_owned),
        }
    }

    #[test]
    fn sizes_follow_the_kind() {
        let size = |entry| listed(entry).map(|listed| (listed.artifact_type, listed.size_bytes));
        assert_eq!(size(entry(Kind::File, 7, None)), Some(("file".into(), 7)));
        assert_eq!(size(entry(Kind::Directory, 4096, None)), Some(("directory".into(), 0)));
        assert_eq!(size(entry(Kind::Symlink, 0, Some("abc"))), Some(("symlink".into(), 3)));
        assert_eq!(size(entry(Kind::Other, 1, None)), None);
    }
}
