//! Why a call of a tool failed.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

/// A failed call, in the form that reaches a model or a terminal.
///
/// A command that exits with 1 is not one of these: it is a result. Codes are documented in `docs/errors.md`.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize)]
pub struct ToolError {
    /// A stable lower-case code: `invalid_argument`, `unknown_tool`, `timeout`, `cpu_limit`, `memory_limit`,
    /// `output_limit`, `plugin_trap`, `plugin_invalid`, one of the engine's, or one of the plugin's own.
    pub code: String,
    /// The fact, with the value.
    pub message: String,
    /// The next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// True when the same call may succeed later without a change.
    pub retryable: bool,
    /// More facts, for programs: `path` and `expected` of a bad argument, `stderr` of a plugin that trapped.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
}

impl ToolError {
    /// Returns an error that is not worth a second try.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> ToolError {
        ToolError { code: code.into(), message: message.into(), hint: None, retryable: false, details: Map::new() }
    }

    /// Adds the next step.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> ToolError {
        self.hint = Some(hint.into());
        self
    }

    /// Says whether the same call may succeed later.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> ToolError {
        self.retryable = retryable;
        self
    }

    /// Adds one fact for programs.
    #[must_use]
    pub fn with_detail(mut self, key: &str, value: impl Into<Value>) -> ToolError {
        self.details.insert(key.to_owned(), value.into());
        self
    }
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}
