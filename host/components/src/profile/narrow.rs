//! From components' tool lists to the tools callers see: `tools`, `fixed`, `default` and `hide` applied, names unique.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::amend::amend;
use super::raw::{At, Narrowing};
use super::{ResolvedComponent, ResolvedProfile};
use crate::cli::CliForm;
use crate::component::{Listing, ToolSpec, lint_tools};
use crate::diagnostic::{Diagnostic, name_list, suggestion};
use crate::tool::{Annotations, ToolDef};
use crate::validate::{first_violation, state_constraints, tidy_integers};

/// A tool and what the profile adds to each call of it.
#[derive(Clone, Debug)]
pub(crate) struct BoundTool {
    pub(crate) def: ToolDef,
    /// Index of its component in the profile.
    pub(crate) component: usize,
    /// Always passed.
    pub(crate) fixed: Map<String, Value>,
    /// Passed when the caller does not.
    pub(crate) default: Map<String, Value>,
    /// Taken away from the caller.
    pub(crate) hidden: Vec<String>,
    /// Those who take part in it, in the order of the profile.
    pub(crate) interceptors: Vec<BoundInterceptor>,
    /// The output schema as the component states it, when interceptors added to it.
    pub(crate) own_output: Option<Arc<Map<String, Value>>>,
}

/// An interceptor's part in a tool.
#[derive(Clone, Debug)]
pub(crate) struct BoundInterceptor {
    /// Index of its component in the profile.
    pub(crate) component: usize,
    /// The arguments that are its own: the tool does not see them.
    pub(crate) arguments: Vec<String>,
    /// The results that it adds.
    pub(crate) results: Vec<String>,
}

/// Binds each component's `lists` into the profile's tools. Adds what is wrong to `findings`.
pub(crate) fn bind_tools(
    profile: &ResolvedProfile,
    lists: &[Listing],
    findings: &mut Vec<Diagnostic>,
) -> Vec<BoundTool> {
    let mut bound: Vec<BoundTool> = Vec::new();
    let mut offered: Vec<String> = Vec::new();
    for (index, (component, list)) in profile.components.iter().zip(lists).enumerate() {
        let mut list = list.tools.clone();
        for finding in lint_tools(&mut list, component.scan.is_interceptor()) {
            if finding.repaired {
                tracing::debug!(component = component.name, "{} (repaired): {}", finding.message, finding.hint);
                continue;
            }
            let message = format!("[components.{}]: {}", component.name, finding.message);
            let hint = Some(finding.hint.to_owned());
            findings.push(profile.locator.finding("invalid_tool", component.line, message, hint));
        }
        offered.extend(list.iter().map(|spec| spec.name.clone()));
        for spec in picked(profile, component, list, findings) {
            let clash = bound.iter().find(|other| other.def.name == spec.name);
            if let Some(other) = clash.filter(|other| other.component != index) {
                let message = format!(
                    "tool `{}` is offered by [components.{}] and by [components.{}]",
                    spec.name, other.def.component, component.name
                );
                let hint = "pick tools with `tools = [...]` in one of them".to_owned();
                findings.push(profile.locator.finding("tool_collision", component.line, message, Some(hint)));
                continue;
            }
            bound.push(unnarrowed(spec, component, index));
        }
    }
    command_collisions(profile, &bound, findings);
    amend(profile, lists, &mut bound, findings);
    for narrowing in &profile.narrowing {
        let Some(tool) = bound.iter_mut().find(|tool| tool.def.name == narrowing.name.value) else {
            let name = &narrowing.name.value;
            let hint = match suggestion(name, bound.iter().map(|tool| tool.def.name.as_str())) {
                Some(near) => format!("did you mean [tool.{near}]?"),
                None if offered.contains(name) => "no component's `tools` picks it".to_owned(),
                None => format!("tools: {}", name_list(bound.iter().map(|tool| tool.def.name.as_str()))),
            };
            let message = format!("[tool.{name}] names no tool of this profile");
            findings.push(profile.locator.finding("unknown_tool", narrowing.name.line, message, Some(hint)));
            continue;
        };
        narrow(tool, narrowing, &mut |code, line, message, hint| {
            findings.push(profile.locator.finding(code, line, message, hint));
        });
    }
    for tool in &mut bound {
        let schema = Arc::make_mut(&mut tool.def.input_schema);
        state_constraints(schema);
    }
    bound
}

fn picked(
    profile: &ResolvedProfile,
    component: &ResolvedComponent,
    list: Vec<ToolSpec>,
    findings: &mut Vec<Diagnostic>,
) -> Vec<ToolSpec> {
    let Some(picks) = &component.tools else { return list };
    for pick in picks {
        if !list.iter().any(|spec| spec.name == *pick) {
            let names = || list.iter().map(|spec| spec.name.as_str());
            let hint = match suggestion(pick, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("it offers {}", name_list(names())),
            };
            let message = format!("[components.{}] offers no tool `{pick}`", component.name);
            findings.push(profile.locator.finding("unknown_tool", component.tools_line, message, Some(hint)));
        }
    }
    list.into_iter().filter(|spec| picks.contains(&spec.name)).collect()
}

fn command_collisions(profile: &ResolvedProfile, bound: &[BoundTool], findings: &mut Vec<Diagnostic>) {
    let mut commands: BTreeMap<&[String], &BoundTool> = BTreeMap::new();
    for tool in bound {
        let Some(cli) = &tool.def.cli else { continue };
        if let Some(other) = commands.insert(&cli.path, tool) {
            let message = format!(
                "tools `{}` and `{}` both are the command `pyro {}`",
                other.def.name,
                tool.def.name,
                cli.path.join(" ")
            );
            let line = profile.components.get(tool.component).map_or(0, |component| component.line);
            findings.push(profile.locator.finding("tool_collision", line, message, None));
        }
    }
    // A word is a command or the first of several, not both.
    for (path, tool) in &commands {
        let Some(other) = (1..path.len()).find_map(|words| commands.get(path.get(..words)?)) else { continue };
        let message = format!(
            "the command `pyro {}` of tool `{}` begins with the command of tool `{}`",
            path.join(" "),
            tool.def.name,
            other.def.name
        );
        let later = profile.components.get(tool.component.max(other.component));
        let hint = Some("give one of them another `path`".to_owned());
        findings.push(profile.locator.finding(
            "tool_collision",
            later.map_or(0, |component| component.line),
            message,
            hint,
        ));
    }
}

/// The tool as its component states it. Hints a grant rules out are not believed: `destructive` and `open_world` are
/// true only when the component holds a grant that makes them possible.
fn unnarrowed(spec: ToolSpec, component: &ResolvedComponent, index: usize) -> BoundTool {
    let cli: Option<CliForm> = spec.meta.get("cli").and_then(|text| serde_json::from_str(text).ok());
    let object = |schema: Value| match schema {
        Value::Object(object) => Some(Arc::new(object)),
        _ => None,
    };
    let read_only = !component.grants.can_change() || spec.read_only.unwrap_or(false);
    let annotations = Annotations {
        read_only,
        destructive: !read_only && component.grants.can_destroy() && spec.destructive.unwrap_or(true),
        idempotent: spec.idempotent.unwrap_or(false),
        open_world: component.grants.can_reach_out() && spec.open_world.unwrap_or(true),
    };
    BoundTool {
        def: ToolDef {
            name: spec.name,
            title: spec.title,
            description: spec.description,
            input_schema: object(spec.input_schema).unwrap_or_default(),
            output_schema: spec.output_schema.and_then(object),
            annotations,
            cli,
            component: component.name.clone(),
        },
        component: index,
        fixed: Map::new(),
        default: Map::new(),
        hidden: Vec::new(),
        interceptors: Vec::new(),
        own_output: None,
    }
}

fn narrow(
    tool: &mut BoundTool,
    narrowing: &Narrowing,
    report: &mut impl FnMut(&'static str, usize, String, Option<String>),
) {
    let name = tool.def.name.clone();
    let original = Arc::clone(&tool.def.input_schema);
    let properties = match original.get("properties") {
        Some(Value::Object(properties)) => properties.clone(),
        _ => Map::new(),
    };
    let is_required = |argument: &str| {
        original.get("required").and_then(Value::as_array).is_some_and(|r| r.iter().any(|n| n == argument))
    };
    let mut used: Vec<&str> = Vec::new();
    let usable =
        |argument: &At<String>, what: &str, report: &mut dyn FnMut(&'static str, usize, String, Option<String>)| {
            if !properties.contains_key(&argument.value) {
                let hint = match suggestion(&argument.value, properties.keys().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("its arguments: {}", name_list(properties.keys().map(String::as_str))),
                };
                let message = format!("`{what}` of [tool.{name}] names no argument `{}`", argument.value);
                report("unknown_argument", argument.line, message, Some(hint));
                return false;
            }
            true
        };
    let schema = Arc::make_mut(&mut tool.def.input_schema);
    for (argument, value) in &narrowing.fixed {
        if usable(argument, "fixed", report) && accepts(&original, argument, value, &name, report) {
            remove(schema, &argument.value);
            tool.fixed.insert(argument.value.clone(), value.clone());
            used.push(&argument.value);
        }
    }
    tidy_integers(&original, &mut tool.fixed);
    for (argument, value) in &narrowing.default {
        if used.contains(&argument.value.as_str()) {
            twice(&name, argument, report);
        } else if usable(argument, "default", report) && accepts(&original, argument, value, &name, report) {
            unrequire(schema, &argument.value);
            tool.default.insert(argument.value.clone(), value.clone());
            used.push(&argument.value);
        }
    }
    tidy_integers(&original, &mut tool.default);
    for (argument, value) in &tool.default {
        if let Some(Value::Object(property)) =
            schema.get_mut("properties").and_then(|properties| properties.get_mut(argument))
        {
            property.insert("default".to_owned(), value.clone());
        }
    }
    for argument in &narrowing.hide {
        if used.contains(&argument.value.as_str()) {
            twice(&name, argument, report);
        } else if usable(argument, "hide", report) {
            if is_required(&argument.value) {
                let message = format!("`hide` of [tool.{name}] names `{}`, which is required", argument.value);
                let hint = format!("give it a value instead: fixed = {{ {} = ... }}", argument.value);
                report("invalid_value", argument.line, message, Some(hint));
                continue;
            }
            remove(schema, &argument.value);
            tool.hidden.push(argument.value.clone());
            used.push(&argument.value);
        }
    }
    if let Some(cli) = &mut tool.def.cli {
        cli.retain_arguments(|argument| !tool.fixed.contains_key(argument) && !tool.hidden.contains(argument));
    }
}

fn twice(tool: &str, argument: &At<String>, report: &mut dyn FnMut(&'static str, usize, String, Option<String>)) {
    let message = format!("[tool.{tool}] says two things about `{}`", argument.value);
    let hint = "keep one of `fixed`, `default` and `hide`".to_owned();
    report("invalid_value", argument.line, message, Some(hint));
}

/// Checks a value against one property of a schema, with the schema's own `$defs`.
fn accepts(
    schema: &Map<String, Value>,
    argument: &At<String>,
    value: &Value,
    tool: &str,
    report: &mut dyn FnMut(&'static str, usize, String, Option<String>),
) -> bool {
    let mut one = Map::new();
    if let Some(defs) = schema.get("$defs") {
        one.insert("$defs".to_owned(), defs.clone());
    }
    let property = schema.get("properties").and_then(|properties| properties.get(&argument.value)).cloned();
    let properties: Map<String, Value> =
        [(argument.value.clone(), property.unwrap_or(Value::Bool(true)))].into_iter().collect();
    one.insert("properties".to_owned(), Value::Object(properties));
    let instance: Map<String, Value> = [(argument.value.clone(), value.clone())].into_iter().collect();
    match first_violation(&Value::Object(one), &Value::Object(instance)) {
        None => true,
        Some(problem) => {
            let message = format!("[tool.{tool}]: {problem}");
            report("invalid_value", argument.line, message, None);
            false
        }
    }
}

fn remove(schema: &mut Map<String, Value>, argument: &str) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.shift_remove(argument);
    }
    unrequire(schema, argument);
}

fn unrequire(schema: &mut Map<String, Value>, argument: &str) {
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|name| name != argument);
        if required.is_empty() {
            schema.shift_remove("required");
        }
    }
}
