//! What interceptors add to other components' tools: known before anything runs, from their lists alone.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::narrow::{BoundInterceptor, BoundTool};
use super::{ResolvedComponent, ResolvedProfile};
use crate::cli::AddedFlags;
use crate::component::{AmendmentSpec, Listing, lint_amended, lint_amendments};
use crate::diagnostic::Diagnostic;

/// Adds each interceptor's properties to the tools that are there, in the order of the profile, those last that may answer
/// in the tool's place: what they start takes with it what the others have bound by then, as secrets. A tool that the
/// profile does not have is not an error: an interceptor serves more profiles than one.
pub(super) fn amend(
    profile: &ResolvedProfile,
    lists: &[Listing],
    tools: &mut [BoundTool],
    findings: &mut Vec<Diagnostic>,
) {
    let mut touched: Vec<String> = Vec::new();
    let mut all: Vec<(usize, &ResolvedComponent, AmendmentSpec)> = Vec::new();
    let mut report = |component: &ResolvedComponent, code, message: String, hint: &str| {
        let message = format!("[components.{}]: {message}", component.name);
        findings.push(profile.locator.finding(code, component.line, message, Some(hint.to_owned())));
    };
    for (index, (component, list)) in profile.components.iter().zip(lists).enumerate() {
        let mut amendments = list.amendments.clone();
        for finding in lint_amendments(&mut amendments) {
            if finding.repaired {
                tracing::debug!(component = component.name, "{} (repaired): {}", finding.message, finding.hint);
            } else {
                report(component, "invalid_tool", finding.message, finding.hint);
            }
        }
        all.extend(amendments.into_iter().map(|amendment| (index, component, amendment)));
    }
    all.sort_by_key(|(_, _, amendment)| amendment.optional_results().is_some_and(|results| !results.is_empty()));
    for (index, component, amendment) in all {
        let Some(tool) = tools.iter_mut().find(|tool| tool.def.name == amendment.tool) else { continue };
        match add(profile, component, index, tool, amendment) {
            Ok(()) => touched.push(tool.def.name.clone()),
            Err((message, hint)) => report(component, "tool_collision", message, hint),
        }
    }
    for tool in tools.iter().filter(|tool| touched.contains(&tool.def.name)) {
        let line = profile.components.get(tool.component).map_or(0, |component| component.line);
        for finding in lint_amended(&tool.def.name, &tool.def.input_schema, tool.def.output_schema.as_deref()) {
            if !finding.repaired {
                let hint = Some(finding.hint.to_owned());
                findings.push(profile.locator.finding("invalid_tool", line, finding.message, hint));
            }
        }
    }
}

/// Adds one amendment to its tool, or says what stands against it.
fn add(
    profile: &ResolvedProfile,
    component: &ResolvedComponent,
    index: usize,
    tool: &mut BoundTool,
    amendment: AmendmentSpec,
) -> Result<(), (String, &'static str)> {
    let name = tool.def.name.clone();
    let clash = |what: &str, property: &str| {
        let has = |other: &&BoundInterceptor| other.arguments.iter().chain(&other.results).any(|name| name == property);
        let holder = tool.interceptors.iter().find(has).map_or(tool.component, |other| other.component);
        let message = format!(
            "{what} `{property}` of tool `{name}` comes from [components.{}] and from [components.{}]",
            profile.components.get(holder).map_or("", |component| component.name.as_str()),
            component.name
        );
        (message, "leave one of the two components out")
    };
    let mut input = Map::clone(&tool.def.input_schema);
    for (property, schema) in &amendment.input_properties {
        if !insert(&mut input, property, schema) {
            return Err(clash("argument", property));
        }
    }
    if !amendment.required.is_empty() {
        let names = input.entry("required").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(names) = names {
            names.extend(amendment.required.iter().map(|name| Value::from(name.as_str())));
        }
    }
    if !amendment.output_properties.is_empty() {
        let Some(stated) = tool.def.output_schema.clone() else {
            let message = format!("adds results to tool `{name}`, which states no output schema");
            return Err((message, "give the tool an output schema, or add no results"));
        };
        let mut output = Map::clone(&stated);
        for (property, schema) in &amendment.output_properties {
            if !insert(&mut output, property, schema) {
                return Err(clash("result", property));
            }
        }
        tool.own_output.get_or_insert(stated);
        tool.def.output_schema = Some(Arc::new(output));
    }
    let optional = amendment.optional_results().unwrap_or_default();
    if !optional.is_empty()
        && let Some(stated) = tool.def.output_schema.clone()
    {
        let mut output = Map::clone(&stated);
        if let Some(Value::Array(names)) = output.get_mut("required") {
            names.retain(|name| !optional.iter().any(|optional| name == optional));
        }
        // The tool itself still returns all of them.
        tool.own_output.get_or_insert(stated);
        tool.def.output_schema = Some(Arc::new(output));
    }
    let added = amendment.meta.get("cli").and_then(|text| AddedFlags::read(text));
    if let (Some(cli), Some(added)) = (&mut tool.def.cli, added) {
        if let Some(flag) = added.flags.iter().find(|flag| cli.flags.iter().any(|other| other.name == flag.name)) {
            return Err(clash("flag", &format!("--{}", flag.name)));
        }
        cli.flags.extend(added.flags);
        cli.answers.extend(added.answer);
    }
    tool.def.input_schema = Arc::new(input);
    let grants = &component.grants;
    tool.def.annotations.open_world |= grants.can_reach_out() && !tool.def.annotations.read_only;
    tool.interceptors.push(BoundInterceptor {
        component: index,
        arguments: amendment.input_properties.keys().cloned().collect(),
        results: amendment.output_properties.keys().cloned().collect(),
    });
    Ok(())
}

/// Adds a property to a schema; false when it was there.
fn insert(schema: &mut Map<String, Value>, name: &str, property: &Value) -> bool {
    match schema.entry("properties").or_insert_with(|| Value::Object(Map::new())) {
        Value::Object(properties) => properties.insert(name.to_owned(), property.clone()).is_none(),
        _ => false,
    }
}
