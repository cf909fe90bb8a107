//! Takes part in tools of `behaviours`, well-behaved: it is made with the SDK.

use pyro_plugin_sdk::{Amendment, Call, Decision, Hints, Interceptor, JsonSchema, Outcome, Tool, ToolError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

#[derive(Deserialize, JsonSchema)]
struct Arguments {
    /// The name to greet.
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct Greeting {
    /// What was said.
    greeting: String,
}

/// A tool of its own.
struct Greet;

impl Tool for Greet {
    const NAME: &'static str = "greet";
    const DESCRIPTION: &'static str = "Greets somebody.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Greeting;

    fn call(arguments: Arguments, _: &Call) -> Result<Greeting, ToolError> {
        Ok(Greeting { greeting: format!("hello {}", arguments.name) })
    }
}

#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Added {
    /// What to do: `refuse`, `answer`, or anything to be noted.
    note: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Noted {
    /// The note, once the tool has answered.
    noted: Option<String>,
}

struct Notes;

impl Interceptor for Notes {
    fn amendments() -> Vec<Amendment> {
        vec![
            Amendment::of("echo").input::<Added>(),
            Amendment::of("keep_promise").input::<Added>().output::<Noted>(),
            Amendment::of("tool_that_no_profile_has").input::<Added>(),
        ]
    }

    fn before(tool: &str, arguments: &Map<String, Value>, _: &Call) -> Result<Decision, ToolError> {
        match arguments.get("note").and_then(Value::as_str) {
            Some("refuse") => Err(ToolError::new("noted_refusal", format!("no {tool} today")).with_hint("tomorrow")),
            Some("answer") => Ok(Decision::Answer(Map::from_iter([("answer".to_owned(), json!(7))]))),
            _ => Ok(Decision::Proceed),
        }
    }

    fn after(
        _: &str,
        arguments: &Map<String, Value>,
        mut outcome: Outcome,
        _: &Call,
    ) -> Result<Option<Outcome>, ToolError> {
        let (Some(note), Some(structured)) = (arguments.get("note"), &mut outcome.structured) else { return Ok(None) };
        structured.insert("noted".to_owned(), note.clone());
        Ok(Some(outcome))
    }
}

pyro_plugin_sdk::export!(Greet; interceptor = Notes);
