//! Answers MCP's requests from a [`Toolbox`].

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pyro_components::{CallOptions, ToolError, ToolOutcome, Toolbox};
use rmcp::ErrorData;
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, CustomRequest, CustomResult, DiscoverResult,
    ErrorCode, ListToolsResult, PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig,
    SubscriptionFilter, Tool,
};
use rmcp::service::{RequestContext, RoleServer, SubscriptionContext};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::convert;
use super::progress::{ProgressSender, Reports};

/// How long a client may take the tool list for current. The list of a running server never changes; a client that
/// reconnects asks again.
const LIST_TTL_MS: u64 = 60_000;
/// After the end of input a call that is about to finish may still answer; after this it is cancelled.
const CLOSING_GRACE: Duration = Duration::from_millis(50);

/// The MCP side of one client.
pub(crate) struct Handler {
    toolbox: Toolbox,
    tools: Vec<Tool>,
    config: ServerConfig,
    session_id: String,
    calls: AtomicU64,
    /// Cancelled when the client closed its end.
    closed: CancellationToken,
    /// Cancelled when the server is to end.
    stop: CancellationToken,
}

impl Handler {
    pub(crate) fn new(
        toolbox: Toolbox,
        instructions: Option<&str>,
        closed: CancellationToken,
        stop: CancellationToken,
    ) -> Handler {
        let tools = toolbox.tools().iter().map(convert::tool).collect();
        let mut config = ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(convert::server_info());
        if let Some(instructions) = instructions {
            config = config.with_instructions(instructions);
        }
        config.meta = Some(convert::server_meta());
        Handler {
            toolbox,
            tools,
            config,
            session_id: format!("mcp-{}", std::process::id()),
            calls: AtomicU64::new(0),
            closed,
            stop,
        }
    }

    /// Calls a tool in a task of its own, so that even a panic gives an answer.
    async fn call(&self, request: CallToolRequestParams, context: &RequestContext<RoleServer>) -> CallToolResult {
        let name = request.name.into_owned();
        let call_id = format!("{}-{}", self.session_id, self.calls.fetch_add(1, Ordering::Relaxed) + 1);
        let reports = Arc::new(Reports::default());
        let options = CallOptions {
            observer: reports.clone(),
            session_id: self.session_id.clone(),
            call_id,
            stdin: None,
            traceparent: context.meta.get_traceparent().map(str::to_owned),
        };
        let mut task = AbortOnDrop(tokio::spawn({
            let toolbox = self.toolbox.clone();
            let name = name.clone();
            async move { toolbox.call(&name, request.arguments.unwrap_or_default(), options).await }
        }));
        let finished = match context.meta.get_progress_token() {
            None => (&mut task.0).await,
            Some(token) => {
                let mut progress = ProgressSender::new(reports, context.peer.clone(), token);
                let finished = tokio::select! {
                    finished = &mut task.0 => finished,
                    () = progress.run() => unreachable_end(),
                };
                progress.finish().await;
                finished
            }
        };
        let def = self.toolbox.tool(&name);
        match finished {
            Ok(Ok(outcome)) => convert::outcome(outcome, def),
            Ok(Err(error)) => {
                tracing::info!(tool = %name, code = %error.code, "the call failed: {}", error.message);
                convert::error(&error, def)
            }
            Err(failure) => {
                tracing::error!(tool = %name, %failure, "a call ended without a result");
                let fact = format!("the call of `{name}` ended without a result: {failure}");
                let error = ToolError::new("internal", fact)
                    .with_hint("this is a fault of pyro; its log on standard error says more");
                convert::error(&error, def)
            }
        }
    }

    fn unknown_tool(&self, name: &str) -> ErrorData {
        let nearest = self
            .tools
            .iter()
            .map(|tool| (strsim::damerau_levenshtein(name, &tool.name), &tool.name))
            .filter(|(distance, _)| *distance <= 3)
            .min();
        let known: Vec<&str> = self.tools.iter().map(|tool| tool.name.as_ref()).collect();
        let hint = match nearest {
            Some((_, nearest)) => format!("did you mean `{nearest}`?"),
            None => "tools/list shows the tools of this profile".to_owned(),
        };
        ErrorData::invalid_params(
            format!("unknown tool `{name}`; {hint}"),
            Some(json!({"code": "unknown_tool", "hint": hint, "tools": known})),
        )
    }
}

/// `ProgressSender::run` has no end; should it get one, the call is reported as lost rather than left unanswered.
fn unreachable_end() -> Result<Result<ToolOutcome, ToolError>, tokio::task::JoinError> {
    Ok(Err(ToolError::new("internal", "the progress of the call ended before the call")))
}

fn is_modern(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        self.config.clone()
    }

    async fn discover(&self, _context: RequestContext<RoleServer>) -> Result<DiscoverResult, ErrorData> {
        let versions = self.supported_protocol_versions().into_owned();
        let mut result = DiscoverResult::from_server_info(versions, self.get_info());
        result.ttl_ms = LIST_TTL_MS;
        result.cache_scope = CacheScope::Private;
        Ok(result)
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        if let Some(cursor) = request.and_then(|request| request.cursor) {
            return Err(ErrorData::invalid_params(
                format!("unknown cursor `{cursor}`; all tools are on one page"),
                None,
            ));
        }
        let mut result = ListToolsResult::with_all_items(self.tools.clone());
        result.meta = Some(convert::server_meta());
        if is_modern(&context) {
            result.ttl_ms = Some(LIST_TTL_MS);
            result.cache_scope = Some(CacheScope::Private);
        }
        Ok(result)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.tools.iter().find(|tool| tool.name == name).cloned()
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(def) = self.toolbox.tool(&request.name) else {
            return Err(self.unknown_tool(&request.name));
        };
        let closed = async {
            self.closed.cancelled().await;
            tokio::time::sleep(CLOSING_GRACE).await;
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {
                let error = ToolError::new("cancelled", "the server was told to end; the call was given up")
                    .with_hint("start the server again; what the call had done until then stands");
                Ok(convert::error(&error, Some(def)).into())
            }
            // Neither of these answers reaches the client: the first is dropped by rmcp, the second has no reader.
            () = context.ct.cancelled() => Err(cancelled("the client cancelled the call")),
            () = closed => Err(cancelled("the client closed the connection")),
            result = self.call(request, &context) => Ok(result.into()),
        }
    }

    /// rmcp takes a known method with wrong parameters for an unknown method.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        let reason = match request.method.as_str() {
            "tools/call" => request.params_as::<CallToolRequestParams>().err().map(|error| error.to_string()),
            "tools/list" => request.params_as::<PaginatedRequestParams>().err().map(|error| error.to_string()),
            "server/discover" | "subscriptions/listen" if is_modern(&context) => None,
            _ => {
                return Err(ErrorData::new(
                    ErrorCode::METHOD_NOT_FOUND,
                    format!("unknown method `{}`", request.method),
                    None,
                ));
            }
        };
        let reason = reason.unwrap_or_else(|| "they do not have the shape that the method needs".to_owned());
        Err(ErrorData::invalid_params(
            Cow::Owned(format!("invalid parameters of `{}`: {reason}", request.method)),
            None,
        ))
    }

    /// Accepts a subscription; rmcp takes out what the capabilities do not offer. Nothing of this server changes while
    /// it runs, but a client that opens one need not be refused.
    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        tokio::select! {
            () = context.cancelled() => {}
            () = self.closed.cancelled() => {}
        }
        Ok(())
    }
}

fn cancelled(fact: &'static str) -> ErrorData {
    ErrorData::internal_error(fact, None)
}

/// A task that ends with its owner.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
