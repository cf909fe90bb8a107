//! Secrets and bindings as callers pass them.

use std::collections::{BTreeMap, BTreeSet};

use pyro_plugin_guest::invalid;
use pyro_plugin_sdk::secrets::store::Source;
use pyro_plugin_sdk::{JsonSchema, ToolError};
use serde::Deserialize;

/// Bytes of a value.
const MAX_VALUE: usize = 65_536;

/// One secret of `workspace_create`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretInput {
    /// Letters, digits, `_`
    pub name: String,
    /// The value, or
    #[schemars(extend("writeOnly" = true))]
    pub value: Option<String>,
    /// a host file that holds it
    pub file_path: Option<String>,
}

/// Returns the secrets by name.
///
/// # Errors
/// `invalid_argument` for the first that cannot be.
pub fn secrets(inputs: &[SecretInput]) -> Result<Vec<(String, Source)>, ToolError> {
    let mut seen = BTreeSet::new();
    inputs
        .iter()
        .map(|input| {
            let name = name("secret name", &input.name)?;
            if !seen.insert(name.clone()) {
                return Err(invalid(format!("duplicate secret name: {name}")));
            }
            let source = source(&name, input.value.as_deref(), input.file_path.as_deref())?;
            Ok((name, source))
        })
        .collect()
}

/// Returns where a secret's value comes from.
///
/// # Errors
/// `invalid_argument` for none, both, or a value that is empty or too long. No message holds a value.
pub fn source(name: &str, value: Option<&str>, file_path: Option<&str>) -> Result<Source, ToolError> {
    match (value, file_path) {
        (Some(value), None) => match value.len() {
            1..=MAX_VALUE => Ok(Source::Value(value.to_owned())),
            length => Err(invalid(format!("secret '{name}' has a value of {length} bytes, not 1 to {MAX_VALUE}"))),
        },
        (None, Some(path)) if !path.is_empty() => Ok(Source::File(path.to_owned())),
        (None, Some(_)) => Err(invalid(format!("secret '{name}' has an empty file_path"))),
        _ => Err(invalid(format!("secret '{name}' must provide exactly one of 'value' or 'file_path'"))),
    }
}

/// Returns a secret's or a variable's name.
///
/// # Errors
/// `invalid_argument` for what does not match `^[A-Za-z_][A-Za-z0-9_]{0,63}$`.
pub fn name(what: &str, name: &str) -> Result<String, ToolError> {
    let mut bytes = name.bytes();
    let valid = name.len() <= 64
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !valid {
        return Err(invalid(format!("{what} '{name}' must match ^[A-Za-z_][A-Za-z0-9_]{{0,63}}$")));
    }
    Ok(name.to_owned())
}

/// Returns a call's bindings: secret and variable.
///
/// # Errors
/// `invalid_argument` for a name that cannot be one, `not_found` for a secret that is not among `known`.
pub fn bindings(secret_env: &BTreeMap<String, String>, known: &[String]) -> Result<Vec<(String, String)>, ToolError> {
    secret_env
        .iter()
        .map(|(secret, variable)| {
            let variable = name("environment variable name", variable)?;
            if !known.contains(secret) {
                return Err(ToolError::new(
                    "not_found",
                    format!("secret_env references unknown workspace secret '{secret}'"),
                )
                .with_hint(match known {
                    [] => "the workspace has no secrets".to_owned(),
                    known => format!("the workspace has {}", known.join(", ")),
                }));
            }
            Ok((secret.clone(), variable))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, value: Option<&str>, file_path: Option<&str>) -> SecretInput {
        SecretInput { name: name.to_owned(), value: value.map(str::to_owned), file_path: file_path.map(str::to_owned) }
    }

    fn refused(inputs: &[SecretInput]) -> String {
        secrets(inputs).unwrap_err().message
    }

    #[test]
    fn a_secret_has_one_source() {
        let read = secrets(&[input("A", Some("x"), None), input("_b1", None, Some("/run/b"))]).unwrap();
        assert!(matches!(&read[0], (name, Source::Value(value)) if name == "A" && value == "x"));
        assert!(matches!(&read[1], (name, Source::File(path)) if name == "_b1" && path == "/run/b"));
        let either = "secret 'A' must provide exactly one of 'value' or 'file_path'";
        assert_eq!(refused(&[input("A", None, None)]), either);
        assert_eq!(refused(&[input("A", Some("x"), Some("/y"))]), either);
    }

    #[test]
    fn names_and_values_are_bounded_and_no_value_is_told() {
        assert_eq!(refused(&[input("A", Some("1"), None), input("A", Some("2"), None)]), "duplicate secret name: A");
        for bad in ["", "1a", "a-b", "ä", &"a".repeat(65)] {
            assert!(refused(&[input(bad, Some("hunter2"), None)]).contains("must match"), "{bad}");
        }
        assert_eq!(refused(&[input("A", Some(""), None)]), "secret 'A' has a value of 0 bytes, not 1 to 65536");
        let long = refused(&[input("A", Some(&"z".repeat(65_537)), None)]);
        assert!(long.contains("65537 bytes") && !long.contains("zz"));
    }

    #[test]
    fn a_binding_names_a_secret_that_is_there() {
        let env = |secret: &str, variable: &str| BTreeMap::from([(secret.to_owned(), variable.to_owned())]);
        let known = ["TOKEN".to_owned()];
        assert_eq!(bindings(&env("TOKEN", "GH_TOKEN"), &known), Ok(vec![("TOKEN".to_owned(), "GH_TOKEN".to_owned())]));
        let unknown = bindings(&env("KEY", "KEY"), &known).unwrap_err();
        assert_eq!(unknown.message, "secret_env references unknown workspace secret 'KEY'");
        assert_eq!(unknown.hint.as_deref(), Some("the workspace has TOKEN"));
        assert!(bindings(&env("TOKEN", "A=B"), &known).unwrap_err().message.contains("must match"));
    }
}
