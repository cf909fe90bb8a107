//! Checking arguments and results against JSON Schema, and saying what is wrong in words that lead to a right call.

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde_json::{Map, Value};

use crate::diagnostic::{name_list, suggestion};
use crate::error::ToolError;

/// Violations named in one error; a caller fixes the first few and asks again.
const MAX_VIOLATIONS: usize = 4;

/// Longest piece of a bad value that is shown.
const MAX_SHOWN: usize = 120;

/// Arguments of other systems that pyro will never have, with the reason.
const RETIRED: [(&str, &str); 1] =
    [("allow_host_compat", "leave it out: pyro never runs commands on the host, only inside a microVM")];

/// One tool's compiled schema.
pub(crate) struct Checker {
    validator: Validator,
    schema: Value,
}

/// What a schema describes, for the words about it.
#[derive(Clone, Copy)]
pub(crate) enum Subject {
    Arguments,
    Result,
}

impl Subject {
    /// All of it.
    fn whole(self) -> &'static str {
        match self {
            Subject::Arguments => "arguments",
            Subject::Result => "result",
        }
    }

    /// One property of it.
    fn part(self) -> &'static str {
        match self {
            Subject::Arguments => "argument",
            Subject::Result => "property",
        }
    }

    /// Several of them.
    fn parts(self) -> &'static str {
        match self {
            Subject::Arguments => "arguments",
            Subject::Result => "properties",
        }
    }
}

/// A schema that cannot be compiled.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SchemaError(String);

impl Checker {
    /// Compiles a schema. Patterns run on an engine without backtracking, so that no pattern of a component and no
    /// argument of a caller can make a check slow.
    pub(crate) fn compile(schema: Value) -> Result<Checker, SchemaError> {
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .with_pattern_options(PatternOptions::regex())
            .build(&schema)
            .map_err(|error| SchemaError(format!("{error} at {}", pointer(&error.instance_path().to_string()))))?;
        Ok(Checker { validator, schema })
    }

    /// Checks a call's arguments. `taken` says why an argument that the component has is not there for callers.
    pub(crate) fn check_arguments(
        &self,
        tool: &str,
        arguments: &Map<String, Value>,
        taken: impl Fn(&str) -> Option<String>,
    ) -> Result<(), ToolError> {
        let instance = Value::Object(arguments.clone());
        let mut violations = self.validator.iter_errors(&instance);
        let Some(first) = violations.next() else { return Ok(()) };
        let mut error = self.argument_error(tool, &first, taken);
        let more: Vec<String> =
            violations.by_ref().take(MAX_VIOLATIONS - 1).map(|v| self.describe(&v, Subject::Arguments)).collect();
        for text in more {
            error.message.push_str("; ");
            error.message.push_str(&text);
        }
        Err(error)
    }

    /// Returns what is wrong with a value, when something is.
    pub(crate) fn first_violation(&self, instance: &Value, subject: Subject) -> Option<String> {
        self.validator.iter_errors(instance).next().map(|violation| self.describe(&violation, subject))
    }

    fn argument_error(
        &self,
        tool: &str,
        violation: &ValidationError<'_>,
        taken: impl Fn(&str) -> Option<String>,
    ) -> ToolError {
        let path = pointer(&violation.instance_path().to_string());
        let mut error =
            ToolError::new("invalid_argument", format!("{tool}: {}", self.describe(violation, Subject::Arguments)))
                .with_detail("path", path.clone());
        let known = || self.properties_at(&path);
        match violation.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let name = unexpected.first().map(String::as_str).unwrap_or_default();
                error = error.with_detail("unknown", unexpected.clone());
                let retired = RETIRED.iter().find(|(retired, _)| *retired == name).map(|(_, why)| (*why).to_owned());
                let hint = retired.or_else(|| taken(name)).unwrap_or_else(|| {
                    match suggestion(name, known().iter().map(String::as_str)) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("its arguments: {}", name_list(known().iter().map(String::as_str))),
                    }
                });
                error.with_hint(hint)
            }
            ValidationErrorKind::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                let description = self.description_at(&format!("{path}/{name}"));
                error.with_hint(match description {
                    Some(text) => format!("pass `{name}`: {text}"),
                    None => format!("pass `{name}`"),
                })
            }
            _ => {
                error = error.with_detail("value", self.shown(violation, &path));
                match self.description_at(&path) {
                    Some(text) => error.with_hint(format!("`{}`: {text}", property_name(&path, Subject::Arguments))),
                    None => error,
                }
            }
        }
    }

    /// The value that is wrong; no text where a secret may stand, also when it stands in the wrong place there.
    fn shown(&self, violation: &ValidationError<'_>, path: &str) -> String {
        let property = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let schema = self.schema.pointer(&format!("/properties/{property}"));
        let refers = schema.is_some_and(|schema| schema.to_string().contains("\"$ref\""));
        let secret = schema.is_some_and(holds_secret) || refers && self.schema.get("$defs").is_some_and(holds_secret);
        match &**violation.instance() {
            Value::String(_) if secret => "a text".to_owned(),
            value => shown(value),
        }
    }

    /// One violation as a sentence: which value, what is expected, what it is.
    fn describe(&self, violation: &ValidationError<'_>, subject: Subject) -> String {
        let path = pointer(&violation.instance_path().to_string());
        let name = property_name(&path, subject);
        let value = self.shown(violation, &path);
        let must = |expected: String| format!("`{name}` must {expected}, not {value}");
        let limits = |low: &str, high: &str| {
            let keyword = violation.schema_path().to_string();
            let parent = keyword.rsplit_once('/').and_then(|(parent, _)| self.schema.pointer(parent));
            Some((parent?.get(low)?.clone(), parent?.get(high)?.clone()))
        };
        match violation.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let names = name_list(unexpected.iter().map(String::as_str));
                let noun = if unexpected.len() == 1 { subject.part() } else { subject.parts() };
                match path.as_str() {
                    "" => format!("unknown {noun} {names}"),
                    _ => format!("unknown {noun} {names} in `{name}`"),
                }
            }
            ValidationErrorKind::Required { property } => {
                let missing = property.as_str().unwrap_or_default();
                match path.as_str() {
                    "" => format!("{} `{missing}` is missing", subject.part()),
                    _ => format!("`{missing}` is missing in `{name}`"),
                }
            }
            ValidationErrorKind::Type { .. } => {
                let keyword = violation.schema_path().to_string();
                let kind = self.schema.pointer(&keyword).map_or("another type".to_owned(), type_name);
                format!("`{name}` must be {kind}, not {value}")
            }
            ValidationErrorKind::Minimum { limit } => match limits("minimum", "maximum") {
                Some((low, high)) => must(format!("be between {low} and {high}")),
                None => must(format!("be at least {limit}")),
            },
            ValidationErrorKind::Maximum { limit } => match limits("minimum", "maximum") {
                Some((low, high)) => must(format!("be between {low} and {high}")),
                None => must(format!("be at most {limit}")),
            },
            ValidationErrorKind::ExclusiveMinimum { limit } => must(format!("be more than {limit}")),
            ValidationErrorKind::ExclusiveMaximum { limit } => must(format!("be less than {limit}")),
            ValidationErrorKind::Enum { options } => must(format!("be one of {options}")),
            ValidationErrorKind::Constant { expected_value } => must(format!("be {expected_value}")),
            ValidationErrorKind::Pattern { pattern } => must(format!("match {pattern}")),
            ValidationErrorKind::MinLength { limit: 1 } => format!("`{name}` must not be empty"),
            ValidationErrorKind::MinLength { limit } => must(format!("have at least {limit} characters")),
            ValidationErrorKind::MaxLength { limit } => must(format!("have at most {limit} characters")),
            ValidationErrorKind::MinItems { limit: 1 } => format!("`{name}` must not be empty"),
            ValidationErrorKind::MinItems { limit } => must(format!("have at least {limit} items")),
            ValidationErrorKind::MaxItems { limit } => must(format!("have at most {limit} items")),
            ValidationErrorKind::MultipleOf { multiple_of } => must(format!("be a multiple of {multiple_of}")),
            other => format!("`{name}` does not satisfy `{}`; it is {value}", other.keyword()),
        }
    }

    /// The schema of the value at `path`, as far as plain `properties` and `items` lead.
    fn schema_at(&self, path: &str) -> Option<&Value> {
        path.split('/').skip(1).try_fold(&self.schema, |schema, step| {
            schema.get("properties").and_then(|properties| properties.get(step)).or_else(|| schema.get("items"))
        })
    }

    fn properties_at(&self, path: &str) -> Vec<String> {
        let properties = self.schema_at(path).and_then(|schema| schema.get("properties")).and_then(Value::as_object);
        properties.map(|map| map.keys().cloned().collect()).unwrap_or_default()
    }

    fn description_at(&self, path: &str) -> Option<String> {
        let text = self.schema_at(path)?.get("description")?.as_str()?;
        Some(cut(text, 200))
    }
}

/// Returns what is wrong with the arguments `instance` under `schema`, or why the schema cannot be used.
pub(crate) fn first_violation(schema: &Value, instance: &Value) -> Option<String> {
    match Checker::compile(schema.clone()) {
        Ok(checker) => checker.first_violation(instance, Subject::Arguments),
        Err(error) => Some(format!("its schema is not valid: {error}")),
    }
}

/// Leaves out optional arguments that are null where the schema knows no null, in nested objects too: clients that name
/// every argument send it for "not given".
pub(crate) fn drop_nulls(schema: &Map<String, Value>, arguments: &mut Map<String, Value>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |name: &String| required.is_some_and(|required| required.iter().any(|required| required == name));
    let knows_no_null = |name: &String| {
        let kind = properties.get(name).and_then(|property| property.get("type")).and_then(Value::as_str);
        kind.is_some_and(|kind| kind != "null")
    };
    arguments.retain(|name, value| !value.is_null() || is_required(name) || !knows_no_null(name));
    for (name, value) in arguments {
        match (properties.get(name), value) {
            (Some(Value::Object(property)), Value::Object(inner)) => drop_nulls(property, inner),
            (Some(Value::Object(property)), Value::Array(items)) => {
                let Some(Value::Object(item)) = property.get("items") else { continue };
                items.iter_mut().filter_map(Value::as_object_mut).for_each(|inner| drop_nulls(item, inner));
            }
            _ => {}
        }
    }
}

/// Returns how many bytes of text are in a value, names included: what a call hands to a component, escapes aside.
pub(crate) fn text_bytes(value: &Map<String, Value>) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(of).sum(),
            Value::Object(map) => text_bytes(map),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
    }
    value.iter().map(|(name, value)| name.len() + of(value)).sum()
}

/// Turns `5.0` into `5` where an integer is asked for: JSON Schema sees no difference, a component's parser may.
pub(crate) fn tidy_integers(schema: &Map<String, Value>, arguments: &mut Map<String, Value>) {
    for (name, value) in arguments.iter_mut() {
        let property = schema.get("properties").and_then(|properties| properties.get(name));
        let integer = property.and_then(|property| property.get("type")).is_some_and(|kind| kind == "integer");
        if integer
            && let Value::Number(number) = &*value
            && !number.is_i64()
            && !number.is_u64()
            && let Some(float) = number.as_f64()
            && float.fract() == 0.0
            && float.abs() < 9_007_199_254_740_992.0
        {
            // In range and without a fraction, so the cast keeps the value.
            *value = Value::from(float as i64);
        }
    }
}

/// Appends bounds and defaults to the descriptions of a schema's properties: some clients drop the keywords before
/// the model sees them.
pub(crate) fn state_constraints(schema: &mut Map<String, Value>) {
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    for property in properties.values_mut().filter_map(Value::as_object_mut) {
        let mut parts = Vec::new();
        match (property.get("minimum"), property.get("maximum")) {
            (Some(low), Some(high)) => parts.push(format!("{low}-{high}")),
            (Some(low), None) => parts.push(format!("at least {low}")),
            (None, Some(high)) => parts.push(format!("at most {high}")),
            (None, None) => {}
        }
        if let Some(default) = property.get("default").filter(|default| !default.is_null()) {
            parts.push(format!("default {default}"));
        }
        if parts.is_empty() {
            continue;
        }
        let text = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let stated = format!("({})", parts.join(", "));
        let text = match text.strip_suffix('.') {
            _ if text.is_empty() => stated,
            Some(sentence) => format!("{sentence} {stated}."),
            None => format!("{text} {stated}"),
        };
        property.insert("description".to_owned(), Value::from(text));
    }
}

fn pointer(location: &str) -> String {
    location.to_owned()
}

/// `/labels/0/name` as `labels[0].name`.
fn property_name(path: &str, subject: Subject) -> String {
    let mut name = String::new();
    for step in path.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        if step.bytes().all(|b| b.is_ascii_digit()) && !step.is_empty() {
            name.push_str(&format!("[{step}]"));
        } else {
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(&step);
        }
    }
    if name.is_empty() { subject.whole().to_owned() } else { name }
}

fn type_name(kind: &Value) -> String {
    match kind.as_str() {
        Some(kind @ ("array" | "object" | "integer")) => format!("an {kind}"),
        Some(kind) => format!("a {kind}"),
        None => format!("one of {kind}"),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::String(text) => format!("{:?}", cut(text, MAX_SHOWN)),
        other => other.to_string(),
    }
}

/// Returns whether a schema marks its value as a secret, as JSON Schema's validation vocabulary does (section 9.4).
pub(crate) fn is_secret(schema: &Value) -> bool {
    schema.get("writeOnly") == Some(&Value::Bool(true))
}

/// Returns whether a schema marks its value, or anything in it, as a secret.
pub fn holds_secret(schema: &Value) -> bool {
    is_secret(schema)
        || match schema {
            Value::Object(parts) => parts.values().any(holds_secret),
            Value::Array(parts) => parts.iter().any(holds_secret),
            _ => false,
        }
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checker() -> Checker {
        Checker::compile(json!({
            "type": "object",
            "properties": {
                "environment": { "type": "string", "description": "catalogue name", "minLength": 1 },
                "vcpu_count": { "type": "integer", "minimum": 1, "maximum": 8 },
                "mode": { "type": "string", "enum": ["fast", "slow"] },
                "labels": { "type": "array", "items": { "type": "object", "properties": { "key": { "type": "string" } } } },
                "secrets": { "type": "array", "items": { "$ref": "#/$defs/secret" } },
            },
            "required": ["environment"],
            "additionalProperties": false,
            "$defs": { "secret": {
                "type": "object",
                "properties": { "value": { "type": "string", "maxLength": 4, "writeOnly": true } },
            } },
        }))
        .unwrap()
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for secrets in [json!(["hunter2"]), json!("hunter2"), json!([{ "value": "hunter2" }])] {
            let arguments = json!({ "environment": "debian:12", "secrets": secrets });
            let Value::Object(arguments) = arguments else { unreachable!() };
            let error = checker().check_arguments("vm_run", &arguments, |_| None).unwrap_err();
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
            assert!(error.message.contains("secrets"), "{error:?}");
        }
    }

    fn error(arguments: Value) -> (String, Option<String>) {
        let Value::Object(arguments) = arguments else { unreachable!() };
        let taken = |name: &str| (name == "hidden").then(|| "this profile does not offer `hidden`".to_owned());
        let error = checker().check_arguments("vm_run", &arguments, taken).unwrap_err();
        assert_eq!(error.code, "invalid_argument");
        (error.message, error.hint)
    }

    #[test]
    fn violations_name_the_argument_the_expectation_and_the_value() {
        let env = "debian:12";
        for (arguments, message) in [
            (json!({}), "vm_run: argument `environment` is missing"),
            (json!({ "environment": 5 }), "vm_run: `environment` must be a string, not 5"),
            (json!({ "environment": "" }), "vm_run: `environment` must not be empty"),
            (json!({ "environment": env, "vcpu_count": 9 }), "vm_run: `vcpu_count` must be between 1 and 8, not 9"),
            (json!({ "environment": env, "vcpu_count": "2" }), "vm_run: `vcpu_count` must be an integer, not \"2\""),
            (
                json!({ "environment": env, "mode": "medium" }),
                "vm_run: `mode` must be one of [\"fast\",\"slow\"], not \"medium\"",
            ),
            (
                json!({ "environment": env, "labels": [{ "key": 1 }] }),
                "vm_run: `labels[0].key` must be a string, not 1",
            ),
        ] {
            assert_eq!(error(arguments).0, message);
        }
    }

    #[test]
    fn unknown_arguments_get_the_nearest_name_or_the_reason() {
        let with = |name: &str| error(json!({ "environment": "e", name: true }));
        assert_eq!(
            with("vcpu_cuont"),
            ("vm_run: unknown argument `vcpu_cuont`".to_owned(), Some("did you mean `vcpu_count`?".to_owned()))
        );
        assert_eq!(with("hidden").1.unwrap(), "this profile does not offer `hidden`");
        assert!(with("allow_host_compat").1.unwrap().contains("never runs commands on the host"));
        assert_eq!(
            with("zzz").1.unwrap(),
            "its arguments: `environment`, `vcpu_count`, `mode`, `labels` and `secrets`"
        );
    }

    #[test]
    fn a_result_has_no_arguments() {
        let schema = json!({
            "properties": { "words": {} }, "required": ["words"], "additionalProperties": false, "maxProperties": 2,
        });
        let problem = |result| Checker::compile(schema.clone()).unwrap().first_violation(&result, Subject::Result);
        assert_eq!(problem(json!({})).unwrap(), "property `words` is missing");
        assert_eq!(problem(json!({ "words": 1, "b": 2 })).unwrap(), "unknown property `b`");
        let whole = "`result` does not satisfy `maxProperties`; it is an object";
        let schema = json!({ "maxProperties": 0 });
        assert_eq!(
            Checker::compile(schema).unwrap().first_violation(&json!({ "a": 1 }), Subject::Result).unwrap(),
            whole
        );
    }

    #[test]
    fn several_violations_are_named_at_once() {
        let (message, _) = error(json!({ "environment": "e", "vcpu_count": 0, "mode": 1 }));
        assert!(message.contains("`vcpu_count` must be") && message.contains("`mode` must be"), "{message}");
    }

    #[test]
    fn a_whole_float_is_an_integer() {
        let schema = json!({ "properties": { "a": { "type": "integer" }, "b": { "type": "number" } } });
        let (Value::Object(schema), Value::Object(mut arguments)) = (schema, json!({ "a": 5.0, "b": 5.0 })) else {
            unreachable!()
        };
        tidy_integers(&schema, &mut arguments);
        assert_eq!(Value::Object(arguments).to_string(), r#"{"a":5,"b":5.0}"#);
    }

    #[test]
    fn null_stands_for_an_optional_argument_that_is_not_given() {
        let schema = json!({
            "properties": {
                "a": { "type": "string" }, "b": { "type": ["string", "null"] }, "c": { "type": "string" },
                "e": { "type": "array", "items": { "properties": { "f": { "type": "integer" } } } },
                "g": { "type": "object", "additionalProperties": { "type": "string" } },
            },
            "required": ["c"],
        });
        let arguments = json!({
            "a": null, "b": null, "c": null, "d": null, "e": [{ "f": null }, null], "g": { "h": null },
        });
        let (Value::Object(schema), Value::Object(mut arguments)) = (schema, arguments) else { unreachable!() };
        drop_nulls(&schema, &mut arguments);
        assert_eq!(
            Value::Object(arguments),
            json!({ "b": null, "c": null, "d": null, "e": [{}, null], "g": { "h": null } })
        );
    }

    #[test]
    fn bounds_and_defaults_are_said_in_words_too() {
        let schema = json!({ "properties": {
            "a": { "description": "Memory in MiB.", "minimum": 256, "maximum": 32768, "default": 1024 },
            "b": { "description": "A name" },
        } });
        let Value::Object(mut schema) = schema else { unreachable!() };
        state_constraints(&mut schema);
        assert_eq!(schema["properties"]["a"]["description"], "Memory in MiB (256-32768, default 1024).");
        assert_eq!(schema["properties"]["b"]["description"], "A name");
    }

    #[test]
    fn a_pattern_that_would_backtrack_is_checked_in_linear_time() {
        let checker = Checker::compile(json!({ "properties": { "a": { "type": "string", "pattern": "^(a+)+$" } } }));
        let text = format!("{}!", "a".repeat(10_000));
        let started = std::time::Instant::now();
        assert!(checker.unwrap().first_violation(&json!({ "a": text }), Subject::Arguments).is_some());
        assert!(started.elapsed().as_secs() < 2);
    }
}
