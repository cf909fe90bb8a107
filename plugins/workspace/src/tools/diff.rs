//! `workspace_diff`.

use std::collections::BTreeMap;

use pyro_plugin_guest::{Guest, OneWorkspace, reader};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use pyro_tree::{DiffEntry, DiffLimits, Omitted, Tree, TreeDiff, TreeError, TreeLimits, WORKSPACE, compare};
use serde::Serialize;

/// Paths named for each reason why a patch does not have them.
const NAMED: usize = 3;

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
    /// Which changes the patch does not have, and why
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(default)]
    pub left_out: String,
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
                error_text: Some("left_out"),
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
    let refused = ToolError::new(code, format!("the workspace's tree cannot be compared: {error}"));
    match error.hint() {
        Some(hint) => refused.with_hint(hint),
        None => refused,
    }
}

fn output(workspace_id: String, diff: TreeDiff) -> Output {
    let summary = diff.summary;
    Output {
        workspace_id,
        left_out: left_out(&diff, &DiffLimits::default()),
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

/// Says in lines what a patch leaves out: whoever applies it must know that it is not everything.
fn left_out(diff: &TreeDiff, limits: &DiffLimits) -> String {
    let TreeDiff { entries, summary, .. } = diff;
    if summary.non_text == 0 {
        return String::new();
    }
    let mut lines = vec![format!("warning: the patch has not all of the {} changes", summary.total)];
    let mut reasons: BTreeMap<&str, Vec<&DiffEntry>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.text_patch.is_none()) {
        reasons.entry(entry.omitted.map_or("", Omitted::as_str)).or_default().push(entry);
    }
    for (reason, entries) in reasons {
        let why = match reason {
            "" => "empty, a directory, a symlink, or of another type than before".to_owned(),
            "too_large" => format!("larger than {} KiB", limits.file_bytes >> 10),
            "limit" => format!("more than the {} KiB of a patch", limits.patch_bytes >> 10),
            "name" => "a name that is not UTF-8".to_owned(),
            other => other.to_owned(),
        };
        lines.push(format!("  {why}: {}", named(&entries)));
    }
    let unlisted = summary.total.saturating_sub(entries.len());
    if unlisted > 0 {
        lines.push(format!("  not listed, since the list is truncated after {} changes: {unlisted}", entries.len()));
    }
    lines.push("hint: workspace_export copies a file or a directory to the host as it is\n".to_owned());
    lines.join("\n")
}

fn named(entries: &[&DiffEntry]) -> String {
    // Guests choose names, and one must not move the cursor or end the line.
    let shown = |entry: &&DiffEntry| format!("{WORKSPACE}/{}", entry.path.replace(char::is_control, "\u{fffd}"));
    let names: Vec<String> = entries.iter().take(NAMED).map(shown).collect();
    match entries.len().saturating_sub(NAMED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use pyro_tree::{DiffStatus, DiffSummary};

    use super::*;

    fn entry(path: &str, text: bool, omitted: Option<Omitted>) -> DiffEntry {
        DiffEntry {
            path: path.to_owned(),
            status: DiffStatus::Added,
            artifact_type: "file",
            text_patch: text.then(|| "patch".to_owned()),
            omitted,
        }
    }

    #[test]
    fn what_a_patch_leaves_out_is_named() {
        let whole = TreeDiff {
            entries: vec![entry("a", true, None)],
            summary: DiffSummary { total: 1, added: 1, text_patched: 1, ..DiffSummary::default() },
            truncated: false,
        };
        assert_eq!(output("w".to_owned(), whole).left_out, "");

        let mut entries = vec![entry("a", true, None), entry("e", false, None)];
        entries.push(entry("b\n\u{1b}[2J", false, Some(Omitted::Binary)));
        entries.extend((0..5).map(|n| entry(&format!("l{n}"), false, Some(Omitted::TooLarge))));
        entries.push(entry("p", false, Some(Omitted::Limit)));
        let part = TreeDiff {
            summary: DiffSummary {
                total: 1009,
                added: 1009,
                text_patched: 1,
                non_text: 1008,
                ..DiffSummary::default()
            },
            entries,
            truncated: true,
        };
        assert_eq!(
            output("w".to_owned(), part).left_out,
            "warning: the patch has not all of the 1009 changes\n  \
             empty, a directory, a symlink, or of another type than before: /workspace/e\n  \
             binary: /workspace/b\u{fffd}\u{fffd}[2J\n  \
             more than the 256 KiB of a patch: /workspace/p\n  \
             larger than 1024 KiB: /workspace/l0, /workspace/l1, /workspace/l2 and 2 more\n  \
             not listed, since the list is truncated after 9 changes: 1000\n\
             hint: workspace_export copies a file or a directory to the host as it is\n"
        );
    }
}
