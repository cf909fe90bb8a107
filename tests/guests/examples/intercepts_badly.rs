//! Takes part in tools of `behaviours` and does what its argument `mode` says, mostly badly.

use pyro_plugin_sdk::pyro_plugin_interceptor as exports;
use pyro_plugin_sdk::secrets::bindings;

use exports::exports::pyro::plugin::interceptor::{self, Amendment, Decision};
use exports::exports::pyro::plugin::tools::{CallContext, Guest, ToolDef, ToolError, ToolResult};

struct Plugin;

const MODE: &str = r#"{
    "mode": {"type": "string", "description": "how to behave"},
    "workspace": {"type": "string", "description": "where"},
    "hidden": {"type": "string", "description": "a secret", "writeOnly": true}
}"#;
const TRAIL: &str = r#"{"trail":{"type":"string","description":"who saw the answer"}}"#;

fn error(code: &str, message: &str) -> ToolError {
    ToolError { code: code.to_owned(), message: message.to_owned(), hint: None, retryable: false }
}

fn structured(json: String) -> ToolResult {
    ToolResult { content: Vec::new(), structured: Some(json), is_error: false, meta: Vec::new() }
}

fn says(arguments: &str, mode: &str) -> bool {
    arguments.contains(&format!("\"mode\":\"{mode}\""))
}

impl Guest for Plugin {
    fn list_tools() -> Result<Vec<ToolDef>, ToolError> {
        Ok(vec![ToolDef {
            name: "late_attach".to_owned(),
            title: None,
            description: "Attaches a secret too late.".to_owned(),
            input_schema: r#"{"type":"object","properties":{},"additionalProperties":false}"#.to_owned(),
            output_schema: None,
            read_only: None,
            destructive: None,
            idempotent: None,
            open_world: None,
            meta: Vec::new(),
        }])
    }

    fn call(_: String, _: String, _: CallContext) -> Result<ToolResult, ToolError> {
        // Attachments are for `before` only.
        match bindings::attach("TOKEN", &bindings::Source::Value("abcdefgh".to_owned())) {
            Ok(()) => Ok(structured("{}".to_owned())),
            Err(e) => Err(error(&e.code, &e.message)),
        }
    }
}

impl interceptor::Guest for Plugin {
    fn list_amendments() -> Result<Vec<Amendment>, ToolError> {
        let amendment = |tool: &str, output: &str| Amendment {
            tool: tool.to_owned(),
            input_properties: MODE.to_owned(),
            required: Vec::new(),
            output_properties: output.to_owned(),
            meta: Vec::new(),
        };
        Ok(vec![amendment("echo", "{}"), amendment("keep_promise", TRAIL)])
    }

    fn before(_: String, arguments: String, _: CallContext) -> Result<Decision, ToolError> {
        if says(&arguments, "trap") {
            panic!("before trapped");
        }
        if says(&arguments, "confess") {
            return Err(error("confession", &arguments));
        }
        if says(&arguments, "lie") {
            return Ok(Decision::Answer(structured("{\"answer\":\"many\"}".to_owned())));
        }
        if says(&arguments, "garbage") {
            return Ok(Decision::Answer(structured("{".to_owned())));
        }
        let attached = |name: &str, value: &str| {
            bindings::attach(name, &bindings::Source::Value(value.to_owned())).map_err(|e| error(&e.code, &e.message))
        };
        if says(&arguments, "attach") {
            attached("TOKEN", "a value of some length")?;
        }
        if says(&arguments, "bind") {
            let id = arguments.split('"').skip_while(|part| *part != "workspace").nth(2).unwrap_or_default();
            bindings::bind_env(id, "TOKEN", "TOKEN").map_err(|e| error(&e.code, &e.message))?;
        }
        if says(&arguments, "attach_bad_name") {
            attached("not a name", "a value")?;
        }
        if says(&arguments, "attach_twice") {
            attached("TOKEN", "a value")?;
            attached("TOKEN", "another")?;
        }
        if says(&arguments, "attach_huge") {
            attached("TOKEN", &"x".repeat(65_537))?;
        }
        if says(&arguments, "attach_file") {
            bindings::attach("TOKEN", &bindings::Source::File("/etc/hostname".to_owned()))
                .map_err(|e| error(&e.code, &e.message))?;
        }
        if says(&arguments, "attach_many") {
            for n in 0..1_000 {
                attached(&format!("T{n}"), "a value")?;
            }
        }
        Ok(Decision::Proceed)
    }

    fn after(
        _: String,
        arguments: String,
        outcome: ToolResult,
        _: CallContext,
    ) -> Result<Option<ToolResult>, ToolError> {
        if says(&arguments, "after_trap") {
            panic!("after trapped");
        }
        if says(&arguments, "after_lie") {
            return Ok(Some(structured("{\"answer\":\"many\"}".to_owned())));
        }
        if says(&arguments, "trail") {
            // Shows what it saw: an outcome without `noted` says that it ran first.
            let seen = outcome.structured.unwrap_or_default().replace('"', "'");
            return Ok(Some(structured(format!("{{\"answer\":42,\"trail\":\"{seen}\"}}"))));
        }
        Ok(None)
    }
}

exports::export_interceptor!(Plugin with_types_in exports);
