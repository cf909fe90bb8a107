//! Secrets in other groups' tools.

use std::collections::BTreeMap;

use pyro_plugin_guest::WORKSPACE_RETURNING;
use pyro_plugin_sdk::secrets::bindings;
use pyro_plugin_sdk::{Amendment, Call, Decision, Flag, Interceptor, JsonSchema, Outcome, ToolError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::input::{self, SecretInput};
use crate::shape::{Secret, list};

/// The tool that makes a workspace.
const CREATE: &str = "workspace_create";
/// The tools that start a process in a workspace.
const PROCESS_TOOLS: [&str; 4] = ["workspace_exec", "shell_open", "service_start", "service_restart"];

/// What `workspace_create` takes besides.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Creating {
    /// Kept out of all output
    #[serde(default)]
    pub secrets: Vec<SecretInput>,
}

/// What a tool that starts a process takes besides.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Starting {
    /// Secret to environment variable
    #[serde(default)]
    pub secret_env: BTreeMap<String, String>,
}

/// What a tool that returns a workspace returns besides.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Returned {
    /// Without their values
    pub secrets: Vec<Secret>,
}

/// Takes part in the tools that create a workspace, return one, or start a process in one.
pub struct Secrets;

impl Interceptor for Secrets {
    fn amendments() -> Vec<Amendment> {
        let create = Amendment::of(CREATE).input::<Creating>().output::<Returned>().flags(&[
            Flag::record("secret", "secrets", "name", '=', "value")
                .value_name("NAME=VALUE")
                .help("A secret; may be repeated"),
            Flag::record("secret-file", "secrets", "name", '=', "file_path")
                .value_name("NAME=PATH")
                .help("A secret from a file of the host; may be repeated"),
        ]);
        let returning = WORKSPACE_RETURNING.map(|tool| Amendment::of(tool).output::<Returned>());
        let starting = PROCESS_TOOLS.map(|tool| {
            Amendment::of(tool)
                .input::<Starting>()
                .flags(&[Flag::binding("secret-env", "secret_env").value_name("SECRET[=ENV]")])
        });
        [create].into_iter().chain(returning).chain(starting).collect()
    }

    fn before(tool: &str, arguments: &Map<String, Value>, _call: &Call) -> Result<Decision, ToolError> {
        if tool == CREATE {
            let creating: Creating = read(arguments)?;
            for (name, source) in input::secrets(&creating.secrets)? {
                bindings::attach(&name, &source)?;
            }
        } else if PROCESS_TOOLS.contains(&tool) {
            let starting: Starting = read(arguments)?;
            if !starting.secret_env.is_empty() {
                let id = arguments.get("workspace_id").and_then(Value::as_str).unwrap_or_default();
                let known: Vec<String> = list(id)?.into_iter().map(|secret| secret.name).collect();
                for (secret, variable) in input::bindings(&starting.secret_env, &known)? {
                    bindings::bind_env(id, &secret, &variable)?;
                }
            }
        }
        Ok(Decision::Proceed)
    }

    fn after(
        tool: &str,
        _arguments: &Map<String, Value>,
        mut outcome: Outcome,
        _call: &Call,
    ) -> Result<Option<Outcome>, ToolError> {
        let Some(workspace) =
            outcome.structured.as_mut().filter(|_| tool == CREATE || WORKSPACE_RETURNING.contains(&tool))
        else {
            return Ok(None);
        };
        let Some(id) = workspace.get("workspace_id").and_then(Value::as_str) else { return Ok(None) };
        let secrets = serde_json::to_value(list(id)?).unwrap_or_default();
        workspace.insert("secrets".to_owned(), secrets);
        Ok(Some(outcome))
    }
}

/// This interceptor's own among a call's arguments.
fn read<T: for<'a> Deserialize<'a>>(arguments: &Map<String, Value>) -> Result<T, ToolError> {
    // The host has checked them against the schema; an error could repeat a value.
    serde_json::from_value(Value::Object(arguments.clone()))
        .map_err(|_| pyro_plugin_guest::invalid("the secrets are not of the form that the schema asks for"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_added_has_the_contract_s_form() {
        let amendments: Vec<Value> =
            Secrets::amendments().into_iter().map(|amendment| serde_json::to_value(amendment).unwrap()).collect();
        let of = |tool: &str| amendments.iter().find(|amendment| amendment["tool"] == tool).unwrap();
        let create = of("workspace_create");
        assert_eq!(create["input_properties"]["secrets"]["items"]["required"], json!(["name"]));
        assert_eq!(create["output_properties"]["secrets"]["items"]["required"], json!(["name", "source_kind"]));
        assert!(create.get("required").is_none());
        for tool in ["workspace_exec", "shell_open", "service_start"] {
            let added = &of(tool)["input_properties"]["secret_env"];
            assert_eq!(added["additionalProperties"], json!({ "type": "string" }), "{tool}");
        }
        assert_eq!(amendments.len(), 10);
    }

    #[test]
    fn an_argument_of_the_wrong_form_is_not_repeated() {
        let arguments = json!({ "secrets": [{ "name": "A", "value": 8_315_112 }] });
        let Value::Object(arguments) = arguments else { unreachable!("an object") };
        let error = read::<Creating>(&arguments).unwrap_err();
        assert!(!error.message.contains("8315112"));
    }
}
