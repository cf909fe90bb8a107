//! `workspace_summary`.

use pyro_plugin_guest::{Guest, open, reader};
use pyro_plugin_sdk::vm::workspaces::CommandRecord;
use pyro_plugin_sdk::vm::{services, terminals};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Table, Tool, ToolError};
use pyro_tree::{DiffLimits, Tree, TreeDiff, TreeError, TreeLimits, WORKSPACE, compare};
use serde::{Deserialize, Serialize};

/// Changed paths that are named.
const MAX_PATHS: usize = 50;
/// Commands read of the history to find the last ones.
const PAGE: u32 = 500;
/// Characters shown of a command.
const MAX_COMMAND: usize = 200;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Commands shown
    #[serde(default = "commands")]
    #[schemars(range(max = 100))]
    pub commands: u32,
}

fn commands() -> u32 {
    10
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    /// started or stopped
    pub state: String,
    /// Unix seconds
    pub expires_at: f64,
    pub reset_count: u64,
    pub command_count: u64,
    /// The last commands, oldest first
    pub commands: Vec<Command>,
    /// Absent while stopped
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
    /// By handle
    pub background: Vec<Running>,
    pub services: Vec<Running>,
    pub shells: Vec<Running>,
    pub snapshots: Vec<String>,
}

/// A command of the history.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Command {
    pub sequence: u64,
    pub command: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub duration_ms: u64,
}

/// What differs from the baseline.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Changes {
    pub total: usize,
    pub added: usize,
    pub modified: usize,
    pub deleted: usize,
    pub type_changed: usize,
    /// As `modified src/a.rs`
    pub paths: Vec<String>,
    /// Paths are left out
    pub truncated: bool,
}

/// A background command, a service or a shell.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Running {
    pub id: String,
    pub running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// Sums a workspace up.
pub struct WorkspaceSummary;

impl Tool for WorkspaceSummary {
    const NAME: &'static str = "workspace_summary";
    const DESCRIPTION: &'static str = "Sums up what changed, ran and runs in a workspace.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "summary"],
            positionals: vec!["workspace_id"],
            human: Some(Human {
                table: Some(Table {
                    rows: "commands",
                    columns: vec!["sequence", "exit_code", "duration_ms", "command"],
                }),
                fields: vec![
                    "workspace_id",
                    "state",
                    "expires_at",
                    "command_count",
                    "reset_count",
                    "changes.total",
                    "changes.paths",
                    "snapshots",
                ],
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let workspace = open(&arguments.workspace_id)?;
        let info = workspace.info()?;
        let last = info.last_command.as_ref().map_or(0, |command| command.sequence);
        let first = last.saturating_sub(u64::from(arguments.commands));
        let history = workspace.commands(first, PAGE)?;
        let snapshots = workspace.snapshots()?.into_iter().map(|snapshot| snapshot.name).collect();
        let mut output = Output {
            workspace_id: arguments.workspace_id,
            state: info.state,
            expires_at: info.expires_at,
            reset_count: info.reset_count,
            command_count: info.command_count,
            commands: history.into_iter().map(command).collect(),
            changes: None,
            background: Vec::new(),
            services: Vec::new(),
            shells: Vec::new(),
            snapshots,
        };
        if output.state == "started" {
            let guest = Guest::open(&output.workspace_id, Self::NAME)?;
            output.changes = Some(changed(&guest)?);
            for service in services::list(guest.machine())? {
                let (list, id) = match service.name.strip_prefix('@') {
                    Some(handle) => (&mut output.background, handle.to_owned()),
                    None => (&mut output.services, service.name),
                };
                list.push(Running { id, running: service.running, exit_code: service.exit_code });
            }
            output.shells = terminals::list(guest.machine())?
                .into_iter()
                .map(|shell| Running { id: shell.id, running: shell.state == "running", exit_code: shell.exit_code })
                .collect();
        }
        Ok(output)
    }
}

fn command(record: CommandRecord) -> Command {
    let mut command: String = record.command.chars().take(MAX_COMMAND).collect();
    if command.len() < record.command.len() {
        command.push('…');
    }
    Command { sequence: record.sequence, command, exit_code: record.exit_code, duration_ms: record.duration_ms }
}

fn changed(guest: &Guest) -> Result<Changes, ToolError> {
    let failed = |error: TreeError| {
        let refused = ToolError::new("invalid_archive", format!("the workspace's tree cannot be compared: {error}"));
        match error.hint() {
            Some(hint) => refused.with_hint(hint),
            None => refused,
        }
    };
    let limits = TreeLimits::default();
    let before = Tree::index(reader(guest.workspace().read_snapshot("baseline")?), &limits).map_err(failed)?;
    let after = Tree::index(guest.archive(WORKSPACE)?, &limits).map_err(failed)?;
    // Only which paths: no text is made.
    let names = DiffLimits { patch_bytes: 0, entries: MAX_PATHS, file_bytes: 0 };
    Ok(changes(&compare(&before, &after, &names).map_err(failed)?))
}

fn changes(diff: &TreeDiff) -> Changes {
    let summary = diff.summary;
    Changes {
        total: summary.total,
        added: summary.added,
        modified: summary.modified,
        deleted: summary.deleted,
        type_changed: summary.type_changed,
        paths: diff.entries.iter().map(|entry| format!("{} {}", entry.status.as_str(), entry.path)).collect(),
        truncated: summary.total > diff.entries.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut() {
        let record = |text: &str| CommandRecord {
            sequence: 1,
            command: text.to_owned(),
            cwd: String::new(),
            exit_code: Some(0),
            duration_ms: 1,
            execution_mode: String::new(),
            recorded_at: 0.0,
            meta: Vec::new(),
        };
        assert_eq!(command(record("ls")).command, "ls");
        let cut = command(record(&"ä".repeat(300))).command;
        assert_eq!((cut.chars().count(), cut.ends_with('…')), (MAX_COMMAND + 1, true));
    }
}
