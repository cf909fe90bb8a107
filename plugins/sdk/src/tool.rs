//! The [`Tool`] trait, and the way between it and the WIT interface.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bindings::exports::pyro::plugin::tools as wit;
use crate::bindings::pyro::host::{call, config};
use crate::bindings::pyro::vm::types;
use crate::cli::Cli;
use crate::schema::{input_schema, output_schema};

/// One tool.
pub trait Tool {
    /// `^[a-z][a-z0-9_]{0,39}$`.
    const NAME: &'static str;
    /// A short name for people; empty for none.
    const TITLE: &'static str = "";
    /// What it does and returns, for a model.
    const DESCRIPTION: &'static str;
    /// What a caller may expect of its effects.
    const HINTS: Hints = Hints::UNKNOWN;
    /// A struct; its documentation comments describe the arguments.
    type Arguments: DeserializeOwned + JsonSchema;
    /// A struct; its documentation comments describe the result.
    type Output: Serialize + JsonSchema;

    /// Returns the tool's command line form.
    fn cli() -> Option<Cli> {
        None
    }

    /// Serves a call. The arguments satisfy the schema.
    ///
    /// # Errors
    /// Whatever went wrong, in words that lead to a next step.
    fn call(arguments: Self::Arguments, call: &Call) -> Result<Self::Output, ToolError>;
}

/// What a caller may expect of a tool's effects; `None` where the tool does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Changes nothing outside the call.
    pub read_only: Option<bool>,
    /// May destroy something that outlives the call.
    pub destructive: Option<bool>,
    /// A second call with the same arguments changes nothing more.
    pub idempotent: Option<bool>,
    /// Reaches things outside pyro's machines.
    pub open_world: Option<bool>,
}

impl Hints {
    /// Says nothing.
    pub const UNKNOWN: Hints = Hints { read_only: None, destructive: None, idempotent: None, open_world: None };
    /// Looks at things and changes none.
    pub const READ_ONLY: Hints =
        Hints { read_only: Some(true), destructive: Some(false), idempotent: Some(true), open_world: Some(false) };
    /// Changes something, destroys nothing, and stays inside.
    pub const CONTAINED: Hints =
        Hints { read_only: Some(false), destructive: Some(false), idempotent: Some(false), open_world: Some(false) };
}

/// The call being served.
#[derive(Clone, Debug)]
pub struct Call {
    /// Names the call in logs.
    pub id: String,
    /// Names the client's session.
    pub session_id: String,
    /// A W3C trace parent.
    pub traceparent: Option<String>,
}

impl Call {
    /// Reports progress; `done` must grow.
    pub fn progress(&self, done: f64, total: Option<f64>, message: &str) {
        call::progress(done, total, Some(message));
    }

    /// Returns the component's `config` of the profile.
    ///
    /// # Errors
    /// `invalid_config` when it is not a `C`.
    pub fn config<C: DeserializeOwned>(&self) -> Result<C, ToolError> {
        serde_json::from_str(&config::get()).map_err(|error| {
            ToolError::new("invalid_config", format!("the component's `config` in the profile is not valid: {error}"))
        })
    }

    /// Returns the wall clock left, without what waiting for a microVM takes.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(call::remaining_ms())
    }
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolError {
    /// Lower-case snake.
    pub code: String,
    /// The fact, with the value.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
    /// The same call may succeed later.
    pub retryable: bool,
}

impl ToolError {
    /// Returns an error that is not worth a second try.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> ToolError {
        ToolError { code: code.into(), message: message.into(), hint: None, retryable: false }
    }

    /// Adds the next step.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> ToolError {
        self.hint = Some(hint.into());
        self
    }
}

impl From<types::Error> for ToolError {
    fn from(error: types::Error) -> ToolError {
        let mut message = error.message;
        if let Some((_, tail)) = error.meta.iter().find(|(key, _)| key == "console_tail") {
            message.push_str("; the console's last lines:\n");
            message.push_str(tail);
        }
        ToolError { code: error.code, message, hint: error.hint, retryable: error.retryable }
    }
}

impl From<ToolError> for wit::ToolError {
    fn from(error: ToolError) -> wit::ToolError {
        wit::ToolError { code: error.code, message: error.message, hint: error.hint, retryable: error.retryable }
    }
}

/// A tool's definition, in the form of the `pyro:manifest` section.
#[doc(hidden)]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Definition {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    description: String,
    input_schema: Value,
    output_schema: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destructive: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotent: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    open_world: Option<bool>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<String, String>,
}

#[doc(hidden)]
pub fn definition<T: Tool>() -> Definition {
    // A struct of strings and booleans always has a JSON form.
    let cli = T::cli().and_then(|cli| serde_json::to_string(&cli).ok());
    Definition {
        name: T::NAME.to_owned(),
        title: Some(T::TITLE.to_owned()).filter(|title| !title.is_empty()),
        description: T::DESCRIPTION.to_owned(),
        input_schema: input_schema::<T::Arguments>(),
        output_schema: output_schema::<T::Output>(),
        read_only: T::HINTS.read_only,
        destructive: T::HINTS.destructive,
        idempotent: T::HINTS.idempotent,
        open_world: T::HINTS.open_world,
        meta: cli.into_iter().map(|cli| ("cli".to_owned(), cli)).collect(),
    }
}

impl From<Definition> for wit::ToolDef {
    fn from(definition: Definition) -> wit::ToolDef {
        wit::ToolDef {
            name: definition.name,
            title: definition.title,
            description: definition.description,
            input_schema: definition.input_schema.to_string(),
            output_schema: Some(definition.output_schema.to_string()),
            read_only: definition.read_only,
            destructive: definition.destructive,
            idempotent: definition.idempotent,
            open_world: definition.open_world,
            meta: definition.meta.into_iter().collect(),
        }
    }
}

#[doc(hidden)]
pub fn answer<T: Tool>(arguments: &str, context: wit::CallContext) -> Result<wit::ToolResult, wit::ToolError> {
    let call = Call { id: context.call_id, session_id: context.session_id, traceparent: context.traceparent };
    let structured = Some(serve::<T>(arguments, &call)?);
    Ok(wit::ToolResult { content: Vec::new(), structured, is_error: false, meta: Vec::new() })
}

/// Returns the JSON text of a tool's result.
pub(crate) fn serve<T: Tool>(arguments: &str, call: &Call) -> Result<String, ToolError> {
    let arguments = serde_json::from_str(arguments)
        .map_err(|error| ToolError::new("invalid_argument", format!("{}: {error}", T::NAME)))?;
    let output = T::call(arguments, call)?;
    serde_json::to_string(&output)
        .map_err(|error| ToolError::new("internal", format!("{}: the result has no JSON form: {error}", T::NAME)))
}
