//! `workspace_exec_output`.

use pyro_plugin_guest::{Guest, bytes};
use pyro_plugin_sdk::vm::services::{self, LogStream};
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::command::{State, failed, handle, name};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// From workspace_exec
    pub handle: String,
    /// First byte; next_offset goes on
    #[serde(default)]
    pub offset: u64,
    /// At most
    #[serde(default = "max_bytes")]
    #[schemars(range(min = 1, max = 262_144))]
    pub max_bytes: u32,
    /// For its end, before the output is read
    #[serde(default)]
    #[schemars(range(max = 600))]
    pub wait_seconds: u32,
}

fn max_bytes() -> u32 {
    65_536
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    #[serde(flatten)]
    pub state: State,
    /// stdout and stderr as they came
    pub output: String,
    /// Where it begins; later than asked when older output was dropped
    pub offset: u64,
    /// Where the next read begins
    pub next_offset: u64,
    /// Older output was dropped
    pub truncated: bool,
    /// Bytes that are not UTF-8 stand as U+FFFD
    pub encoding_lossy: bool,
}

/// Reads the output of a background command.
pub struct ExecOutput;

impl Tool for ExecOutput {
    const NAME: &'static str = "workspace_exec_output";
    const DESCRIPTION: &'static str = "Reads a background command's output from offset on, and whether it runs or how \
        it ended.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "background", "output"],
            positionals: vec!["workspace_id", "handle"],
            human: Some(Human {
                text: Some("output"),
                summary: Some("{state}, exit code {exit_code}; go on with --offset {next_offset}"),
                content_only: true,
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let handle = handle(&arguments.handle)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let told = |error| failed(&guest, &arguments.workspace_id, &handle, error);
        let name = name(&handle);
        if arguments.wait_seconds > 0 {
            services::wait(guest.machine(), &name, arguments.wait_seconds.saturating_mul(1000)).map_err(told)?;
        }
        let part = services::read(guest.machine(), &name, LogStream::Stdout, arguments.offset, arguments.max_bytes)
            .map_err(told)?;
        let data = bytes(&part.data, u64::from(arguments.max_bytes));
        let data = whole_characters(&data, part.info.running);
        let text = String::from_utf8_lossy(data);
        Ok(Output {
            encoding_lossy: text.contains('\u{fffd}') && std::str::from_utf8(data).is_err(),
            output: text.into_owned(),
            offset: part.start,
            next_offset: part.start + data.len() as u64,
            truncated: part.start > arguments.offset,
            state: State::new(&arguments.workspace_id, &handle, part.info),
        })
    }
}

/// Leaves a character that is cut at the end to the next read, when there may be one.
fn whole_characters(data: &[u8], more: bool) -> &[u8] {
    match std::str::from_utf8(data) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 && (more || data.len() > 3) => {
            data.get(..error.valid_up_to()).unwrap_or(data)
        }
        _ => data,
    }
}

#[cfg(test)]
mod tests {
    use super::whole_characters;

    #[test]
    fn a_cut_character_is_left_to_the_next_read() {
        let text = "grün".as_bytes();
        assert_eq!(whole_characters(text, true), text);
        assert_eq!(whole_characters(&text[..3], true), b"gr");
        // Alone it would never move on.
        assert_eq!(whole_characters(&text[2..3], true), &text[2..3]);
        assert_eq!(whole_characters(b"a\xffb", true), b"a\xffb");
    }
}
