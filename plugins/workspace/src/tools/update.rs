//! `workspace_update`.

use std::collections::BTreeMap;

use pyro_plugin_guest::{invalid, open};
use pyro_plugin_sdk::vm::workspaces::{Update, WorkspaceInfo};
use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Deserialize;

use crate::shape::{Workspace, label_key, labels, name};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// New name
    pub name: Option<String>,
    /// Remove the name
    #[serde(default)]
    pub clear_name: bool,
    /// Set or replaced
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Keys removed
    #[serde(default)]
    pub clear_labels: Vec<String>,
    /// New lifetime from now
    #[schemars(range(min = 60, max = 3600))]
    pub ttl_seconds: Option<u32>,
}

/// Changes what a workspace is called and how long it lives.
pub struct WorkspaceUpdate;

impl Tool for WorkspaceUpdate {
    const NAME: &'static str = "workspace_update";
    const DESCRIPTION: &'static str = "Changes a workspace's name, labels or lifetime.";
    const HINTS: Hints = Hints { idempotent: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Workspace;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "update"],
            positionals: vec!["workspace_id"],
            flags: vec![
                Flag::plain("label", "labels").value_name("KEY=VALUE").help("A label to set; may be repeated"),
                Flag::plain("clear-label", "clear_labels").value_name("KEY").help("A label to remove; may be repeated"),
            ],
            human: Some(Human::fields(&["workspace_id", "name", "labels", "expires_at"])),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Workspace, ToolError> {
        let workspace = open(&arguments.workspace_id)?;
        let change = change(&arguments, &workspace.info()?)?;
        workspace.update(&change)?;
        Ok(workspace.info()?.into())
    }
}

/// What differs from what is.
fn change(arguments: &Arguments, info: &WorkspaceInfo) -> Result<Update, ToolError> {
    if arguments.name.is_some() && arguments.clear_name {
        return Err(invalid("name and clear_name cannot be used together"));
    }
    let name = match &arguments.name {
        Some(text) => Some(Some(name(text)?)),
        None => arguments.clear_name.then_some(None),
    };
    let change = Update {
        name: name.filter(|name| *name != info.name),
        clear_labels: arguments.clear_labels.iter().map(|key| label_key(key)).collect::<Result<_, _>>()?,
        set_labels: labels(&arguments.labels)?,
        ttl_seconds: arguments.ttl_seconds,
    };
    let mut after: BTreeMap<&str, &str> =
        info.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let before = after.clone();
    after.extend(change.set_labels.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    after.retain(|key, _| !change.clear_labels.iter().any(|cleared| cleared == key));
    if change.name.is_none() && change.ttl_seconds.is_none() && after == before {
        return Err(invalid("workspace update requested no effective metadata change"));
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> WorkspaceInfo {
        WorkspaceInfo {
            id: "w".into(),
            name: Some("old".into()),
            labels: vec![("a".into(), "1".into())],
            environment: String::new(),
            environment_version: String::new(),
            vcpu_count: 1,
            mem_mib: 1,
            ttl_seconds: 60,
            created_at: 0.0,
            last_activity_at: 0.0,
            expires_at: 0.0,
            state: String::new(),
            execution_mode: String::new(),
            seed_mode: String::new(),
            seed_source: None,
            seed_entry_count: 0,
            seed_bytes: 0,
            command_count: 0,
            last_command: None,
            reset_count: 0,
            last_reset_at: None,
            service_count: 0,
            running_service_count: 0,
            meta: Vec::new(),
        }
    }

    fn of(arguments: Arguments) -> Result<Update, String> {
        change(&arguments, &info()).map_err(|error| error.message)
    }

    #[test]
    fn only_what_differs_is_changed() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let named = of(Arguments { name: Some(" new ".into()), ..Arguments::default() }).unwrap();
        assert_eq!(named.name, Some(Some("new".into())));
        let cleared = of(Arguments { clear_name: true, ..Arguments::default() }).unwrap();
        assert_eq!(cleared.name, Some(None));
        let labelled = of(Arguments { labels: BTreeMap::from([pair("b", "2")]), ..Arguments::default() }).unwrap();
        assert_eq!(labelled.set_labels, [pair("b", "2")]);
        assert_eq!(of(Arguments { ttl_seconds: Some(60), ..Arguments::default() }).unwrap().ttl_seconds, Some(60));
    }

    #[test]
    fn nothing_to_do_is_an_error() {
        let pair = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let none = "workspace update requested no effective metadata change";
        for arguments in [
            Arguments::default(),
            Arguments { name: Some("old".into()), ..Arguments::default() },
            Arguments { labels: pair("a", "1"), ..Arguments::default() },
            Arguments { clear_labels: vec!["z".into()], ..Arguments::default() },
            Arguments { labels: pair("z", "1"), clear_labels: vec!["z".into()], ..Arguments::default() },
        ] {
            assert_eq!(of(arguments).unwrap_err(), none);
        }
        let both = Arguments { name: Some("x".into()), clear_name: true, ..Arguments::default() };
        assert!(of(both).unwrap_err().contains("together"));
    }
}
