//! `workspace_diff`.

use pyro_plugin_guest::{Guest, OneWorkspace, reader};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use pyro_tree::{DiffLimits, Tree, TreeDiff, TreeError, TreeLimits, WORKSPACE, compare};
use serde::Serialize;

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub changed: bool,
    pub summary: Summary,
    /// Sorted by path
    pub entries: Vec<Entry>,
    /// All text patches, applicable with git apply
    pub patch: String,
    /// Entries or patches were left out
    pub truncated: bool,
}

#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Summary {
    pub total: usize,
    pub added: usize,
    pub modified: usize,
    pub deleted: usize,
    pub type_changed: usize,
    pub text_patched: usize,
    pub non_text: usize,
}

/// A path that differs from the baseline.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Entry {
    pub path: String,
    /// added, modified, deleted or type_changed
    pub status: String,
    /// file, directory or symlink
    pub artifact_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_patch: Option<String>,
    /// Why a file has no text_patch: binary, name, too_large or limit
    #[serde(skip_serializing_if = "Option::is_none")]
    pub omitted: Option<String>,
}

/// Compares a workspace with what it began as.
pub struct WorkspaceDiff;

impl Tool for WorkspaceDiff {
    const NAME: &'static str = "workspace_diff";
    const DESCRIPTION: &'static str = "Shows what changed in /workspace since it was created.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneWorkspace;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "diff"],
            positionals: vec!["workspace_id"],
            human: Some(Human {
                text: Some("patch"),
                summary: Some(
                    "{summary.total} changed: {summary.added} added, {summary.modified} modified, {summary.deleted} deleted, {summary.type_changed} of another type; {summary.non_text} not shown as text",
                ),
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let limits = TreeLimits::default();
        let before = Tree::index(reader(guest.workspace().read_snapshot("baseline")?), &limits).map_err(failed)?;
        let after = Tree::index(guest.archive(WORKSPACE)?, &limits).map_err(failed)?;
        let diff = compare(&before, &after, &DiffLimits::default()).map_err(failed)?;
        Ok(output(arguments.workspace_id, diff))
    }
}

fn failed(error: TreeError) -> ToolError {
    let code = match error {
        TreeError::TooManyEntries(_) | TreeError::NamesTooLong(_) => "limit_exceeded",
        _ => "invalid_archive",
    };
    ToolError::new(code, format!("the workspace's tree cannot be compared: {error}"))
}

fn output(workspace_id: String, diff: TreeDiff) -> Output {
    let summary = diff.summary;
    Output {
        workspace_id,
        changed: summary.total > 0,
        summary: Summary {
            total: summary.total,
            added: summary.added,
            modified: summary.modified,
            deleted: summary.deleted,
            type_changed: summary.type_changed,
            text_patched: summary.text_patched,
            non_text: summary.non_text,
        },
        patch: diff.patch(),
        truncated: diff.truncated,
        entries: diff
            .entries
            .into_iter()
            .map(|entry| Entry {
                path: format!("{WORKSPACE}/{}", entry.path),
                status: entry.status.as_str().to_owned(),
                artifact_type: entry.artifact_type.to_owned(),
                text_patch: entry.text_patch,
                omitted: entry.omitted.map(|omitted| omitted.as_str().to_owned()),
            })
            .collect(),
    }
}
