//! The [`Interceptor`] trait, and the way between it and the WIT interface.

use std::collections::BTreeMap;

use pyro_plugin_interceptor::exports::pyro::plugin::{interceptor as wit, tools};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cli::{Flag, Human};
use crate::schema::{input_schema, output_schema};
use crate::tool::{Call, Definition, Tool, ToolError};

/// Takes part in other components' tools.
///
/// A component has at most one; [`export!`](crate::export) takes it after the tools:
/// `export!(SecretList, SecretSet; interceptor = Secrets)`.
pub trait Interceptor {
    /// Returns the tools it takes part in and what it adds to them.
    fn amendments() -> Vec<Amendment>;

    /// Runs before the tool. `arguments` holds all of the call's arguments; the tool will get them without this
    /// interceptor's own.
    ///
    /// # Errors
    /// Whatever refuses the call.
    fn before(tool: &str, arguments: &Map<String, Value>, call: &Call) -> Result<Decision, ToolError>;

    /// Runs after the tool answered; not when it failed with an error. `Some` replaces the outcome.
    ///
    /// # Errors
    /// The call then fails with it, although the tool did its work.
    fn after(
        tool: &str,
        arguments: &Map<String, Value>,
        outcome: Outcome,
        call: &Call,
    ) -> Result<Option<Outcome>, ToolError> {
        let _ = (tool, arguments, outcome, call);
        Ok(None)
    }
}

/// What [`Interceptor::before`] decides.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The tool runs.
    Proceed,
    /// This structured result is the answer, and the tool does not run.
    Answer(Map<String, Value>),
}

/// A tool's answer.
#[derive(Debug)]
pub struct Outcome {
    /// The structured result.
    pub structured: Option<Map<String, Value>>,
    /// The tool itself calls it a failure.
    pub is_error: bool,
    content: Vec<tools::Content>,
}

/// What an interceptor adds to one tool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Amendment {
    tool: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    input_properties: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    required: Vec<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    output_properties: Map<String, Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<String, String>,
}

impl Amendment {
    /// Returns one that adds nothing: the interceptor only sees the calls of the tool.
    pub fn of(tool: impl Into<String>) -> Amendment {
        Amendment {
            tool: tool.into(),
            input_properties: Map::new(),
            required: Vec::new(),
            output_properties: Map::new(),
            meta: BTreeMap::new(),
        }
    }

    /// Adds the fields of `T` to the tool's arguments.
    #[must_use]
    pub fn input<T: JsonSchema>(mut self) -> Amendment {
        let (properties, required) = fields(input_schema::<T>());
        self.input_properties.extend(properties);
        self.required.extend(required);
        self
    }

    /// Adds the fields of `T` to the tool's result.
    #[must_use]
    pub fn output<T: JsonSchema>(mut self) -> Amendment {
        self.output_properties.extend(fields(output_schema::<T>()).0);
        self
    }

    /// Says how the added arguments look as flags, where they are not simply named after them.
    #[must_use]
    pub fn flags(mut self, flags: &[Flag]) -> Amendment {
        self.cli("flags", serde_json::json!(flags));
        self
    }

    /// Says which of the tool's results [`Decision::Answer`] leaves out, and what a person sees of such an answer: the one
    /// that has the result `when`, which must be among those that are added.
    #[must_use]
    pub fn answers(mut self, without: &[&str], when: &str, human: &Human) -> Amendment {
        self.meta.insert("optional_results".to_owned(), serde_json::json!(without).to_string());
        self.cli("answer", serde_json::json!({ "when": when, "human": human }));
        self
    }

    fn cli(&mut self, key: &str, value: Value) {
        let said = self.meta.get("cli").and_then(|text| serde_json::from_str(text).ok());
        let mut said: Map<String, Value> = said.unwrap_or_default();
        said.insert(key.to_owned(), value);
        self.meta.insert("cli".to_owned(), Value::Object(said).to_string());
    }
}

/// The properties of a schema, and the names of those that are required.
fn fields(schema: Value) -> (Map<String, Value>, Vec<String>) {
    let Value::Object(mut schema) = schema else { return (Map::new(), Vec::new()) };
    let properties = match schema.shift_remove("properties") {
        Some(Value::Object(properties)) => properties,
        _ => Map::new(),
    };
    let required = match schema.shift_remove("required") {
        Some(Value::Array(names)) => names.into_iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    (properties, required)
}

impl From<Amendment> for wit::Amendment {
    fn from(amendment: Amendment) -> wit::Amendment {
        let json = |properties: Map<String, Value>| Value::Object(properties).to_string();
        wit::Amendment {
            tool: amendment.tool,
            input_properties: json(amendment.input_properties),
            required: amendment.required,
            output_properties: json(amendment.output_properties),
            meta: amendment.meta.into_iter().collect(),
        }
    }
}

/// Serves `before`.
#[doc(hidden)]
pub fn before<I: Interceptor>(
    tool: &str,
    arguments: &str,
    context: tools::CallContext,
) -> Result<wit::Decision, tools::ToolError> {
    let decision = I::before(tool, &object(tool, arguments)?, &Call::from(context))?;
    Ok(match decision {
        Decision::Proceed => wit::Decision::Proceed,
        Decision::Answer(answer) => wit::Decision::Answer(tools::ToolResult {
            content: Vec::new(),
            structured: Some(Value::Object(answer).to_string()),
            is_error: false,
            meta: Vec::new(),
        }),
    })
}

/// Serves `after`.
#[doc(hidden)]
pub fn after<I: Interceptor>(
    tool: &str,
    arguments: &str,
    outcome: tools::ToolResult,
    context: tools::CallContext,
) -> Result<Option<tools::ToolResult>, tools::ToolError> {
    let structured = outcome.structured.as_deref().map(|text| object(tool, text)).transpose()?;
    let outcome = Outcome { structured, is_error: outcome.is_error, content: outcome.content };
    let replaced = I::after(tool, &object(tool, arguments)?, outcome, &Call::from(context))?;
    Ok(replaced.map(|outcome| tools::ToolResult {
        content: outcome.content,
        structured: outcome.structured.map(|structured| Value::Object(structured).to_string()),
        is_error: outcome.is_error,
        meta: Vec::new(),
    }))
}

fn object(tool: &str, text: &str) -> Result<Map<String, Value>, ToolError> {
    serde_json::from_str(text).map_err(|error| ToolError::new("invalid_argument", format!("{tool}: {error}")))
}

impl From<tools::CallContext> for Call {
    fn from(context: tools::CallContext) -> Call {
        Call { id: context.call_id, session_id: context.session_id, traceparent: context.traceparent }
    }
}

impl From<Definition> for tools::ToolDef {
    fn from(definition: Definition) -> tools::ToolDef {
        let tool = crate::bindings::exports::pyro::plugin::tools::ToolDef::from(definition);
        tools::ToolDef {
            name: tool.name,
            title: tool.title,
            description: tool.description,
            input_schema: tool.input_schema,
            output_schema: tool.output_schema,
            read_only: tool.read_only,
            destructive: tool.destructive,
            idempotent: tool.idempotent,
            open_world: tool.open_world,
            meta: tool.meta,
        }
    }
}

/// Serves a call of a tool in a component that is an interceptor too.
#[doc(hidden)]
pub fn intercepting_answer<T: Tool>(
    arguments: &str,
    context: tools::CallContext,
) -> Result<tools::ToolResult, tools::ToolError> {
    let structured = Some(crate::tool::serve::<T>(arguments, &context.into())?);
    Ok(tools::ToolResult { content: Vec::new(), structured, is_error: false, meta: Vec::new() })
}

impl From<ToolError> for tools::ToolError {
    fn from(error: ToolError) -> tools::ToolError {
        tools::ToolError { code: error.code, message: error.message, hint: error.hint, retryable: error.retryable }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Deserialize, JsonSchema)]
    #[expect(dead_code, reason = "only its schema is looked at")]
    struct Added {
        /// Which policy.
        policy: String,
        /// How many.
        count: Option<u32>,
    }

    #[test]
    fn an_amendment_has_the_fields_of_its_types() {
        let amendment = Amendment::of("workspace_create").input::<Added>();
        let expected = json!({
            "tool": "workspace_create",
            "input_properties": {
                "policy": { "description": "Which policy.", "type": "string" },
                "count": { "description": "How many.", "type": "integer", "minimum": 0 },
            },
            "required": ["policy"],
        });
        assert_eq!(serde_json::to_value(amendment).unwrap(), expected);
        assert_eq!(serde_json::to_value(Amendment::of("a")).unwrap(), json!({ "tool": "a" }));
        let flagged = Amendment::of("a").flags(&[Flag::binding("secret-env", "secret_env").value_name("SECRET[=ENV]")]);
        let cli = r#"{"flags":[{"name":"secret-env","argument":"secret_env","takes":"binding","value_name":"SECRET[=ENV]"}]}"#;
        assert_eq!(serde_json::to_value(flagged).unwrap(), json!({ "tool": "a", "meta": { "cli": cli } }));
    }
}
