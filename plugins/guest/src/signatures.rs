//! A group's tools at a glance, for the tests of the groups: what a caller may pass.

use serde_json::Value;

/// Returns one line per tool of a `pyro:manifest` section, as `name(required*, optional, other=default)`.
///
/// A manifest that cannot be read gives no lines.
pub fn signatures(manifest: &str) -> Vec<String> {
    let manifest: Value = serde_json::from_str(manifest).unwrap_or_default();
    let tools = manifest.get("tools").and_then(Value::as_array).cloned().unwrap_or_default();
    tools.iter().map(signature).collect()
}

fn signature(tool: &Value) -> String {
    let schema = tool.get("input_schema").cloned().unwrap_or_default();
    let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let arguments: Vec<String> = properties
        .iter()
        .map(|(name, property)| {
            if required.iter().any(|known| known.as_str() == Some(name)) {
                return format!("{name}*");
            }
            match property.get("default") {
                Some(default) => format!("{name}={default}"),
                None => name.clone(),
            }
        })
        .collect();
    format!("{}({})", tool.get("name").and_then(Value::as_str).unwrap_or_default(), arguments.join(", "))
}

#[cfg(test)]
mod tests {
    use super::signatures;

    #[test]
    fn a_signature_shows_what_may_be_passed() {
        let manifest = r#"{"manifest":1,"tools":[{"name":"t","input_schema":{"required":["a"],
            "properties":{"a":{},"b":{"default":3},"c":{}}}}]}"#;
        assert_eq!(signatures(manifest), ["t(a*, b=3, c)"]);
        assert!(signatures("{").is_empty());
    }
}
