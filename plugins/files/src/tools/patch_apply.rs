//! `workspace_patch_apply`.

use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Table, Tool, ToolError};
use pyro_tree::WORKSPACE;
use pyro_unified_diff::{ApplyOptions, Change, Current, Patch, PlanError, PlanErrorKind, Status, plan};
use serde::{Deserialize, Serialize};

use pyro_plugin_guest::{Guest, Kind, MAX_TEXT, Write, invalid, without_conflict};

/// Errors of files told in one message.
const MAX_SHOWN: usize = 5;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Unified diff (git headers allowed), paths relative to /workspace, up to 1 MiB
    pub patch: String,
    /// Outer context lines that may differ
    #[serde(default)]
    #[schemars(range(max = 2))]
    pub fuzz: u8,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub changed: bool,
    pub summary: Summary,
    /// Sorted by path
    pub entries: Vec<Applied>,
    pub patch: String,
    pub execution_mode: String,
}

#[derive(Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Summary {
    pub total: u64,
    pub added: u64,
    pub modified: u64,
    pub deleted: u64,
}

#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Applied {
    pub path: String,
    /// added, modified or deleted
    pub status: String,
    /// Lines each hunk was found away from its place, when any was
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offsets: Option<Vec<i64>>,
    /// Context lines ignored, when any were
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuzz: Option<u8>,
}

/// Applies a whole patch or, when anything does not fit, nothing of it.
pub struct PatchApply;

impl Tool for PatchApply {
    const NAME: &'static str = "workspace_patch_apply";
    const DESCRIPTION: &'static str = "Applies a unified diff as a whole, or changes nothing.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "patch", "apply"],
            positionals: vec!["workspace_id"],
            flags: vec![
                Flag::plain("patch", "patch"),
                Flag::file("patch-file", "patch").help("A host file that holds the patch, - for standard input"),
                Flag::plain("fuzz", "fuzz"),
            ],
            human: Some(Human {
                table: Some(Table { rows: "entries", columns: vec!["status", "path"] }),
                summary: Some("{summary.total} files changed"),
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        if arguments.patch.len() as u64 > MAX_TEXT {
            return Err(invalid(format!("patch exceeds the maximum of {MAX_TEXT} bytes")));
        }
        let patch = Patch::parse(arguments.patch.as_bytes(), Some(WORKSPACE))
            .map_err(|error| invalid(format!("invalid patch: {error}")))?;
        let guest = Guest::open(&arguments.workspace_id, "workspace_patch_apply")?;
        let options = ApplyOptions { fuzz: arguments.fuzz, ..ApplyOptions::default() };
        let (summary, entries) = without_conflict(|| {
            let changes = plan(&patch, &options, |path| current(&guest, path)).map_err(|errors| refused(&errors))?;
            if let Some(change) =
                changes.iter().find(|c| c.content.as_ref().is_some_and(|text| text.len() as u64 > MAX_TEXT))
            {
                return Err(invalid(format!("{} would exceed the maximum of {MAX_TEXT} bytes", change.path)));
            }
            let report = report(&changes);
            guest.apply(
                changes
                    .into_iter()
                    .map(|change| Write {
                        path: format!("{WORKSPACE}/{}", change.path),
                        content: change.content,
                        mode: change.mode,
                    })
                    .collect(),
            )?;
            Ok(report)
        })?;
        Ok(Output {
            workspace_id: arguments.workspace_id,
            changed: summary.total > 0,
            summary,
            entries,
            patch: arguments.patch,
            execution_mode: guest.execution_mode(),
        })
    }
}

fn current(guest: &Guest, path: &str) -> Result<Current, String> {
    let path = format!("{WORKSPACE}/{path}");
    let Some(entry) = guest.find(&path).map_err(|error| error.message)? else {
        return Ok(Current::Missing);
    };
    match entry.kind {
        Kind::File => guest.text(&path).map(|text| Current::File(text.into_bytes())).map_err(|error| error.message),
        Kind::Directory => Ok(Current::Other("a directory".to_owned())),
        Kind::Symlink => Ok(Current::Other("a symlink".to_owned())),
        Kind::Other => Ok(Current::Other("a special file".to_owned())),
    }
}

fn report(changes: &[Change]) -> (Summary, Vec<Applied>) {
    let mut summary = Summary { total: changes.len() as u64, ..Summary::default() };
    let entries = changes
        .iter()
        .map(|change| {
            match change.status {
                Status::Added => summary.added += 1,
                Status::Modified => summary.modified += 1,
                Status::Deleted => summary.deleted += 1,
            }
            let moved = change.hunks.iter().any(|hunk| hunk.offset != 0);
            let fuzz = change.hunks.iter().map(|hunk| hunk.fuzz).max().filter(|fuzz| *fuzz > 0);
            Applied {
                path: format!("{WORKSPACE}/{}", change.path),
                status: change.status.as_str().to_owned(),
                offsets: moved.then(|| change.hunks.iter().map(|hunk| hunk.offset).collect()),
                fuzz,
            }
        })
        .collect();
    (summary, entries)
}

/// All that is wrong, with the contract's words for what concerns a whole path.
fn refused(errors: &[PlanError]) -> ToolError {
    let told: Vec<String> = errors
        .iter()
        .take(MAX_SHOWN)
        .map(|error| match &error.kind {
            PlanErrorKind::AddExisting => format!("workspace patch cannot add an existing path: {}", error.path),
            PlanErrorKind::ModifyMissing => format!("workspace patch cannot modify a missing path: {}", error.path),
            PlanErrorKind::DeleteMissing => format!("workspace patch cannot delete a missing path: {}", error.path),
            _ => error.to_string(),
        })
        .collect();
    let mut message = told.join("; ");
    if errors.len() > MAX_SHOWN {
        message.push_str(&format!("; and {} more files", errors.len() - MAX_SHOWN));
    }
    ToolError::new("invalid_argument", message)
        .with_hint("nothing was changed; read the files again and make the patch from what they have now")
}

#[cfg(test)]
mod tests {
    use pyro_unified_diff::HunkPlace;

    use super::*;

    #[test]
    fn what_moved_is_reported() {
        let change = |path: &str, status, hunks: &[(i64, u8)]| Change {
            path: path.into(),
            status,
            content: None,
            mode: None,
            hunks: hunks.iter().map(|(offset, fuzz)| HunkPlace { offset: *offset, fuzz: *fuzz }).collect(),
        };
        let (summary, entries) = report(&[
            change("a", Status::Added, &[(0, 0)]),
            change("b", Status::Modified, &[(0, 0), (3, 1)]),
            change("c", Status::Deleted, &[]),
        ]);
        assert_eq!(summary, Summary { total: 3, added: 1, modified: 1, deleted: 1 });
        assert_eq!((&entries[0].offsets, entries[0].fuzz), (&None, None));
        assert_eq!((entries[1].offsets.as_deref(), entries[1].fuzz), (Some(&[0, 3][..]), Some(1)));
        assert_eq!(entries[2].path, "/workspace/c");
    }

    #[test]
    fn errors_keep_the_contract_s_words() {
        let errors: Vec<PlanError> =
            (0..7).map(|n| PlanError { path: format!("f{n}"), kind: PlanErrorKind::AddExisting }).collect();
        let error = refused(&errors);
        assert!(error.message.starts_with("workspace patch cannot add an existing path: f0; "), "{}", error.message);
        assert!(error.message.ends_with("; and 2 more files"));
    }
}
