//! How a workspace looks in results, and what its name and labels may be.

use std::collections::BTreeMap;

use pyro_plugin_guest::invalid;
use pyro_plugin_sdk::vm::workspaces::{CommandRecord, WorkspaceInfo};
use pyro_plugin_sdk::{JsonSchema, ToolError};
use pyro_tree::WORKSPACE;
use serde::Serialize;

/// Characters of a name or of a label's value.
const MAX_NAME: usize = 120;

/// A workspace.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Workspace {
    pub workspace_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub environment: String,
    pub environment_version: String,
    pub vcpu_count: u32,
    pub mem_mib: u32,
    pub ttl_seconds: u32,
    /// Unix seconds, as all times
    pub created_at: f64,
    pub last_activity_at: f64,
    pub expires_at: f64,
    /// started or stopped
    pub state: String,
    pub execution_mode: String,
    pub workspace_path: String,
    pub workspace_seed: Seed,
    pub command_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_command: Option<Command>,
    pub reset_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reset_at: Option<f64>,
    pub metadata: BTreeMap<String, String>,
}

/// What the tree began as.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Seed {
    /// empty, directory or tar_archive
    pub mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed_path: Option<String>,
    pub destination: String,
    pub entry_count: u64,
    pub bytes_written: u64,
}

/// A command of the history.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Command {
    pub sequence: u64,
    pub command: String,
    pub cwd: String,
    /// Absent when a signal ended it
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub duration_ms: u64,
    pub execution_mode: String,
}

impl From<CommandRecord> for Command {
    fn from(record: CommandRecord) -> Command {
        Command {
            sequence: record.sequence,
            command: record.command,
            cwd: record.cwd,
            exit_code: record.exit_code,
            duration_ms: record.duration_ms,
            execution_mode: record.execution_mode,
        }
    }
}

impl From<WorkspaceInfo> for Workspace {
    fn from(info: WorkspaceInfo) -> Workspace {
        Workspace {
            workspace_id: info.id,
            name: info.name,
            labels: info.labels.into_iter().collect(),
            environment: info.environment,
            environment_version: info.environment_version,
            vcpu_count: info.vcpu_count,
            mem_mib: info.mem_mib,
            ttl_seconds: info.ttl_seconds,
            created_at: info.created_at,
            last_activity_at: info.last_activity_at,
            expires_at: info.expires_at,
            state: info.state,
            execution_mode: info.execution_mode,
            workspace_path: WORKSPACE.to_owned(),
            workspace_seed: Seed {
                mode: info.seed_mode,
                seed_path: info.seed_source,
                destination: WORKSPACE.to_owned(),
                entry_count: info.seed_entry_count,
                bytes_written: info.seed_bytes,
            },
            command_count: info.command_count,
            last_command: info.last_command.map(Command::from),
            reset_count: info.reset_count,
            last_reset_at: info.last_reset_at,
            // Secrets are told by their own group.
            metadata: info.meta.into_iter().filter(|(key, _)| key != "secrets").collect(),
        }
    }
}

/// Returns a name as it is kept.
pub fn name(name: &str) -> Result<String, ToolError> {
    text("name", name)
}

/// Returns labels as they are kept, sorted by key.
pub fn labels(labels: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, ToolError> {
    labels.iter().map(|(key, value)| Ok((label_key(key)?, text(&format!("label {key}"), value)?))).collect()
}

/// Returns a label's key as it is kept.
pub fn label_key(key: &str) -> Result<String, ToolError> {
    pyro_plugin_guest::name("label key", key)
}

fn text(what: &str, text: &str) -> Result<String, ToolError> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > MAX_NAME || text.contains(['\r', '\n']) {
        return Err(invalid(format!("{what} must have 1 to {MAX_NAME} characters on one line")));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_trimmed_and_checked() {
        assert_eq!(name(" my work ").ok().as_deref(), Some("my work"));
        for bad in ["", "  ", "a\nb", &"ä".repeat(121)] {
            assert!(name(bad).is_err());
        }
        let of = |key: &str, value: &str| labels(&BTreeMap::from([(key.to_owned(), value.to_owned())]));
        assert_eq!(of("team", " x ").ok(), Some(vec![("team".to_owned(), "x".to_owned())]));
        assert!(of("te am", "x").is_err() && of("", "x").is_err() && of("a", "").is_err());
    }
}
