//! `shell_read`.

use pyro_plugin_guest::{Guest, bytes};
use pyro_plugin_sdk::vm::terminals;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::cursor::{Share, take};
use crate::plain::render;
use crate::shape::{Shell, failed};

/// Most bytes of output in one read.
const MAX_BYTES: u32 = 1 << 20;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Shell
    pub shell_id: String,
    /// next_cursor of the last read
    #[serde(default)]
    pub cursor: u64,
    /// Characters returned at most
    #[serde(default = "max_chars")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_chars: u32,
    /// As a person would see it, without control sequences
    #[serde(default)]
    pub plain: bool,
    /// Wait until nothing new came for so long
    #[schemars(range(min = 1, max = 10_000))]
    pub wait_for_idle_ms: Option<u32>,
}

fn max_chars() -> u32 {
    65_536
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    #[serde(flatten)]
    pub shell: Shell,
    /// Where output begins: later than asked when older output was dropped
    pub cursor: u64,
    pub next_cursor: u64,
    pub output: String,
    /// More output follows, or older output was dropped
    pub truncated: bool,
    /// Bytes before cursor that are no longer kept
    pub dropped_bytes: u64,
    pub plain: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_for_idle_ms: Option<u32>,
}

/// Reads what a shell has printed.
pub struct ShellRead;

impl Tool for ShellRead {
    const NAME: &'static str = "shell_read";
    const DESCRIPTION: &'static str = "Reads a shell's output from a cursor on.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "shell", "read"],
            positionals: vec!["workspace_id", "shell_id"],
            human: Some(Human {
                text: Some("output"),
                summary: Some("{state}, next cursor {next_cursor}, truncated: {truncated}"),
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let max_chars = usize::try_from(arguments.max_chars).unwrap_or(usize::MAX);
        let most = arguments.max_chars.saturating_mul(4).min(MAX_BYTES);
        let read =
            terminals::read(guest.machine(), &arguments.shell_id, arguments.cursor, most, arguments.wait_for_idle_ms)
                .map_err(|error| failed(&arguments.workspace_id, &arguments.shell_id, error))?;
        let data = bytes(&read.data, u64::from(most));
        let full = data.len() as u64 >= u64::from(most);
        let last = !full && read.info.state == "stopped";
        let share = take(&data, max_chars, arguments.plain, last);
        let (cols, rows) = (read.info.cols, read.info.rows);
        let window = Window::new(arguments.cursor, read.start, &share, full);
        let output = if arguments.plain { render(&share.text, cols, rows).text } else { share.text };
        Ok(Output {
            shell: Shell::new(&arguments.workspace_id, &guest, read.info),
            cursor: window.cursor,
            next_cursor: window.next,
            output,
            truncated: window.truncated,
            dropped_bytes: window.dropped,
            plain: arguments.plain,
            wait_for_idle_ms: arguments.wait_for_idle_ms,
        })
    }
}

/// Which part of the output a read gave.
#[derive(Debug, PartialEq)]
struct Window {
    cursor: u64,
    next: u64,
    dropped: u64,
    truncated: bool,
}

impl Window {
    fn new(asked: u64, start: u64, share: &Share, full: bool) -> Window {
        let dropped = start.saturating_sub(asked);
        Window { cursor: start, next: start + share.bytes as u64, dropped, truncated: share.cut || full || dropped > 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_says_where_to_go_on_and_what_is_gone() {
        let share = |cut| Share { text: String::new(), bytes: 10, cut };
        let window = |asked, start, cut, full| Window::new(asked, start, &share(cut), full);
        assert_eq!(window(5, 5, false, false), Window { cursor: 5, next: 15, dropped: 0, truncated: false });
        assert_eq!(window(5, 9, false, false), Window { cursor: 9, next: 19, dropped: 4, truncated: true });
        assert!(window(5, 5, true, false).truncated && window(5, 5, false, true).truncated);
        // A cursor behind the end is brought back to it.
        assert_eq!(window(50, 20, false, false).cursor, 20);
    }
}
