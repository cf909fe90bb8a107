//! One call of a component: a fresh instance under both clocks and every limit, and its end as a typed outcome.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::Mutex as AsyncMutex;
use wasmtime::{Store, Trap, UpdateDeadline};

use super::access::HostAccess;
use super::attachments::Attachments;
use super::bindings::exports::pyro::plugin::tools as wit;
use super::bindings::interceptor::exports::pyro::plugin::{interceptor as intercept, tools as intercept_tools};
use super::engine::runtime;
use super::meter::{CallClock, CpuMeter, Metered};
use super::prepare::Prepared;
use super::state::{CallState, LimitHit};
use crate::error::ToolError;
use crate::profile::{GrantSet, Limits};
use crate::tool::{CallInput, CallObserver, CallOptions, Content, ContentBody, ToolOutcome};

/// Least bytes that a component may hand to the host in one call of a host function.
const MIN_HOSTCALL_BYTES: usize = 4 << 20;

/// Of those, what is left to everything but one argument that a component hands on as it is.
const HOSTCALL_SPARE: usize = 64 << 10;

/// Returns how many bytes a component may hand to the host in one call of a host function.
fn hostcall_bytes(limits: &Limits) -> usize {
    MIN_HOSTCALL_BYTES.max(limits.output_bytes as usize * 2)
}

/// Returns how many bytes of arguments a component can use: it could not hand more on.
pub(crate) fn argument_bytes(limits: &Limits) -> usize {
    hostcall_bytes(limits) - HOSTCALL_SPARE
}

/// Longest error text of a component that is passed on.
const MAX_ERROR_TEXT: usize = 8 << 10;

/// How errors name the question for a component's tools.
pub(super) const LIST_TOOLS: &str = "list-tools";

/// The same for what an interceptor adds to other tools.
pub(super) const LIST_AMENDMENTS: &str = "list-amendments";

/// Some code of a component, for one call of one tool.
pub(crate) struct CallRequest<'a> {
    pub(crate) component: &'a Arc<str>,
    pub(crate) limits: &'a Limits,
    pub(crate) grants: &'a Arc<GrantSet>,
    pub(crate) config: &'a Arc<str>,
    pub(crate) access: &'a Arc<HostAccess>,
    pub(crate) tool: &'a str,
    pub(crate) arguments: &'a Map<String, Value>,
}

/// What all instances of one call share: that of the tool and those of its interceptors.
pub(crate) struct CallScope {
    observer: Arc<dyn CallObserver>,
    stdin: Arc<AsyncMutex<Option<CallInput>>>,
    attachments: Arc<Attachments>,
    call_id: String,
    session_id: String,
    traceparent: Option<String>,
}

impl CallScope {
    pub(crate) fn new(options: CallOptions) -> CallScope {
        CallScope {
            observer: options.observer,
            stdin: Arc::new(AsyncMutex::new(options.stdin)),
            attachments: Arc::default(),
            call_id: options.call_id,
            session_id: options.session_id,
            traceparent: options.traceparent,
        }
    }

    /// Keeps the value of a secret for as long as the call; returns what stands for it.
    pub(crate) fn hide(&self, value: String) -> String {
        self.attachments.hide(value)
    }

    /// The state of one instance.
    fn state(&self, request: &CallRequest<'_>) -> CallState {
        let clock = Arc::new(CallClock::start(Duration::from_secs(request.limits.call_seconds.into())));
        let mut state = CallState::new(request.limits, clock, Arc::clone(&self.observer));
        state.component = Arc::clone(request.component);
        state.config = Arc::clone(request.config);
        state.grants = Arc::clone(request.grants);
        state.access = Some(Arc::clone(request.access));
        state.attachments = Arc::clone(&self.attachments);
        state.stdin = Arc::clone(&self.stdin);
        state.call_id.clone_from(&self.call_id);
        state
    }
}

/// Runs a tool. Dropping the future drops the store, and with it commands and ephemeral machines.
pub(crate) async fn call(
    prepared: &Prepared,
    request: CallRequest<'_>,
    scope: &CallScope,
) -> Result<ToolOutcome, ToolError> {
    let context = wit::CallContext {
        call_id: scope.call_id.clone(),
        session_id: scope.session_id.clone(),
        traceparent: scope.traceparent.clone(),
        meta: Vec::new(),
    };
    let arguments = Value::Object(request.arguments.clone()).to_string();
    let guest = Guest { component: request.component, what: request.tool, limits: request.limits };
    let (mut store, answer) = guest
        .run(scope.state(&request), async |store: &mut Store<CallState>| {
            let instance = prepared.pre.instantiate_async(&mut *store).await?;
            instance.pyro_plugin_tools().call_call(store, request.tool, &arguments, &context).await
        })
        .await?;
    match answer {
        Ok(result) => outcome(&guest, store.data_mut(), result),
        Err(error) => Err(failure(request.component, &error)),
    }
}

/// Runs an interceptor's `before`; an outcome is an answer in the tool's place.
pub(crate) async fn before(
    prepared: &Prepared,
    request: CallRequest<'_>,
    scope: &CallScope,
) -> Result<Option<ToolOutcome>, ToolError> {
    let pre = prepared.interceptor()?;
    let context = scope.interceptor_context();
    let arguments = Value::Object(request.arguments.clone()).to_string();
    let what = format!("before {}", request.tool);
    let guest = Guest { component: request.component, what: &what, limits: request.limits };
    let mut state = scope.state(&request);
    state.may_attach = true;
    let (mut store, answer) = guest
        .run(state, async |store: &mut Store<CallState>| {
            let instance = pre.instantiate_async(&mut *store).await?;
            instance.pyro_plugin_interceptor().call_before(store, request.tool, &arguments, &context).await
        })
        .await?;
    match answer {
        Ok(intercept::Decision::Proceed) => Ok(None),
        Ok(intercept::Decision::Answer(result)) => outcome(&guest, store.data_mut(), result.into()).map(Some),
        Err(error) => Err(failure(request.component, &error.into())),
    }
}

/// Runs an interceptor's `after`; an outcome replaces the one it was shown.
pub(crate) async fn after(
    prepared: &Prepared,
    request: CallRequest<'_>,
    shown: &ToolOutcome,
    scope: &CallScope,
) -> Result<Option<ToolOutcome>, ToolError> {
    let pre = prepared.interceptor()?;
    let context = scope.interceptor_context();
    let arguments = Value::Object(request.arguments.clone()).to_string();
    let what = format!("after {}", request.tool);
    let guest = Guest { component: request.component, what: &what, limits: request.limits };
    let shown = result_of(shown);
    let (mut store, answer) = guest
        .run(scope.state(&request), async |store: &mut Store<CallState>| {
            let instance = pre.instantiate_async(&mut *store).await?;
            let interceptor = instance.pyro_plugin_interceptor();
            interceptor.call_after(store, request.tool, &arguments, &shown, &context).await
        })
        .await?;
    match answer {
        Ok(None) => Ok(None),
        Ok(Some(result)) => outcome(&guest, store.data_mut(), result.into()).map(Some),
        Err(error) => Err(failure(request.component, &error.into())),
    }
}

impl CallScope {
    fn interceptor_context(&self) -> intercept_tools::CallContext {
        intercept_tools::CallContext {
            call_id: self.call_id.clone(),
            session_id: self.session_id.clone(),
            traceparent: self.traceparent.clone(),
            meta: Vec::new(),
        }
    }
}

/// An outcome as an interceptor is shown it.
fn result_of(outcome: &ToolOutcome) -> intercept_tools::ToolResult {
    let content = outcome.content.iter().map(|content| intercept_tools::Content {
        mime: Some(content.mime.clone()),
        body: match &content.body {
            ContentBody::Text(text) => intercept_tools::Body::Text(text.clone()),
            ContentBody::Bytes(bytes) => intercept_tools::Body::Bytes(bytes.clone()),
        },
        meta: Vec::new(),
    });
    intercept_tools::ToolResult {
        content: content.collect(),
        structured: outcome.structured.as_ref().map(|object| Value::Object(object.clone()).to_string()),
        is_error: outcome.is_error,
        meta: Vec::new(),
    }
}

impl From<intercept_tools::ToolResult> for wit::ToolResult {
    fn from(result: intercept_tools::ToolResult) -> wit::ToolResult {
        let content = result.content.into_iter().map(|content| wit::Content {
            mime: content.mime,
            body: match content.body {
                intercept_tools::Body::Text(text) => wit::Body::Text(text),
                intercept_tools::Body::Bytes(bytes) => wit::Body::Bytes(bytes),
                intercept_tools::Body::Blob(blob) => wit::Body::Blob(blob),
            },
            meta: content.meta,
        });
        wit::ToolResult {
            content: content.collect(),
            structured: result.structured,
            is_error: result.is_error,
            meta: result.meta,
        }
    }
}

impl From<intercept_tools::ToolError> for wit::ToolError {
    fn from(error: intercept_tools::ToolError) -> wit::ToolError {
        wit::ToolError { code: error.code, message: error.message, hint: error.hint, retryable: error.retryable }
    }
}

/// Some code of a component, about to run.
pub(super) struct Guest<'a> {
    pub(super) component: &'a str,
    /// The tool, or `list-tools`.
    pub(super) what: &'a str,
    pub(super) limits: &'a Limits,
}

impl Guest<'_> {
    /// Runs `body` on a new store under every limit, and gives both back.
    pub(super) async fn run<T>(
        &self,
        state: CallState,
        body: impl AsyncFnOnce(&mut Store<CallState>) -> wasmtime::Result<T>,
    ) -> Result<(Store<CallState>, T), ToolError> {
        let runtime = runtime().map_err(|message| ToolError::new("internal", message))?;
        let _ticking = runtime.tick();
        let (clock, stdio) = (Arc::clone(&state.clock), state.stdio.clone());
        let mut store = Store::new(&runtime.engine, state);
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(hostcall_bytes(self.limits));
        store.set_max_component_handles(self.limits.handles as usize);
        let meter = Arc::new(CpuMeter::default());
        let (cpu, budget) = (Arc::clone(&meter), self.limits.cpu_ms);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            if cpu.used() > Duration::from_millis(budget.into()) {
                return Err(wasmtime::Error::from(LimitHit::Cpu(budget)));
            }
            // Lets the runtime's other tasks have a turn.
            Ok(UpdateDeadline::Yield(1))
        });
        let running = Metered {
            meter,
            inner: Box::pin(async move {
                let result = body(&mut store).await;
                (store, result)
            }),
        };
        let ended = tokio::select! {
            biased;
            ended = running => Some(ended),
            () = pin!(clock.expired()) => None,
        };
        match ended {
            None => Err(self.timeout(&stdio.text())),
            Some((store, Ok(value))) => {
                let logged = store.data().logged;
                if logged.dropped > 0 {
                    tracing::warn!(component = self.component, "dropped {} log lines of one call", logged.dropped);
                }
                Ok((store, value))
            }
            Some((_, Err(error))) => Err(self.ended(&error, &stdio.text())),
        }
    }

    fn too_large(&self, size: u64) -> ToolError {
        let limit = self.limits.output_bytes;
        self.error("output_limit", format!("returned {size} bytes, more than {limit}"), "")
            .with_hint("ask for less; the profile's `limits = { output_bytes = ... }` decides this")
    }

    fn timeout(&self, stderr: &str) -> ToolError {
        let seconds = self.limits.call_seconds;
        let what = format!("did not answer within {seconds} s (waiting for microVMs not counted)");
        self.decided_by(self.error("timeout", what, stderr), "call_seconds")
    }

    /// The next step after a limit of the profile; asking for the tool list has limits of its own.
    fn decided_by(&self, error: ToolError, key: &str) -> ToolError {
        match self.what {
            LIST_TOOLS | LIST_AMENDMENTS => {
                error.with_hint("it may only say what is known when the component is built")
            }
            _ => error.with_hint(format!("the profile's `limits = {{ {key} = ... }}` decides this")),
        }
    }

    fn error(&self, code: &str, what_happened: String, stderr: &str) -> ToolError {
        let error = guest_failure(self.component, code, &format!("`{}` {what_happened}", self.what));
        match stderr.trim() {
            "" => error,
            text => error.with_detail("stderr", text),
        }
    }

    /// Why the component's code came to an end before it answered.
    fn ended(&self, error: &wasmtime::Error, stderr: &str) -> ToolError {
        if let Some(limit) = error.downcast_ref::<LimitHit>() {
            let (code, key) = match limit {
                LimitHit::Cpu(_) => ("cpu_limit", "cpu_ms"),
                LimitHit::Memory(_) => ("memory_limit", "memory_mib"),
                LimitHit::Table => return self.error("memory_limit", format!("was ended: {limit}"), stderr),
                LimitHit::Blobs => {
                    return self
                        .error("memory_limit", format!("was ended: {limit}"), stderr)
                        .with_hint("drop blobs that are no longer needed");
                }
            };
            return self.decided_by(self.error(code, format!("was ended: {limit}"), stderr), key);
        }
        let root = error.root_cause().to_string();
        if root.contains("fuel allocated for hostcalls") {
            let bytes = hostcall_bytes(self.limits);
            return self
                .error("output_limit", format!("handed more than {bytes} bytes to the host at once"), stderr)
                .with_hint("return less, or hand it over as blobs in pieces");
        }
        if root.contains("handle limit exceeded")
            || matches!(
                error.downcast_ref::<wasmtime::component::ResourceTableError>(),
                Some(wasmtime::component::ResourceTableError::Full)
            )
        {
            let most = self.limits.handles;
            let what = format!("was ended: it held more than {most} handles");
            return self.decided_by(self.error("handle_limit", what, stderr), "handles");
        }
        let what = if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
            format!("ended its own instance with status {}", exit.0)
        } else {
            match error.downcast_ref::<Trap>() {
                Some(Trap::UnreachableCodeReached) if !stderr.trim().is_empty() => {
                    format!("panicked: {}", last_panic(stderr))
                }
                Some(trap) => format!("trapped: {trap}"),
                None => format!("failed: {root}"),
            }
        };
        tracing::warn!(component = self.component, what = self.what, "plugin trap: {error:?}");
        self.error("plugin_trap", what, stderr)
            .with_hint("this is a fault of the plugin; the next call starts in a fresh instance")
    }
}

/// The panic message in a component's standard error, on one line.
fn last_panic(stderr: &str) -> String {
    let from = stderr.rfind("panicked at").unwrap_or_default();
    let text = stderr.get(from..).unwrap_or(stderr).trim_start_matches("panicked at").trim();
    let lines: Vec<&str> =
        text.lines().map(str::trim).take_while(|line| !line.starts_with("note:")).filter(|l| !l.is_empty()).collect();
    lines.join(" ").chars().take(400).collect()
}

/// A fault of a component.
pub(super) fn guest_failure(component: &str, code: &str, message: &str) -> ToolError {
    ToolError::new(code, format!("plugin `{component}`: {message}")).with_detail("plugin", component)
}

/// An error that a component returned. Its words are passed on, but bounded and visible, and it cannot pretend to be
/// something else than an error code.
pub(super) fn failure(component: &str, error: &wit::ToolError) -> ToolError {
    let text = |text: &str| {
        let end = text.floor_char_boundary(MAX_ERROR_TEXT);
        super::capture::sanitized(text.get(..end).unwrap_or_default().as_bytes())
    };
    let is_code = !error.code.is_empty()
        && error.code.len() <= 64
        && error.code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    ToolError {
        code: if is_code { error.code.clone() } else { "plugin_error".to_owned() },
        message: text(&error.message),
        hint: error.hint.as_deref().map(text),
        retryable: error.retryable,
        details: Map::new(),
    }
    .with_detail("plugin", component)
}

/// A component's result as an outcome, within the output limit.
fn outcome(guest: &Guest<'_>, state: &mut CallState, result: wit::ToolResult) -> Result<ToolOutcome, ToolError> {
    let limit = guest.limits.output_bytes as usize;
    let mut size = result.structured.as_ref().map_or(0, String::len);
    let mut content = Vec::with_capacity(result.content.len());
    for block in result.content {
        let (body, mime) = match block.body {
            wit::Body::Text(text) => (ContentBody::Text(text), "text/plain"),
            wit::Body::Bytes(bytes) => (ContentBody::Bytes(bytes), "application/octet-stream"),
            wit::Body::Blob(blob) => {
                let blob = state
                    .table
                    .delete(blob)
                    .map_err(|error| guest_failure(guest.component, "plugin_invalid", &error.to_string()))?;
                state.released(&blob);
                if blob.len() > limit as u64 {
                    return Err(guest.too_large(blob.len()));
                }
                let bytes = blob
                    .read(0, limit)
                    .map_err(|error| ToolError::new("io", format!("a blob's file cannot be read: {error}")))?;
                (ContentBody::Bytes(bytes), "application/octet-stream")
            }
        };
        size = size.saturating_add(match &body {
            ContentBody::Text(text) => text.len(),
            ContentBody::Bytes(bytes) => bytes.len(),
        });
        content.push(Content { mime: block.mime.unwrap_or_else(|| mime.to_owned()), body });
    }
    if size > limit {
        return Err(guest.too_large(size as u64));
    }
    let structured = match result.structured.as_deref().map(serde_json::from_str::<Map<String, Value>>) {
        None => None,
        Some(Ok(object)) => Some(object),
        Some(Err(error)) => {
            return Err(guest.error("plugin_invalid", format!("returned what is not a JSON object: {error}"), ""));
        }
    };
    Ok(ToolOutcome { content, structured, is_error: result.is_error })
}
