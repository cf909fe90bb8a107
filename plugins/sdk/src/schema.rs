//! JSON Schemas that every client reads the same way.
//!
//! Clients were measured to drop tools over a `type` list, to ignore `$ref`, and to lose unknown formats. So: nested
//! schemas inlined, and on input an optional argument is "not required" instead of "or null", and every object is
//! closed. What a keyword says of an argument the host also says in its description, for all plugins.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// Returns the schema of a tool's arguments.
pub(crate) fn input_schema<T: JsonSchema>() -> Value {
    portable(root::<T>(SchemaSettings::draft2020_12().for_deserialize()), true)
}

/// Returns the schema of a tool's result.
pub(crate) fn output_schema<T: JsonSchema>() -> Value {
    portable(root::<T>(SchemaSettings::draft2020_12().for_serialize()), false)
}

fn root<T: JsonSchema>(settings: SchemaSettings) -> Value {
    let settings = settings.with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

fn portable(mut schema: Value, input: bool) -> Value {
    if let Value::Object(root) = &mut schema {
        // The name of a Rust type and the comment on it say nothing to a caller.
        root.shift_remove("title");
        root.shift_remove("description");
        if !root.contains_key("properties") {
            root.insert("properties".to_owned(), Value::Object(Map::new()));
        }
    }
    clean(&mut schema, input);
    schema
}

fn clean(schema: &mut Value, input: bool) {
    let Value::Object(object) = schema else { return };
    if input {
        without_null(object);
    }
    object.shift_remove("format");
    if object.get("default").is_some_and(Value::is_null) {
        object.shift_remove("default");
    }
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
    if input && object.get("type").is_some_and(|kind| kind == "object") && object.contains_key("properties") {
        object.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        for property in properties.values_mut() {
            clean(property, input);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(nested) = object.get_mut(key) {
            clean(nested, input);
        }
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(Value::Array(options)) = object.get_mut(key) {
            options.iter_mut().for_each(|option| clean(option, input));
        }
    }
}

/// `T or null` becomes `T`.
fn without_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(kinds)) = object.get("type") {
        let real: Vec<Value> = kinds.iter().filter(|kind| **kind != "null").cloned().collect();
        if let [only] = real.as_slice() {
            object.insert("type".to_owned(), only.clone());
        }
    }
    if let Some(Value::Array(options)) = object.get("anyOf") {
        let real: Vec<Value> =
            options.iter().filter(|option| option.get("type") != Some(&Value::from("null"))).cloned().collect();
        if let [Value::Object(only)] = real.as_slice() {
            let only = only.clone();
            object.shift_remove("anyOf");
            for (key, value) in only {
                object.entry(key).or_insert(value);
            }
        }
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;

    #[derive(Deserialize, Serialize, JsonSchema)]
    struct Sample {
        /// The
        /// name.
        name: String,
        /// How many.
        #[serde(default = "two")]
        #[schemars(range(min = 1, max = 8))]
        count: u32,
        /// Maybe.
        note: Option<String>,
        /// Ports.
        ports: Option<Vec<Port>>,
        /// How.
        mode: Option<Mode>,
    }

    #[derive(Deserialize, Serialize, JsonSchema)]
    struct Port {
        /// Its number.
        number: u16,
    }

    #[derive(Deserialize, Serialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Off,
        On,
    }

    fn two() -> u32 {
        2
    }

    #[test]
    fn an_input_schema_is_flat_and_closed() {
        let port = json!({
            "type": "object",
            "properties": { "number": { "description": "Its number.", "type": "integer", "minimum": 0, "maximum": 65535 } },
            "required": ["number"],
            "additionalProperties": false,
        });
        assert_eq!(
            input_schema::<Sample>(),
            json!({
                "type": "object",
                "properties": {
                    "name": { "description": "The name.", "type": "string" },
                    "count": { "description": "How many.", "type": "integer", "minimum": 1, "maximum": 8, "default": 2 },
                    "note": { "description": "Maybe.", "type": "string" },
                    "ports": { "description": "Ports.", "type": "array", "items": port },
                    "mode": { "description": "How.", "type": "string", "enum": ["off", "on"] },
                },
                "required": ["name"],
                "additionalProperties": false,
            })
        );
    }

    #[test]
    fn an_output_schema_keeps_null() {
        let schema = output_schema::<Sample>();
        assert_eq!(schema["properties"]["note"]["type"], json!(["string", "null"]));
        assert_eq!(schema["type"], "object");
    }
}
