//! `workspace_file_edit`.

use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::exact_edit::{EditError, replace};
use pyro_plugin_guest::{Guest, MAX_TEXT, Write, invalid, without_conflict};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// File in /workspace
    pub path: String,
    /// Exact text to replace; must occur once
    pub old_text: String,
    /// Text to put there
    pub new_text: String,
    /// Replace every occurrence
    #[serde(default)]
    pub replace_all: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub path: String,
    pub replacements: u64,
    /// Line of the first, from 1
    pub line: u64,
    pub size_bytes: u64,
    pub execution_mode: String,
}

/// Replaces exact text.
pub struct FileEdit;

impl Tool for FileEdit {
    const NAME: &'static str = "workspace_file_edit";
    const DESCRIPTION: &'static str = "Replaces an exact piece of text in a file.";
    const HINTS: Hints = Hints { destructive: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "file", "edit"],
            positionals: vec!["workspace_id", "path"],
            flags: vec![
                Flag::plain("old-text", "old_text"),
                Flag::file("old-text-file", "old_text").help("A host file that holds it"),
                Flag::plain("new-text", "new_text"),
                Flag::file("new-text-file", "new_text").help("A host file that holds it"),
            ],
            human: Some(Human::summary("{path}: {replacements} replaced, the first on line {line}")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, "workspace_file_edit")?;
        let path = pyro_plugin_guest::path(&arguments.path)?;
        without_conflict(|| {
            let text = guest.text(&path)?;
            let edited = replace(&text, &arguments.old_text, &arguments.new_text, arguments.replace_all)
                .map_err(|e| refused(&path, &e))?;
            let size = edited.text.len() as u64;
            if size > MAX_TEXT {
                return Err(invalid(format!("{path} would have {size} bytes, more than {MAX_TEXT}")));
            }
            guest.apply(vec![Write { path: path.clone(), content: Some(edited.text.into_bytes()), mode: None }])?;
            Ok(Output {
                workspace_id: arguments.workspace_id.clone(),
                path: path.clone(),
                replacements: edited.count as u64,
                line: edited.line as u64,
                size_bytes: size,
                execution_mode: guest.execution_mode(),
            })
        })
    }
}

fn refused(path: &str, error: &EditError) -> ToolError {
    let code = match error {
        EditError::NotFound { .. } => "not_found",
        _ => "invalid_argument",
    };
    let refused = ToolError::new(code, format!("{path}: {error}"));
    match error.hint() {
        Some(hint) => refused.with_hint(hint),
        None => refused,
    }
}
