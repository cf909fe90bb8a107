//! What is known of a record: its row, its history, its saved trees and its secrets.
//!
//! Only data. `store` keeps it, and what may follow what is decided by those who change it.

use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    /// A workspace.
    Workspace,
    /// A machine of the `vm_*` tools.
    Machine,
}

/// Where a record is in its life, to an observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordState {
    /// Being made: not there yet to an observer.
    Creating,
    /// Made, never booted.
    Created,
    /// Its machine runs, unless the machine's lock says otherwise.
    Started,
    /// No machine; the disk is kept.
    Stopped,
    /// Being removed: no longer there to an observer.
    Deleting,
}

/// A change in progress, written before its first effect, so that whoever finds
/// it after a crash can undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Intent {
    /// Booting a machine on the record's disk.
    Start {
        /// The machine.
        machine_id: String,
    },
    /// Making a new disk and a machine on it, to take the place of the old.
    Reset {
        /// The machine.
        machine_id: String,
        /// File name of the new disk.
        disk: String,
    },
    /// Adding or removing files of the record's directory; those that no row names are rubbish.
    Files,
}

impl Intent {
    /// Returns the machine that was or was to be made.
    pub fn machine_id(&self) -> Option<&str> {
        match self {
            Self::Start { machine_id } | Self::Reset { machine_id, .. } => Some(machine_id),
            Self::Files => None,
        }
    }
}

/// What a workspace's tree began as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// `empty`, `directory` or `tar_archive`.
    pub mode: String,
    /// The host path it was made from.
    pub source: Option<String>,
    /// Entries of the tree.
    pub entry_count: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A workspace or a lifecycle machine, as an observer sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordView {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// What it is.
    pub kind: RecordKind,
    /// Where it is in its life.
    pub state: RecordState,
    /// A person's name for it.
    pub name: Option<String>,
    /// Sorted by key.
    pub labels: Vec<(String, String)>,
    /// Name of the environment.
    pub environment: String,
    /// Its version at creation.
    pub environment_version: String,
    /// vCPUs.
    pub vcpu_count: u32,
    /// Guest memory, MiB.
    pub mem_mib: u32,
    /// Lifetime that was asked for last, seconds.
    pub ttl_seconds: u64,
    /// Unix seconds.
    pub created_at: f64,
    /// Unix seconds.
    pub last_activity_at: f64,
    /// Unix seconds.
    pub expires_at: f64,
    /// How commands run.
    pub execution_mode: String,
    /// What its tree began as.
    pub seed: Seed,
    /// Resets so far.
    pub reset_count: u64,
    /// Unix seconds.
    pub last_reset_at: Option<f64>,
}

/// A whole row.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What an observer sees of it.
    pub view: RecordView,
    /// A change in progress, or one that a crash cut off.
    pub intent: Option<Intent>,
    /// The machine that runs it, when it is started.
    pub machine_id: Option<String>,
    /// File name of its disk in its directory.
    pub disk: Option<String>,
}

impl Deref for Record {
    type Target = RecordView;

    fn deref(&self) -> &RecordView {
        &self.view
    }
}

impl DerefMut for Record {
    fn deref_mut(&mut self) -> &mut RecordView {
        &mut self.view
    }
}

/// One command of a workspace's history, without its output.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandRow {
    /// 1 for the first.
    pub sequence: u64,
    /// The command line.
    pub command: String,
    /// Where it ran.
    pub cwd: String,
    /// Its exit code; none when a signal ended it.
    pub exit_code: Option<i32>,
    /// How long it took.
    pub duration_ms: u64,
    /// How it ran.
    pub execution_mode: String,
    /// Unix seconds.
    pub recorded_at: f64,
}

/// A command to record.
#[derive(Clone, Debug)]
pub struct NewCommand<'a> {
    /// The command line.
    pub command: &'a str,
    /// Where it ran.
    pub cwd: &'a str,
    /// Its exit code; none when a signal ended it.
    pub exit_code: Option<i32>,
    /// How long it took.
    pub duration_ms: u64,
    /// How it ran.
    pub execution_mode: &'a str,
    /// Unix seconds.
    pub recorded_at: f64,
    /// What was kept of its output.
    pub stdout: &'a [u8],
    /// What was kept of its error output.
    pub stderr: &'a [u8],
}

/// A saved tree. The one named `baseline` is the tree that a workspace began
/// with.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotRow {
    /// Its name.
    pub name: String,
    /// File name of the tar in the workspace's directory.
    pub file: String,
    /// Unix seconds.
    pub created_at: f64,
    /// Entries of the tree.
    pub entry_count: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A secret, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRow {
    /// Its name.
    pub name: String,
    /// `literal` or `file`.
    pub source_kind: String,
    /// File name of its value in the workspace's directory.
    pub(crate) file: String,
}

/// A workspace that is being made, for tests to begin with.
#[cfg(test)]
pub(super) fn sample(id: &str) -> Record {
    Record {
        view: RecordView {
            id: id.to_owned(),
            kind: RecordKind::Workspace,
            state: RecordState::Creating,
            name: Some("n".to_owned()),
            labels: vec![("a".to_owned(), "b".to_owned())],
            environment: "debian:12".to_owned(),
            environment_version: "1.0.0".to_owned(),
            vcpu_count: 1,
            mem_mib: 1024,
            ttl_seconds: 600,
            created_at: 1.5,
            last_activity_at: 1.5,
            expires_at: 601.5,
            execution_mode: "pending".to_owned(),
            seed: Seed { mode: "empty".to_owned(), ..Seed::default() },
            reset_count: 0,
            last_reset_at: None,
        },
        intent: None,
        machine_id: None,
        disk: None,
    }
}
