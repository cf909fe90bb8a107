//! A loaded profile: its tools, and the one path into them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};
use tokio::sync::{Semaphore, watch};

use crate::component::ToolSpec;
use crate::diagnostic::{LoadError, name_list, suggestion};
use crate::error::ToolError;
use crate::profile::{BoundTool, GrantSet, ProfileDescription, ResolvedComponent, ResolvedProfile, bind_tools};
use crate::runtime::{AotCache, CallRequest, Prepared, call, config_json, prepare, runtime};
use crate::tool::{CallOptions, ToolDef, ToolOutcome};
use crate::validate::{Checker, tidy_integers};

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
}

/// A tool and its schemas, compiled on first use.
struct ToolSlot {
    bound: BoundTool,
    arguments: OnceLock<Result<Checker, String>>,
    result: OnceLock<Result<Checker, String>>,
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
                    let code = if error.code == "internal" { "internal" } else { "invalid_component" };
                    findings.push(profile.locator.finding(code, component.line, message, hint));
                    lists.push(Vec::new());
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
        let calls = profile.host.max_calls.unwrap_or(DEFAULT_MAX_CALLS) as usize;
        let shared = Shared {
            profile: profile.clone(),
            tools: bound.iter().map(|tool| tool.def.clone()).collect(),
            bound: bound
                .into_iter()
                .map(|bound| ToolSlot { bound, arguments: OnceLock::new(), result: OnceLock::new() })
                .collect(),
            components,
            calls: Semaphore::new(calls),
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
        let arguments = slot.arguments(arguments)?;
        let _turn = shared.calls.acquire().await.map_err(|_| ToolError::new("internal", "the toolbox was closed"))?;
        let prepared = self.prepared(slot.bound.component).await?;
        let gone = || ToolError::new("internal", "a tool without its component");
        let component = shared.components.get(slot.bound.component).ok_or_else(gone)?;
        let resolved = shared.profile.components.get(slot.bound.component).ok_or_else(gone)?;
        let request = CallRequest {
            component: &component.name,
            limits: &resolved.limits,
            grants: &component.grants,
            config: &component.config,
            engine: &shared.services.engine,
            tool: name,
            arguments: &arguments,
        };
        let outcome = call(&prepared, request, options).await?;
        slot.check_result(&outcome)?;
        Ok(outcome)
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

/// Returns a component's tools: as its bytes state them, as it answered before, or as it answers now.
fn listed(
    component: &ResolvedComponent,
    services: &HostServices,
    slot: &ComponentSlot,
) -> Result<Vec<ToolSpec>, ToolError> {
    if let Some(tools) = &component.scan.tools {
        return Ok(tools.clone());
    }
    let cache = services.cache()?;
    if let Some(tools) = cache.listed_tools(component.digest.trim_start_matches("sha256:")) {
        return Ok(tools);
    }
    let prepared = prepare(component, &cache)?;
    let tools = prepared.tools.to_vec();
    *slot.started.lock().unwrap_or_else(PoisonError::into_inner) = true;
    slot.prepared.send_replace(Some(Ok(Arc::new(prepared))));
    Ok(tools)
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
    /// Checks a caller's arguments and adds what the profile adds.
    fn arguments(&self, mut arguments: Map<String, Value>) -> Result<Map<String, Value>, ToolError> {
        let def = &self.bound.def;
        let checker = self
            .arguments
            .get_or_init(|| compile(&def.input_schema))
            .as_ref()
            .map_err(|error| self.invalid(format!("the input schema of `{}` cannot be used: {error}", def.name)))?;
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

    /// Checks a component's result against its own schema.
    fn check_result(&self, outcome: &ToolOutcome) -> Result<(), ToolError> {
        let def = &self.bound.def;
        let Some(schema) = def.output_schema.as_ref().filter(|_| !outcome.is_error) else { return Ok(()) };
        let checker =
            self.result.get_or_init(|| compile(schema)).as_ref().map_err(|error| {
                self.invalid(format!("the output schema of `{}` cannot be used: {error}", def.name))
            })?;
        let Some(structured) = &outcome.structured else {
            return Err(self.invalid(format!("`{}` returned no structured result although it has a schema", def.name)));
        };
        match checker.first_violation(&Value::Object(structured.clone())) {
            None => Ok(()),
            Some(problem) => {
                Err(self.invalid(format!("`{}` returned what its output schema rules out: {problem}", def.name)))
            }
        }
    }

    fn invalid(&self, message: String) -> ToolError {
        let plugin = &self.bound.def.component;
        ToolError::new("plugin_invalid", format!("plugin `{plugin}`: {message}"))
            .with_hint("this is a fault of the plugin")
            .with_detail("plugin", plugin.as_str())
    }
}

fn compile(schema: &Map<String, Value>) -> Result<Checker, String> {
    Checker::compile(Value::Object(schema.clone())).map_err(|error| error.to_string())
}
