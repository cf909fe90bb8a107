//! A loaded profile: its tools, and the one path into them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, watch};

use crate::component::{Listing, SCHEMA_HINT};
use crate::diagnostic::{Diagnostic, LoadError, name_list, suggestion};
use crate::error::ToolError;
use crate::profile::{BoundTool, GrantSet, ProfileDescription, ResolvedComponent, ResolvedProfile, bind_tools};
use crate::runtime::{
    AotCache, CallRequest, CallScope, HostAccess, Prepared, after, argument_bytes, before, call, config_json, prepare,
    runtime,
};
use crate::tool::{CallOptions, ToolDef, ToolOutcome};
use crate::validate::{Checker, Subject, drop_nulls, is_secret, text_bytes, tidy_integers};

/// Calls at once when the profile says nothing; more wait for their turn.
pub const DEFAULT_MAX_CALLS: u32 = 32;

/// What components are given of this host.
#[derive(Clone, Debug)]
pub struct HostServices {
    /// Behind `pyro:vm`.
    pub engine: pyro_engine::Engine,
    /// Directory for compiled code; made with mode 0700 when missing. It can be deleted at any time.
    pub aot_cache_dir: PathBuf,
    /// Directory for what is remembered of compiled code: its digests. Must be writable by nobody else.
    pub aot_state_dir: PathBuf,
}

/// A profile whose tools can be listed and called. Cheap to clone.
#[derive(Clone)]
pub struct Toolbox {
    shared: Arc<Shared>,
}

struct Shared {
    profile: ResolvedProfile,
    tools: Vec<ToolDef>,
    bound: Vec<ToolSlot>,
    components: Vec<ComponentSlot>,
    calls: Semaphore,
    services: HostServices,
    access: Arc<HostAccess>,
}

/// A tool and its schemas, compiled on first use.
struct ToolSlot {
    bound: BoundTool,
    arguments: OnceLock<Result<Checker, String>>,
    result: OnceLock<Result<Checker, String>>,
    /// Of the tool's own output schema, when interceptors added to it.
    own_result: OnceLock<Result<Checker, String>>,
}

/// A component and its compiled code, made once, by a thread of its own.
struct ComponentSlot {
    name: Arc<str>,
    grants: Arc<GrantSet>,
    config: Arc<str>,
    prepared: watch::Sender<Option<Result<Arc<Prepared>, ToolError>>>,
    started: Mutex<bool>,
}

impl Toolbox {
    /// Makes a profile's tools callable.
    ///
    /// Runs no component code and compiles nothing when every component carries its tool list (`pyro:manifest`); a
    /// component without one is compiled and asked, once per digest.
    ///
    /// # Errors
    /// Everything that is wrong with the components' tool lists or with `[tool.NAME]`.
    pub fn load(profile: &ResolvedProfile, services: HostServices) -> Result<Toolbox, LoadError> {
        let mut findings = Vec::new();
        let mut lists = Vec::with_capacity(profile.components.len());
        let mut components = Vec::with_capacity(profile.components.len());
        for component in &profile.components {
            let slot = ComponentSlot::new(component);
            match listed(component, &services, &slot) {
                Ok(list) => lists.push(list),
                Err(error) => {
                    let message = format!("[components.{}]: {}", component.name, error.message);
                    let stderr = error.details.get("stderr").and_then(Value::as_str);
                    let hint = match (error.hint, stderr) {
                        (Some(hint), Some(text)) => Some(format!("{hint}\nits last words: {}", text.trim_end())),
                        (hint, _) => hint,
                    };
                    let report = |code| profile.locator.finding(code, component.line, message, hint);
                    findings.push(if error.code == "internal" {
                        report("internal")
                    } else {
                        report("invalid_component")
                    });
                    lists.push(Listing::default());
                }
            }
            components.push(slot);
        }
        if !findings.is_empty() {
            // Without every list, what follows would complain about tools that are only not known.
            return Err(LoadError::new(findings));
        }
        let bound = bind_tools(profile, &lists, &mut findings);
        if !findings.is_empty() {
            return Err(LoadError::new(findings));
        }
        let bound: Vec<ToolSlot> = bound.into_iter().map(ToolSlot::new).collect();
        check_schemas(profile, &bound, &mut findings);
        if !findings.is_empty() {
            return Err(LoadError::new(findings));
        }
        let calls = profile.host.max_calls.unwrap_or(DEFAULT_MAX_CALLS) as usize;
        let shared = Shared {
            profile: profile.clone(),
            tools: bound.iter().map(|slot| slot.bound.def.clone()).collect(),
            bound,
            components,
            calls: Semaphore::new(calls),
            access: Arc::new(HostAccess::new(services.engine.clone(), &profile.host)),
            services,
        };
        Ok(Toolbox { shared: Arc::new(shared) })
    }

    /// Starts compiling, on threads of its own, what is not compiled yet. Calls wait for it; so does nobody else.
    pub fn warm(&self) {
        for index in 0..self.shared.components.len() {
            self.start_preparing(index);
        }
    }

    /// Returns the profile.
    pub fn profile(&self) -> &ResolvedProfile {
        &self.shared.profile
    }

    /// Returns everything the profile amounts to.
    pub fn describe(&self) -> ProfileDescription {
        self.shared.profile.describe_with(self.tools())
    }

    /// Returns the tools, in the order of the profile and then of each component.
    pub fn tools(&self) -> &[ToolDef] {
        &self.shared.tools
    }

    /// Returns one tool.
    pub fn tool(&self, name: &str) -> Option<&ToolDef> {
        self.tools().iter().find(|tool| tool.name == name)
    }

    /// Calls a tool with typed arguments and a typed result, which need have only the properties that the caller uses.
    ///
    /// # Errors
    /// As [`Toolbox::call`]; `invalid_argument` when the arguments are no JSON object, `plugin_invalid` when the result is
    /// not an `R`. A result that the tool itself calls a failure is `plugin_error`.
    pub async fn call_as<R: DeserializeOwned>(&self, name: &str, arguments: &impl Serialize) -> Result<R, ToolError> {
        let Ok(Value::Object(arguments)) = serde_json::to_value(arguments) else {
            return Err(ToolError::new("invalid_argument", format!("the arguments of `{name}` are no JSON object")));
        };
        let outcome = self.call(name, arguments, CallOptions::default()).await?;
        let result = Value::Object(outcome.structured.unwrap_or_default());
        if outcome.is_error {
            return Err(ToolError::new("plugin_error", format!("`{name}` failed: {result}")));
        }
        serde_json::from_value(result)
            .map_err(|error| ToolError::new("plugin_invalid", format!("the result of `{name}` is another: {error}")))
    }

    /// Calls a tool in a fresh instance of its component. Must run in a tokio runtime. Dropping the future cancels:
    /// the instance, its commands and its ephemeral machines end with it.
    ///
    /// # Errors
    /// See [`ToolError::code`].
    pub async fn call(
        &self,
        name: &str,
        arguments: Map<String, Value>,
        options: CallOptions,
    ) -> Result<ToolOutcome, ToolError> {
        let shared = &*self.shared;
        let slot = shared.bound.iter().find(|slot| slot.bound.def.name == name).ok_or_else(|| self.unknown(name))?;
        self.check_size(slot, &arguments)?;
        let mut arguments = slot.arguments(arguments)?;
        let _turn = shared.calls.acquire().await.map_err(|_| ToolError::new("internal", "the toolbox was closed"))?;
        let scope = CallScope::new(options);
        self.hide_secrets(slot, &mut arguments, &scope);
        let mut passed = 0;
        let mut answered = None;
        for interceptor in &slot.bound.interceptors {
            let outcome = self
                .in_component(interceptor.component, name, &arguments, async |prepared, request| {
                    before(prepared, request, &scope).await
                })
                .await?;
            if let Some(outcome) = outcome {
                slot.check_result(&outcome, self.name_of(interceptor.component))?;
                answered = Some(outcome);
                break;
            }
            passed += 1;
        }
        let mut outcome = match answered {
            Some(outcome) => outcome,
            None => {
                let own = slot.own_arguments(&arguments);
                let outcome = self
                    .in_component(slot.bound.component, name, &own, async |prepared, request| {
                        call(prepared, request, &scope).await
                    })
                    .await?;
                slot.check_own_result(&outcome)?;
                outcome
            }
        };
        for interceptor in slot.bound.interceptors.iter().take(passed).rev() {
            let replaced = self
                .in_component(interceptor.component, name, &arguments, async |prepared, request| {
                    after(prepared, request, &outcome, &scope).await
                })
                .await?;
            if let Some(replaced) = replaced {
                slot.check_result(&replaced, self.name_of(interceptor.component))?;
                outcome = replaced;
            }
        }
        Ok(outcome)
    }

    /// Refuses what the component could not hand on to the host: it would end in the middle of its work.
    fn check_size(&self, slot: &ToolSlot, arguments: &Map<String, Value>) -> Result<(), ToolError> {
        let component = self.shared.profile.components.get(slot.bound.component);
        let Some(most) = component.map(|component| argument_bytes(&component.limits)) else { return Ok(()) };
        let bytes = text_bytes(arguments);
        if bytes <= most {
            return Ok(());
        }
        let tool = &slot.bound.def.name;
        Err(ToolError::new("invalid_argument", format!("{tool}: the arguments have {bytes} bytes, more than {most}"))
            .with_hint("pass less at once; the profile's `limits = { output_bytes = ... }` decides this"))
    }

    /// Takes the values of secrets out of a call's arguments: no component sees them. What stands in their place can only
    /// be handed to `pyro:secrets`, which knows what it stands for. An argument holds such values where the schema says
    /// `writeOnly` and the component that brought it may keep secrets.
    fn hide_secrets(&self, slot: &ToolSlot, arguments: &mut Map<String, Value>, scope: &CallScope) {
        let whole = &slot.bound.def.input_schema;
        let properties = whole.get("properties").and_then(Value::as_object);
        for (name, value) in arguments {
            let of = slot.bound.interceptors.iter().find(|interceptor| interceptor.arguments.contains(name));
            let component = of.map_or(slot.bound.component, |interceptor| interceptor.component);
            let keeps =
                self.shared.profile.components.get(component).is_some_and(|known| known.grants.secrets.is_some());
            if keeps && let Some(schema) = properties.and_then(|properties| properties.get(name)) {
                hide(whole, schema, value, &mut |text| scope.hide(text));
            }
        }
    }

    /// Does something in a component, compiled and with all that a call of it needs.
    async fn in_component<T>(
        &self,
        index: usize,
        tool: &str,
        arguments: &Map<String, Value>,
        what: impl AsyncFnOnce(&Prepared, CallRequest<'_>) -> Result<T, ToolError>,
    ) -> Result<T, ToolError> {
        let shared = &*self.shared;
        let prepared = self.prepared(index).await?;
        let gone = || ToolError::new("internal", "a tool without its component");
        let component = shared.components.get(index).ok_or_else(gone)?;
        let resolved = shared.profile.components.get(index).ok_or_else(gone)?;
        let request = CallRequest {
            component: &component.name,
            limits: &resolved.limits,
            grants: &component.grants,
            config: &component.config,
            access: &shared.access,
            tool,
            arguments,
        };
        what(&prepared, request).await
    }

    fn name_of(&self, component: usize) -> &str {
        self.shared.components.get(component).map_or("", |component| &component.name)
    }

    fn unknown(&self, name: &str) -> ToolError {
        let names = || self.tools().iter().map(|tool| tool.name.as_str());
        let shown: String = name.chars().take(64).collect();
        ToolError::new("unknown_tool", format!("unknown tool `{shown}`")).with_hint(match suggestion(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("tools: {}", name_list(names())),
        })
    }

    /// Starts the thread that prepares a component, unless it was started before.
    fn start_preparing(&self, index: usize) {
        let Some(slot) = self.shared.components.get(index) else { return };
        let mut started = slot.started.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *started, true) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("pyro-compile".to_owned()).spawn(move || {
            let (Some(slot), Some(component)) = (shared.components.get(index), shared.profile.components.get(index))
            else {
                return;
            };
            // A panic while compiling must not leave callers waiting.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                prepare(component, &shared.services.cache()?)
            }));
            let result = result.unwrap_or_else(|_| Err(ToolError::new("internal", "compiling a component panicked")));
            slot.prepared.send_replace(Some(result.map(Arc::new)));
        });
        if let Err(error) = thread {
            // Let the next call try again.
            *started = false;
            let message = format!("cannot start a thread: {error}");
            slot.prepared.send_replace(Some(Err(ToolError::new("internal", message).with_retryable(true))));
        }
    }

    async fn prepared(&self, index: usize) -> Result<Arc<Prepared>, ToolError> {
        let gone = || ToolError::new("internal", "a tool without its component");
        let slot = self.shared.components.get(index).ok_or_else(gone)?;
        if let Some(Ok(prepared)) = &*slot.prepared.borrow() {
            return Ok(Arc::clone(prepared));
        }
        self.start_preparing(index);
        let mut watched = slot.prepared.subscribe();
        let ready = watched.wait_for(Option::is_some).await.map_err(|_| gone())?;
        ready.clone().unwrap_or_else(|| Err(gone()))
    }
}

/// Returns what a component lists: as its bytes state it, as it answered before, or as it answers now.
fn listed(component: &ResolvedComponent, services: &HostServices, slot: &ComponentSlot) -> Result<Listing, ToolError> {
    if let Some(listing) = &component.scan.listing {
        return Ok(listing.clone());
    }
    let cache = services.cache()?;
    if let Some(listing) = cache.listing(component.digest.trim_start_matches("sha256:")) {
        return Ok(listing);
    }
    let prepared = prepare(component, &cache)?;
    let listing = Listing::clone(&prepared.listing);
    *slot.started.lock().unwrap_or_else(PoisonError::into_inner) = true;
    slot.prepared.send_replace(Some(Ok(Arc::new(prepared))));
    Ok(listing)
}

/// Refuses schemas that no call could be checked against. Those of the built-in components are left for their first
/// call: a profile has up to a hundred of them, a command needs one, and a test compiles them all.
fn check_schemas(profile: &ResolvedProfile, tools: &[ToolSlot], findings: &mut Vec<Diagnostic>) {
    for slot in tools {
        // What its interceptors add to a tool is in the same schemas.
        let parts = slot.bound.interceptors.iter().map(|interceptor| interceptor.component);
        let mut parts = std::iter::once(slot.bound.component).chain(parts);
        let foreign = parts.find_map(|index| profile.components.get(index).filter(|part| !part.bytes.is_builtin()));
        let Some(component) = foreign else { continue };
        let name = &slot.bound.def.name;
        for (what, error) in slot.unusable_schemas() {
            let message =
                format!("[components.{}]: tool `{name}` has an {what} that is no JSON Schema: {error}", component.name);
            let hint = Some(SCHEMA_HINT.to_owned());
            findings.push(profile.locator.finding("invalid_tool", component.line, message, hint));
        }
    }
}

impl HostServices {
    fn cache(&self) -> Result<AotCache, ToolError> {
        let runtime = runtime().map_err(|message| ToolError::new("internal", message))?;
        Ok(AotCache::new(&self.aot_cache_dir, &self.aot_state_dir, &runtime.engine))
    }
}

impl ComponentSlot {
    fn new(component: &ResolvedComponent) -> ComponentSlot {
        ComponentSlot {
            name: Arc::from(component.name.as_str()),
            grants: Arc::new(component.grants.clone()),
            config: config_json(&component.config),
            prepared: watch::Sender::new(None),
            started: Mutex::new(false),
        }
    }
}

impl ToolSlot {
    fn new(bound: BoundTool) -> ToolSlot {
        ToolSlot { bound, arguments: OnceLock::new(), result: OnceLock::new(), own_result: OnceLock::new() }
    }

    /// Compiles all schemas, for the calls to come too, and returns which cannot be and why.
    fn unusable_schemas(&self) -> Vec<(&'static str, &String)> {
        let def = &self.bound.def;
        let schemas = [
            ("input schema", Some(&def.input_schema), &self.arguments),
            ("output schema", def.output_schema.as_ref(), &self.result),
            ("output schema", self.bound.own_output.as_ref(), &self.own_result),
        ];
        let compiled = schemas.into_iter().filter_map(|(what, schema, checker)| {
            let schema = schema?;
            Some((what, checker.get_or_init(|| compile(schema)).as_ref().err()?))
        });
        compiled.collect()
    }

    /// Checks a caller's arguments and adds what the profile adds.
    fn arguments(&self, mut arguments: Map<String, Value>) -> Result<Map<String, Value>, ToolError> {
        let def = &self.bound.def;
        let checker = self
            .arguments
            .get_or_init(|| compile(&def.input_schema))
            .as_ref()
            .map_err(|error| self.invalid(format!("the input schema of `{}` cannot be used: {error}", def.name)))?;
        drop_nulls(&def.input_schema, &mut arguments);
        checker.check_arguments(&def.name, &arguments, |argument| {
            if let Some(value) = self.bound.fixed.get(argument) {
                return Some(format!("leave it out: this profile fixes `{argument}` to {value}"));
            }
            let hidden = self.bound.hidden.iter().any(|hidden| hidden == argument);
            hidden.then(|| format!("leave it out: this profile does not offer `{argument}`"))
        })?;
        tidy_integers(&def.input_schema, &mut arguments);
        for (name, value) in &self.bound.default {
            if !arguments.contains_key(name) {
                arguments.insert(name.clone(), value.clone());
            }
        }
        for (name, value) in &self.bound.fixed {
            arguments.insert(name.clone(), value.clone());
        }
        Ok(arguments)
    }

    /// The arguments that the tool sees: all but those of its interceptors.
    fn own_arguments(&self, arguments: &Map<String, Value>) -> Map<String, Value> {
        let mut own = arguments.clone();
        for name in self.bound.interceptors.iter().flat_map(|interceptor| &interceptor.arguments) {
            own.shift_remove(name);
        }
        own
    }

    /// Checks the tool's result against its own schema, before interceptors have added to it.
    fn check_own_result(&self, outcome: &ToolOutcome) -> Result<(), ToolError> {
        match &self.bound.own_output {
            None => self.check_result(outcome, &self.bound.def.component),
            Some(schema) => self.check(outcome, schema, &self.own_result, &self.bound.def.component),
        }
    }

    /// Checks a result that `component` gave against the schema that callers see.
    fn check_result(&self, outcome: &ToolOutcome, component: &str) -> Result<(), ToolError> {
        match &self.bound.def.output_schema {
            None => Ok(()),
            Some(schema) => self.check(outcome, schema, &self.result, component),
        }
    }

    fn check(
        &self,
        outcome: &ToolOutcome,
        schema: &Map<String, Value>,
        checker: &OnceLock<Result<Checker, String>>,
        component: &str,
    ) -> Result<(), ToolError> {
        if outcome.is_error {
            return Ok(());
        }
        let name = &self.bound.def.name;
        let invalid = |message: String| fault(component, message);
        let checker = checker
            .get_or_init(|| compile(schema))
            .as_ref()
            .map_err(|error| invalid(format!("the output schema of `{name}` cannot be used: {error}")))?;
        let Some(structured) = &outcome.structured else {
            return Err(invalid(format!("`{name}` returned no structured result although it has a schema")));
        };
        match checker.first_violation(&Value::Object(structured.clone()), Subject::Result) {
            None => Ok(()),
            Some(problem) => Err(invalid(format!("`{name}` returned what its output schema rules out: {problem}"))),
        }
    }

    fn invalid(&self, message: String) -> ToolError {
        fault(&self.bound.def.component, message)
    }
}

/// Replaces the texts that `schema`, a part of `whole`, calls secret.
fn hide(whole: &Map<String, Value>, schema: &Value, value: &mut Value, replace: &mut impl FnMut(String) -> String) {
    // References lead to `$defs` only, and a component is not loaded whose do not.
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix("#/$defs/"));
    let schema = name.and_then(|name| whole.get("$defs")?.get(name)).unwrap_or(schema);
    match value {
        Value::String(text) if is_secret(schema) => {
            *text = replace(std::mem::take(text));
        }
        Value::Object(object) => {
            for (name, value) in object {
                let known = schema.get("properties").and_then(|properties| properties.get(name));
                if let Some(schema) = known.or_else(|| schema.get("additionalProperties")) {
                    hide(whole, schema, value, replace);
                }
            }
        }
        Value::Array(items) => {
            for value in items {
                if let Some(schema) = schema.get("items") {
                    hide(whole, schema, value, replace);
                }
            }
        }
        _ => {}
    }
}

/// A component that broke its word.
fn fault(component: &str, message: String) -> ToolError {
    ToolError::new("plugin_invalid", format!("plugin `{component}`: {message}"))
        .with_hint("this is a fault of the plugin")
        .with_detail("plugin", component)
}

fn compile(schema: &Map<String, Value>) -> Result<Checker, String> {
    Checker::compile(Value::Object(schema.clone())).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_write_only_is_replaced_wherever_it_stands() {
        let secret = json!({ "type": ["string", "null"], "writeOnly": true });
        let item = json!({ "properties": { "name": { "type": "string" }, "value": secret } });
        let schema = json!({ "properties": {
            "plain": { "type": "string" },
            "secret": secret,
            "list": { "items": item },
            "map": { "additionalProperties": secret },
            "shared": { "items": { "$ref": "#/$defs/item" } },
        } });
        let whole = json!({ "$defs": { "item": item } });
        let mut value = json!({
            "plain": "a", "secret": "b", "list": [{ "name": "n", "value": "c" }, { "name": "m", "value": null }],
            "map": { "k": "d" }, "shared": [{ "name": "n", "value": "e" }],
        });
        let mut seen = Vec::new();
        hide(whole.as_object().unwrap(), &schema, &mut value, &mut |text| {
            seen.push(text);
            format!("#{}", seen.len())
        });
        assert_eq!(seen, ["b", "c", "d", "e"]);
        let expected = json!({
            "plain": "a", "secret": "#1", "list": [{ "name": "n", "value": "#2" }, { "name": "m", "value": null }],
            "map": { "k": "#3" }, "shared": [{ "name": "n", "value": "#4" }],
        });
        assert_eq!(value, expected);
    }
}
