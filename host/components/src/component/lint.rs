//! Whether tools can be offered to the clients there are.
//!
//! The rules come from what real MCP hosts were measured to drop: a root that is not an object loses a host every tool,
//! names over 40 characters are cut, keywords at the root are ignored. A list is refused when a client would see
//! something else than the component meant; what can be said in another way without a change of meaning is repaired.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::spec::{AmendmentSpec, OPTIONAL_RESULTS, ToolSpec};
use crate::cli::{AddedFlags, CliForm};
use crate::validate::Checker;

/// Longest name; clients put a prefix before it.
const MAX_NAME: usize = 40;
/// Longest description of a tool; a client cuts at this length.
const MAX_DESCRIPTION: usize = 4_096;
/// Longest description of an argument.
const MAX_ARGUMENT_DESCRIPTION: usize = 2_048;
/// Deepest nesting of a schema.
const MAX_SCHEMA_DEPTH: usize = 24;
/// Largest schema, as JSON text.
const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// Largest meta value.
const MAX_META_BYTES: usize = 16 << 10;

/// Keywords that clients ignore or choke on at the root of an input schema.
const ROOT_KEYWORDS: [&str; 9] =
    ["allOf", "anyOf", "oneOf", "not", "if", "then", "else", "patternProperties", "dependentSchemas"];

/// The next step for a schema that cannot be compiled.
pub(crate) const SCHEMA_HINT: &str =
    "correct it: JSON Schema 2020-12, patterns without look-around and back-references";

/// One thing about a tool list: refused when `repaired` is false.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) repaired: bool,
    pub(crate) message: String,
    pub(crate) hint: &'static str,
}

/// Checks a component's tools and repairs what can be repaired in place. Only an interceptor may have none.
pub(crate) fn lint_tools(tools: &mut [ToolSpec], interceptor: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if tools.is_empty() && !interceptor {
        findings.push(refused("it offers no tool".to_owned(), "list at least one tool in `list-tools`"));
    }
    let mut seen = BTreeSet::new();
    for tool in tools {
        let shown = shown_name(&tool.name);
        if !is_tool_name(&tool.name) {
            findings.push(refused(
                format!("tool name {shown} does not match ^[a-z][a-z0-9_]{{0,39}}$"),
                "rename it: lower-case letters, digits and `_`, at most 40 characters",
            ));
        }
        if !seen.insert(tool.name.clone()) {
            findings.push(refused(format!("tool {shown} is listed twice"), "give each tool a name of its own"));
        }
        let mut linter = Linter { tool: &shown, findings: &mut findings };
        linter.text("description", &tool.description, MAX_DESCRIPTION);
        if tool.description.trim().is_empty() {
            linter.refuse("has no description".to_owned(), "say in one sentence what it does and what it returns");
        }
        if let Some(title) = &tool.title {
            linter.text("title", title, 120);
        }
        linter.schema("input schema", &mut tool.input_schema, true);
        if let Some(schema) = &mut tool.output_schema {
            linter.schema("output schema", schema, false);
        }
        linter.cli(tool.meta.get("cli"), &tool.input_schema, tool.output_schema.as_ref());
        for (key, value) in &tool.meta {
            if value.len() > MAX_META_BYTES || key.len() > 64 {
                linter.refuse(format!("has a meta value `{key}` of {} bytes", value.len()), "keep it below 16 KiB");
            }
        }
    }
    findings
}

/// Compiles the schemas of tools that [`lint_tools`] found fit, as a call would. It is no part of that because a toolbox
/// compiles them for its calls anyway, and keeps them.
pub(crate) fn lint_schemas(tools: &[ToolSpec]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for tool in tools {
        let schemas = [("input schema", Some(&tool.input_schema)), ("output schema", tool.output_schema.as_ref())];
        for (what, schema) in schemas.into_iter().filter_map(|(what, schema)| Some((what, schema?))) {
            if let Err(error) = Checker::compile(schema.clone()) {
                let name = shown_name(&tool.name);
                findings
                    .push(refused(format!("tool {name} has an {what} that is no JSON Schema: {error}"), SCHEMA_HINT));
            }
        }
    }
    findings
}

/// Checks what an interceptor adds to other components' tools, and repairs as [`lint_tools`] does.
pub(crate) fn lint_amendments(amendments: &mut [AmendmentSpec]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for amendment in amendments {
        let shown = shown_name(&amendment.tool);
        if !seen.insert(amendment.tool.clone()) {
            findings.push(refused(format!("tool {shown} is amended twice"), "put the properties into one amendment"));
        }
        let mut linter = Linter { tool: &shown, findings: &mut findings };
        for (what, properties, required) in [
            ("added input", &mut amendment.input_properties, amendment.required.as_slice()),
            ("added output", &mut amendment.output_properties, &[]),
        ] {
            let input = what == "added input";
            let mut schema = serde_json::json!({ "type": "object", "properties": properties, "required": required });
            if input {
                schema["additionalProperties"] = Value::Bool(false);
            }
            linter.schema(what, &mut schema, input);
            if let Some(Value::Object(repaired)) = schema.get("properties") {
                properties.clone_from(repaired);
            }
        }
        if amendment.meta.contains_key(OPTIONAL_RESULTS) && amendment.optional_results().is_none() {
            let message = format!("has `{OPTIONAL_RESULTS}` that are no list of names");
            linter.refuse(message, "see `optional_results` in docs/plugins.md");
        }
        let Some(text) = amendment.meta.get("cli") else { continue };
        let Some(added) = AddedFlags::read(text) else {
            linter.refuse("has a `cli` that is no list of flags".to_owned(), "see `cli` in docs/plugins.md");
            continue;
        };
        for (message, hint) in added.problems(&amendment.input_properties, &amendment.output_properties) {
            linter.refuse(message, hint);
        }
    }
    findings
}

/// Checks the schemas of a tool once interceptors have added to them.
pub(crate) fn lint_amended(
    tool: &str,
    input: &Map<String, Value>,
    output: Option<&Map<String, Value>>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let shown = shown_name(tool);
    let mut linter = Linter { tool: &shown, findings: &mut findings };
    linter.schema("amended input schema", &mut Value::Object(input.clone()), true);
    if let Some(output) = output {
        linter.schema("amended output schema", &mut Value::Object(output.clone()), false);
    }
    findings
}

fn refused(message: String, hint: &'static str) -> Finding {
    Finding { repaired: false, message, hint }
}

/// Returns whether a tool may be called that.
pub(crate) fn is_tool_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn shown_name(name: &str) -> String {
    let cut: String = name.chars().take(60).map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect();
    format!("`{cut}`")
}

/// Characters that a reader does not see although a model may read them.
fn is_hidden(c: char) -> bool {
    matches!(c,
        '\0'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{e0000}'..='\u{e0fff}')
}

struct Linter<'a> {
    tool: &'a str,
    findings: &'a mut Vec<Finding>,
}

impl Linter<'_> {
    fn refuse(&mut self, message: String, hint: &'static str) {
        self.findings.push(refused(format!("tool {} {message}", self.tool), hint));
    }

    fn repaired(&mut self, message: String, hint: &'static str) {
        self.findings.push(Finding { repaired: true, message: format!("tool {} {message}", self.tool), hint });
    }

    fn text(&mut self, what: &str, text: &str, most: usize) {
        let length = text.chars().count();
        if length > most {
            self.refuse(format!("has a {what} of {length} characters, more than {most}"), "shorten it");
        }
        if let Some(hidden) = text.chars().find(|c| is_hidden(*c)) {
            self.refuse(
                format!("has an invisible character (U+{:04X}) in its {what}", u32::from(hidden)),
                "remove it: text for a model must be visible to people too",
            );
        }
    }

    fn schema(&mut self, what: &str, schema: &mut Value, input: bool) {
        let size = schema.to_string().len();
        if size > MAX_SCHEMA_BYTES {
            self.refuse(format!("has an {what} of {size} bytes, more than {MAX_SCHEMA_BYTES}"), "simplify it");
            return;
        }
        let Value::Object(root) = schema else {
            self.refuse(format!("has an {what} that is not an object"), "write a JSON Schema of type `object`");
            return;
        };
        match root.get("type") {
            Some(Value::String(kind)) if kind == "object" => {}
            None if root.contains_key("properties") => {
                root.insert("type".to_owned(), Value::from("object"));
                self.repaired(format!("has an {what} without `type`"), "say `\"type\": \"object\"`");
            }
            other => {
                let found = other.map_or("none".to_owned(), Value::to_string);
                self.refuse(format!("has an {what} of type {found}"), "the root must say `\"type\": \"object\"`");
                return;
            }
        }
        if input {
            if let Some(keyword) = ROOT_KEYWORDS.iter().find(|keyword| root.contains_key(**keyword)) {
                self.refuse(
                    format!("has `{keyword}` at the root of its {what}"),
                    "describe the alternatives in the description, or make two tools",
                );
            }
            match root.get("additionalProperties") {
                Some(Value::Bool(false)) => {}
                None => {
                    root.insert("additionalProperties".to_owned(), Value::Bool(false));
                    self.repaired(
                        format!("does not close its {what}"),
                        "say `\"additionalProperties\": false`; unknown arguments are refused in any case",
                    );
                }
                Some(_) => self.refuse(
                    format!("takes any argument: `additionalProperties` of its {what} is not false"),
                    "list every argument; take free-form data in one argument of type `object`",
                ),
            }
        }
        self.properties(what, root, input);
        self.walk(what, schema, 0);
    }

    /// Top-level properties; a missing description is repaired by nothing, so it is only reported.
    fn properties(&mut self, what: &str, root: &mut Map<String, Value>, input: bool) {
        let required: Vec<String> = match root.get("required") {
            Some(Value::Array(names)) => names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        let properties = match root.get("properties") {
            None => Map::new(),
            Some(Value::Object(properties)) => properties.clone(),
            Some(_) => {
                self.refuse(format!("has `properties` that are not an object in its {what}"), "map names to schemas");
                return;
            }
        };
        if let Some(name) = required.iter().find(|name| !properties.contains_key(*name)) {
            self.refuse(format!("requires `{name}`, which its {what} does not describe"), "add it to `properties`");
        }
        for (name, property) in &properties {
            if name.is_empty() || name.len() > 64 || name.chars().any(|c| is_hidden(c) || c.is_whitespace()) {
                let kind = if input { "an argument" } else { "a result property" };
                self.refuse(format!("has {kind} named {}", shown_name(name)), "use letters, digits and `_`");
            }
            let described = property.get("description").and_then(Value::as_str);
            match described {
                Some(text) => self.text(&format!("description of `{name}`"), text, MAX_ARGUMENT_DESCRIPTION),
                None if input => self.repaired(format!("does not describe its argument `{name}`"), "describe it"),
                None => {}
            }
        }
    }

    /// Nested schemas: remote references, nesting, `type` lists.
    fn walk(&mut self, what: &str, value: &mut Value, depth: usize) {
        if depth > MAX_SCHEMA_DEPTH {
            self.refuse(format!("nests its {what} more than {MAX_SCHEMA_DEPTH} deep"), "flatten it");
            return;
        }
        match value {
            Value::Object(object) => {
                for keyword in ["$ref", "$dynamicRef"] {
                    if let Some(Value::String(target)) = object.get(keyword)
                        && !target.starts_with('#')
                    {
                        self.refuse(
                            format!("refers to {} in its {what}", shown_name(target)),
                            "refer only to `#/$defs/...`: nothing is fetched",
                        );
                    }
                }
                if let Some(Value::String(text)) = object.get("description")
                    && let Some(hidden) = text.chars().find(|c| is_hidden(*c))
                {
                    self.refuse(
                        format!("has an invisible character (U+{:04X}) in its {what}", u32::from(hidden)),
                        "remove it: text for a model must be visible to people too",
                    );
                }
                if let Some(Value::Array(kinds)) = object.get("type") {
                    let real: Vec<Value> = kinds.iter().filter(|kind| **kind != "null").cloned().collect();
                    if let [only] = real.as_slice() {
                        let only = only.clone();
                        object.insert("type".to_owned(), only);
                        self.repaired(format!("has a `type` list with null in its {what}"), "leave `null` out");
                    }
                }
                for (_, nested) in object.iter_mut() {
                    self.walk(what, nested, depth + 1);
                }
            }
            Value::Array(items) => {
                for nested in items {
                    self.walk(what, nested, depth + 1);
                }
            }
            _ => {}
        }
    }

    fn cli(&mut self, cli: Option<&String>, input: &Value, output: Option<&Value>) {
        let Some(text) = cli else { return };
        let form: CliForm = match serde_json::from_str(text) {
            Ok(form) => form,
            Err(error) => {
                self.refuse(format!("has a `cli` that cannot be read: {error}"), "see `cli` in docs/plugins.md");
                return;
            }
        };
        for (message, hint) in form.problems(input, output) {
            self.refuse(message, hint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tool(input_schema: Value) -> ToolSpec {
        serde_json::from_value(json!({ "name": "grep", "description": "finds text", "input_schema": input_schema }))
            .unwrap()
    }

    fn refusals(tool: ToolSpec) -> Vec<String> {
        let mut tools = [tool];
        lint_tools(&mut tools, false).into_iter().filter(|f| !f.repaired).map(|f| f.message).collect()
    }

    fn closed(properties: Value) -> Value {
        json!({ "type": "object", "properties": properties, "additionalProperties": false })
    }

    #[test]
    fn a_portable_schema_passes_untouched() {
        let schema = closed(json!({ "path": { "type": "string", "description": "where" } }));
        let mut tools = [tool(schema.clone())];
        assert_eq!(lint_tools(&mut tools, false), []);
        assert_eq!(tools[0].input_schema, schema);
    }

    #[test]
    fn an_open_schema_is_closed() {
        let mut tools = [tool(json!({ "properties": { "a": { "type": ["string", "null"], "description": "a" } } }))];
        let findings = lint_tools(&mut tools, false);
        assert!(findings.iter().all(|f| f.repaired), "{findings:?}");
        assert_eq!(findings.len(), 3);
        let expected = closed(json!({ "a": { "type": "string", "description": "a" } }));
        assert_eq!(tools[0].input_schema, expected);
    }

    #[test]
    fn what_clients_would_drop_is_refused() {
        let cases = [
            (json!([]), "tool `grep` has an input schema that is not an object"),
            (json!({ "type": "string" }), "tool `grep` has an input schema of type \"string\""),
            (json!({}), "tool `grep` has an input schema of type none"),
            (
                json!({ "type": "object", "additionalProperties": true }),
                "tool `grep` takes any argument: `additionalProperties` of its input schema is not false",
            ),
            (
                json!({ "type": "object", "additionalProperties": false, "anyOf": [] }),
                "tool `grep` has `anyOf` at the root of its input schema",
            ),
            (
                closed(json!({ "a": { "$ref": "https://example.org/s.json", "description": "a" } })),
                "tool `grep` refers to `https://example.org/s.json` in its input schema",
            ),
            (
                json!({ "type": "object", "additionalProperties": false, "required": ["b"] }),
                "tool `grep` requires `b`, which its input schema does not describe",
            ),
        ];
        for (schema, message) in cases {
            assert_eq!(refusals(tool(schema)), [message]);
        }
    }

    #[test]
    fn names_and_texts_are_bounded_and_visible() {
        let schema = || closed(json!({}));
        let named = |name: &str| ToolSpec { name: name.to_owned(), ..tool(schema()) };
        for bad in ["", "Grep", "9a", "a-b", "a.b", &"a".repeat(41)] {
            assert_eq!(refusals(named(bad)).len(), 1, "{bad}");
        }
        assert_eq!(refusals(named(&"a".repeat(40))), [""; 0]);
        let described = |text: String| ToolSpec { description: text, ..tool(schema()) };
        assert_eq!(
            refusals(described("a\u{202e}b".to_owned())),
            ["tool `grep` has an invisible character (U+202E) in its description"]
        );
        assert_eq!(
            refusals(described("x".repeat(4097))),
            ["tool `grep` has a description of 4097 characters, more than 4096"]
        );
        assert_eq!(refusals(described(" ".to_owned())), ["tool `grep` has no description"]);
    }

    #[test]
    fn a_deep_schema_is_refused_and_not_recursed_into() {
        let mut schema = json!({ "type": "string" });
        for _ in 0..60 {
            schema = json!({ "items": schema });
        }
        let found = refusals(tool(closed(json!({ "a": schema }))));
        assert!(found.iter().any(|m| m.contains("nests its input schema more than 24 deep")), "{found:?}");
    }

    #[test]
    fn a_schema_that_cannot_be_compiled_is_refused() {
        for property in [
            json!({ "type": "string", "pattern": "(" }),
            json!({ "type": "string", "minLength": "x" }),
            json!({ "$ref": "#/$defs/nope" }),
            json!(5),
        ] {
            let found = lint_schemas(&[tool(closed(json!({ "a": property })))]);
            let [finding] = found.as_slice() else { panic!("{property}: {found:?}") };
            assert!(finding.message.contains("has an input schema that is no JSON Schema: "), "{}", finding.message);
        }
        let mut spec = tool(closed(json!({})));
        spec.output_schema = Some(json!({ "type": "object", "required": 5 }));
        assert_eq!(lint_schemas(&[spec]).len(), 1);
        assert_eq!(lint_schemas(&[tool(closed(json!({ "a": { "type": "string", "pattern": "^a+$" } })))]), []);
    }

    #[test]
    fn a_command_line_form_names_what_exists() {
        let mut spec = tool(closed(json!({ "path": { "type": "string", "description": "where" } })));
        spec.meta.insert("cli".to_owned(), r#"{"path":["grep"],"positionals":["path"]}"#.to_owned());
        assert_eq!(refusals(spec.clone()), [""; 0]);
        spec.meta.insert("cli".to_owned(), r#"{"path":["Grep"],"positionals":["word"]}"#.to_owned());
        assert_eq!(
            refusals(spec),
            ["tool `grep` has the command [\"Grep\"]", "tool `grep` has a `cli` that names the argument `word`"]
        );
    }
}
