//! From a component's bytes to something that can be instantiated, once per component.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::Component;
use wasmtime::{Engine, Store};

use super::aot::AotCache;
use super::bindings::CataloguePre;
use super::bindings::exports::pyro::plugin::tools as wit;
use super::bindings::interceptor::InterceptorExportsPre;
use super::bindings::interceptor::exports::pyro::plugin::interceptor as intercept;
use super::call::{Guest, LIST_AMENDMENTS, LIST_TOOLS, failure, guest_failure};
use super::engine::runtime;
use super::link::linker;
use super::meter::CallClock;
use super::state::CallState;
use crate::component::{
    AmendmentSpec, ComponentScan, Listing, MANIFEST_HINT, ToolSpec, append_manifest, first_difference, lint_amendments,
    lint_schemas, lint_tools, manifest_json,
};
use crate::error::ToolError;
use crate::profile::{GrantSet, Limits, ResolvedComponent};
use crate::tool::NoObserver;

/// What `list-tools` may use. It only says what is known when the component is built.
const LIST_LIMITS: Limits =
    Limits { memory_mib: 256, cpu_ms: 500, call_seconds: 60, output_bytes: 4 << 20, handles: 1_000 };

/// A component whose instances can be made.
pub(crate) struct Prepared {
    pub(super) pre: CataloguePre<CallState>,
    /// The same instance with an interceptor's exports, when it has them.
    interceptor: Option<InterceptorExportsPre<CallState>>,
    /// What it answered, now or before, when it was asked what it lists.
    pub(crate) listing: Arc<Listing>,
}

impl Prepared {
    /// Returns the interceptor's side of it.
    pub(super) fn interceptor(&self) -> Result<&InterceptorExportsPre<CallState>, ToolError> {
        self.interceptor.as_ref().ok_or_else(|| ToolError::new("internal", "an amendment without its interceptor"))
    }
}

/// Resolves a compiled component's imports and finds its exports.
fn link(
    engine: &Engine,
    compiled: &Component,
    scan: &ComponentScan,
    grants: &GrantSet,
) -> wasmtime::Result<(CataloguePre<CallState>, Option<InterceptorExportsPre<CallState>>)> {
    let pre = linker(engine, grants, &scan.type_only)?.instantiate_pre(compiled)?;
    let interceptor = scan.is_interceptor().then(|| InterceptorExportsPre::new(pre.clone())).transpose()?;
    Ok((CataloguePre::new(pre)?, interceptor))
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
        .map_err(|error| with_async_hint(invalid(format!("component `{name}` cannot be compiled: {error:#}"))))?;
    let (pre, interceptor) = link(engine, &compiled, &component.scan, &component.grants).map_err(|error| {
        invalid(format!("component `{name}` does not fit this pyro: {error:#}"))
            .with_hint("build it again against the interfaces of this pyro (wit/)")
    })?;
    let listed = match cache.listing(digest) {
        Some(listing) => listing,
        None => {
            let listing = list(&pre, interceptor.as_ref(), name)?;
            cache.remember(digest, &listing);
            listing
        }
    };
    if let Some(stated) = &component.scan.listing
        && let Some(difference) = first_difference(stated, &listed)
    {
        return Err(invalid(format!("component `{name}` is not what its `pyro:manifest` section says: {difference}"))
            .with_hint(MANIFEST_HINT));
    }
    Ok(Prepared { pre, interceptor, listing: Arc::new(listed) })
}

/// Returns `wasm` with the `pyro:manifest` section that says what its `list-tools` answers.
///
/// # Errors
/// `plugin_invalid` when it is not a component for this pyro, or when its tools cannot be offered.
pub fn pack(wasm: &[u8]) -> Result<Vec<u8>, ToolError> {
    let invalid = |message: String| ToolError::new("plugin_invalid", message);
    let scan = ComponentScan::read(wasm)
        .map_err(|error| invalid(format!("not a component: {error}")).with_hint(error.hint()))?;
    if scan.listing.is_some() {
        return Err(invalid("it already has a `pyro:manifest` section".to_owned())
            .with_hint("it needs no other; when its tools have changed, build it again and pack that file"));
    }
    let runtime = runtime().map_err(|message| ToolError::new("internal", message))?;
    let (pre, interceptor) = Component::new(&runtime.engine, wasm)
        .and_then(|component| link(&runtime.engine, &component, &scan, &GrantSet::all()))
        .map_err(|error| with_async_hint(invalid(format!("it does not fit this pyro: {error:#}"))))?;
    let listing = list(&pre, interceptor.as_ref(), "component")?;
    let Listing { mut tools, mut amendments } = listing.clone();
    let mut findings = lint_tools(&mut tools, scan.is_interceptor());
    findings.extend(lint_amendments(&mut amendments));
    // What it adds to other tools is compiled with those, when a profile is loaded.
    if findings.iter().all(|finding| finding.repaired) {
        findings.extend(lint_schemas(&tools));
    }
    findings.retain(|finding| !finding.repaired);
    if let Some(first) = findings.first() {
        let messages: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
        return Err(invalid(messages.join("; ")).with_hint(first.hint));
    }
    Ok(append_manifest(wasm, &manifest_json(&listing)))
}

/// Adds the next step to what is said of a component for the component model's async, which the default output of some
/// tools is.
fn with_async_hint(error: ToolError) -> ToolError {
    if error.message.contains("component model async") {
        error.with_hint("build it without the component model's async: `componentize-qjs` needs `--sync`")
    } else {
        error
    }
}

/// Asks a component what it lists, in instances with no configuration and no machines.
fn list(
    pre: &CataloguePre<CallState>,
    interceptor: Option<&InterceptorExportsPre<CallState>>,
    name: &str,
) -> Result<Listing, ToolError> {
    let state = || {
        let clock = Arc::new(CallClock::start(Duration::from_secs(LIST_LIMITS.call_seconds.into())));
        CallState::new(&LIST_LIMITS, clock, Arc::new(NoObserver))
    };
    let ask = async {
        let guest = Guest { component: name, what: LIST_TOOLS, limits: &LIST_LIMITS };
        let tools = guest.run(state(), async |store: &mut Store<CallState>| {
            let instance = pre.instantiate_async(&mut *store).await?;
            instance.pyro_plugin_tools().call_list_tools(store).await
        });
        let tools = tools.await?.1.map_err(|error| failure(name, &error))?;
        let Some(pre) = interceptor else { return Ok((tools, Vec::new())) };
        let guest = Guest { component: name, what: LIST_AMENDMENTS, limits: &LIST_LIMITS };
        let amendments = guest.run(state(), async |store: &mut Store<CallState>| {
            let instance = pre.instantiate_async(&mut *store).await?;
            instance.pyro_plugin_interceptor().call_list_amendments(store).await
        });
        let amendments = amendments.await?.1.map_err(|error| failure(name, &error.into()))?;
        Ok((tools, amendments))
    };
    let block = || {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
        tokio.map_err(|error| ToolError::new("internal", format!("cannot start a runtime: {error}")))?.block_on(ask)
    };
    // A runtime can be neither used nor dropped in another one, where the caller may be: so, a thread of its own.
    let (tools, amendments) = std::thread::scope(|scope| scope.spawn(block).join())
        .unwrap_or_else(|_| Err(ToolError::new("internal", "asking a component for its tools panicked")))?;
    let fault = |message: String| guest_failure(name, "plugin_invalid", &message);
    Ok(Listing {
        tools: tools.into_iter().map(|def| spec(def).map_err(fault)).collect::<Result<_, _>>()?,
        amendments: amendments.into_iter().map(|def| amendment(def).map_err(fault)).collect::<Result<_, _>>()?,
    })
}

/// An amendment of `list-amendments`, or what is wrong with it.
fn amendment(def: intercept::Amendment) -> Result<AmendmentSpec, String> {
    let tool = def.tool;
    let object = |what: &str, text: &str| {
        serde_json::from_str(text).map_err(|error| format!("adds {what} to tool `{tool}` that are not JSON: {error}"))
    };
    Ok(AmendmentSpec {
        input_properties: object("arguments", &def.input_properties)?,
        output_properties: object("results", &def.output_properties)?,
        required: def.required,
        meta: def.meta.into_iter().collect(),
        tool,
    })
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
