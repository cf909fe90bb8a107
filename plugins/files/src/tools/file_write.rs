//! `workspace_file_write`.

use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use pyro_plugin_guest::{Guest, Kind, MAX_TEXT, Write, invalid};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// File in /workspace
    pub path: String,
    /// Whole new content, up to 1 MiB
    pub text: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub path: String,
    pub size_bytes: u64,
    pub bytes_written: u64,
    pub execution_mode: String,
}

/// Writes a whole file; an existing one keeps its mode.
pub struct FileWrite;

impl Tool for FileWrite {
    const NAME: &'static str = "workspace_file_write";
    const DESCRIPTION: &'static str = "Creates or replaces a text file; its mode is kept.";
    const HINTS: Hints = Hints { destructive: Some(true), idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "file", "write"],
            positionals: vec!["workspace_id", "path"],
            flags: vec![
                Flag::plain("text", "text"),
                Flag::file("text-file", "text").help("A host file that holds the text, - for standard input"),
            ],
            human: Some(Human::summary("{path}: {bytes_written} bytes written")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let size = arguments.text.len() as u64;
        if size > MAX_TEXT {
            return Err(invalid(format!("text of {size} bytes exceeds the maximum of {MAX_TEXT} bytes")));
        }
        let guest = Guest::open(&arguments.workspace_id, "workspace_file_write")?;
        let path = pyro_plugin_guest::path(&arguments.path)?;
        if let Some(entry) = guest.find(&path)?
            && entry.kind != Kind::File
        {
            return Err(invalid(format!("workspace file write only supports regular files: {path}")));
        }
        guest.apply(vec![Write { path: path.clone(), content: Some(arguments.text.into_bytes()), mode: None }])?;
        Ok(Output {
            workspace_id: arguments.workspace_id,
            path,
            size_bytes: size,
            bytes_written: size,
            execution_mode: guest.execution_mode(),
        })
    }
}
