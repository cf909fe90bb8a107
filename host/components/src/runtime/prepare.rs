//! From a component's bytes to something that can be instantiated, once per component.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::Component;

use super::aot::AotCache;
use super::bindings::PlatformPre;
use super::bindings::exports::pyro::plugin::tools as wit;
use super::call::{Guest, LIST_TOOLS, failure, guest_failure};
use super::engine::runtime;
use super::link::linker;
use super::meter::CallClock;
use super::state::CallState;
use crate::component::{ComponentScan, ToolSpec, append_manifest, first_difference, lint_tools, manifest_json};
use crate::error::ToolError;
use crate::profile::{ExecScope, GrantSet, Limits, MachinesScope, ResolvedComponent};
use crate::tool::NoObserver;

/// What `list-tools` may use. It only says what is known when the component is built.
const LIST_LIMITS: Limits =
    Limits { memory_mib: 256, cpu_ms: 500, call_seconds: 60, output_bytes: 4 << 20, handles: 1_000 };

/// A component whose instances can be made.
pub(crate) struct Prepared {
    pub(super) pre: PlatformPre<CallState>,
    /// What `list-tools` answered, now or when it was asked before.
    pub(crate) tools: Arc<Vec<ToolSpec>>,
}

/// Compiles, links and asks a component, as far as the cache does not know the answers. Blocks; call it off the request
/// path.
///
/// # Errors
/// `plugin_invalid` with what is wrong with the component.
pub(crate) fn prepare(component: &ResolvedComponent, cache: &AotCache) -> Result<Prepared, ToolError> {
    let runtime = runtime().map_err(|message| ToolError::new("internal", message))?;
    let engine = &runtime.engine;
    let name = &component.name;
    let invalid = |message: String| ToolError::new("plugin_invalid", message);
    let digest = component.digest.trim_start_matches("sha256:");
    let compiled = cache
        .load_or_compile(engine, digest, component.bytes.as_slice())
        .map_err(|error| invalid(format!("component `{name}` cannot be compiled: {error:#}")))?;
    let pre = linker(engine, &component.grants)
        .and_then(|linker| PlatformPre::new(linker.instantiate_pre(&compiled)?))
        .map_err(|error| {
            invalid(format!("component `{name}` does not fit this pyro: {error:#}"))
                .with_hint("build it again against the interfaces of this pyro (wit/)")
        })?;
    let listed = match cache.listed_tools(digest) {
        Some(tools) => tools,
        None => {
            let tools = list_tools(&pre, name)?;
            cache.remember_tools(digest, &tools);
            tools
        }
    };
    if let Some(stated) = &component.scan.tools
        && let Some(difference) = first_difference(stated, &listed)
    {
        return Err(invalid(format!("component `{name}` is not what its `pyro:manifest` section says: {difference}"))
            .with_hint("write the section again with `pyro_components::pack`, or leave it out"));
    }
    Ok(Prepared { pre, tools: Arc::new(listed) })
}

/// Returns `wasm` with the `pyro:manifest` section that says what its `list-tools` answers.
///
/// # Errors
/// `plugin_invalid` when it is not a component for this pyro, or when its tools cannot be offered.
pub fn pack(wasm: &[u8]) -> Result<Vec<u8>, ToolError> {
    let invalid = |message: String| ToolError::new("plugin_invalid", message);
    let scan = ComponentScan::read(wasm)
        .map_err(|error| invalid(format!("not a component: {error}")).with_hint(error.hint()))?;
    if scan.tools.is_some() {
        return Err(invalid("it already has a `pyro:manifest` section".to_owned()).with_hint("pack a new build of it"));
    }
    let runtime = runtime().map_err(|message| ToolError::new("internal", message))?;
    let everything = GrantSet { machines: Some(MachinesScope::default()), exec: Some(ExecScope::default()) };
    let pre = Component::new(&runtime.engine, wasm)
        .and_then(|component| linker(&runtime.engine, &everything)?.instantiate_pre(&component))
        .and_then(PlatformPre::new)
        .map_err(|error| invalid(format!("it does not fit this pyro: {error:#}")))?;
    let tools = list_tools(&pre, "component")?;
    let refused: Vec<String> =
        lint_tools(&mut tools.clone()).into_iter().filter(|f| !f.repaired).map(|f| f.message).collect();
    if !refused.is_empty() {
        return Err(invalid(refused.join("; ")));
    }
    Ok(append_manifest(wasm, &manifest_json(&tools)))
}

/// Asks a component for its tools, in an instance with no configuration and no machines.
fn list_tools(pre: &PlatformPre<CallState>, name: &str) -> Result<Vec<ToolSpec>, ToolError> {
    let clock = Arc::new(CallClock::start(Duration::from_secs(LIST_LIMITS.call_seconds.into())));
    let state = CallState::new(&LIST_LIMITS, clock, Arc::new(NoObserver));
    let guest = Guest { component: name, what: LIST_TOOLS, limits: &LIST_LIMITS };
    let ask = guest.run(state, async |store: &mut Store<CallState>| {
        let instance = pre.instantiate_async(&mut *store).await?;
        instance.pyro_plugin_tools().call_list_tools(store).await
    });
    let block = || {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
        tokio.map_err(|error| ToolError::new("internal", format!("cannot start a runtime: {error}")))?.block_on(ask)
    };
    // A runtime can be neither used nor dropped in another one, where the caller may be: so, a thread of its own.
    let answer = std::thread::scope(|scope| scope.spawn(block).join())
        .unwrap_or_else(|_| Err(ToolError::new("internal", "asking a component for its tools panicked")))?;
    let defs = answer.1.map_err(|error| failure(name, &error))?;
    defs.into_iter().map(|def| spec(def).map_err(|message| guest_failure(name, "plugin_invalid", &message))).collect()
}

/// A tool of `list-tools`, or what is wrong with it.
fn spec(def: wit::ToolDef) -> Result<ToolSpec, String> {
    let name = def.name;
    let schema = |what: &str, text: &str| {
        serde_json::from_str(text).map_err(|error| format!("tool `{name}` has an {what} that is not JSON: {error}"))
    };
    Ok(ToolSpec {
        title: def.title,
        description: def.description,
        input_schema: schema("input schema", &def.input_schema)?,
        output_schema: def.output_schema.as_deref().map(|text| schema("output schema", text)).transpose()?,
        read_only: def.read_only,
        destructive: def.destructive,
        idempotent: def.idempotent,
        open_world: def.open_world,
        meta: def.meta.into_iter().collect(),
        name,
    })
}
