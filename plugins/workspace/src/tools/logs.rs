//! `workspace_logs`.

use pyro_plugin_guest::open;
use pyro_plugin_sdk::host::blobs::Blob;
use pyro_plugin_sdk::{Blocks, Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::shape::Command;

/// Bytes shown of all outputs together; each stream gets an equal share.
const MAX_BYTES: u64 = 256 * 1024;
/// Bytes shown of one stream at most.
const MAX_STREAM: u64 = 32 * 1024;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Sequence to go on after
    #[serde(default)]
    pub after: u64,
    /// Entries at most
    #[serde(default = "limit")]
    #[schemars(range(min = 1, max = 500))]
    pub limit: u32,
}

fn limit() -> u32 {
    100
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub count: usize,
    /// Oldest first
    pub entries: Vec<Logged>,
    /// More entries follow the last
    pub truncated: bool,
}

/// A command and what was kept of its output.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Logged {
    #[serde(flatten)]
    pub command: Command,
    /// Unix seconds
    pub recorded_at: f64,
    pub stdout: String,
    pub stderr: String,
    /// Bytes kept of each stream
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
    /// The middle of stdout or stderr is left out
    pub truncated: bool,
}

/// Reads the history.
pub struct WorkspaceLogs;

impl Tool for WorkspaceLogs {
    const NAME: &'static str = "workspace_logs";
    const DESCRIPTION: &'static str = "Lists the commands run in a workspace with their output.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "logs"],
            positionals: vec!["workspace_id"],
            human: Some(Human {
                blocks: Some(Blocks {
                    rows: "entries",
                    head: "# {sequence}, exit code {exit_code}, {duration_ms} ms, in {cwd}: {command}",
                    text: vec!["stdout", "stderr"],
                }),
                summary: Some("{count} commands"),
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let workspace = open(&arguments.workspace_id)?;
        let mut records = workspace.commands(arguments.after, arguments.limit + 1)?;
        let wanted = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
        let truncated = records.len() > wanted;
        records.truncate(wanted);
        let share = MAX_STREAM.min(MAX_BYTES / (2 * records.len() as u64).max(1));
        let mut entries = Vec::with_capacity(records.len());
        for record in records {
            let (stdout, stderr) = workspace.command_output(record.sequence)?;
            let (out, err) = (shown(&stdout, share), shown(&stderr, share));
            entries.push(Logged {
                recorded_at: record.recorded_at,
                command: record.into(),
                truncated: out.1 || err.1,
                stdout: out.0,
                stderr: err.0,
                stdout_bytes: stdout.size(),
                stderr_bytes: stderr.size(),
            });
        }
        Ok(Output { workspace_id: arguments.workspace_id, count: entries.len(), entries, truncated })
    }
}

/// The text of a stream, its head and tail when it is long, and whether it was.
fn shown(blob: &Blob, share: u64) -> (String, bool) {
    let size = blob.size();
    let length = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    if size <= share {
        return (String::from_utf8_lossy(&blob.read(0, length(size))).into_owned(), false);
    }
    let half = share / 2;
    (join(&blob.read(0, length(half)), &blob.read(size - half, length(half)), size - 2 * half), true)
}

fn join(head: &[u8], tail: &[u8], missing: u64) -> String {
    // Characters that the cut split are not the command's doing.
    let cut =
        head.utf8_chunks().last().filter(|chunk| !chunk.invalid().is_empty()).map_or(0, |chunk| chunk.invalid().len());
    let head = head.get(..head.len() - cut.min(3)).unwrap_or_default();
    let skip = tail.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
    let tail = tail.get(skip..).unwrap_or_default();
    let missing = missing + cut.min(3) as u64 + skip as u64;
    format!("{}\n[... {missing} bytes left out ...]\n{}", String::from_utf8_lossy(head), String::from_utf8_lossy(tail))
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn the_gap_is_named_and_splits_no_character() {
        assert_eq!(join(b"ab", b"yz", 7), "ab\n[... 7 bytes left out ...]\nyz");
        let e = "é".as_bytes();
        assert_eq!(join(&[b"a", &e[..1]].concat(), &[&e[1..], b"z"].concat(), 5), "a\n[... 7 bytes left out ...]\nz");
    }
}
