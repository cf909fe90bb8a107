//! What a tool is and what a call of it takes and gives.

use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::io::AsyncRead;

use crate::cli::CliForm;

/// One tool as callers see it: the component's definition after the profile's `fixed`, `default` and `hide`.
#[derive(Clone, Debug, Serialize)]
pub struct ToolDef {
    /// `^[a-z][a-z0-9_]{0,39}$`, unique in a profile.
    pub name: String,
    /// A short name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it does, for a model.
    pub description: String,
    /// JSON Schema 2020-12 of the arguments: an object without additional properties.
    pub input_schema: Arc<Map<String, Value>>,
    /// JSON Schema of the structured result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Arc<Map<String, Value>>>,
    /// Behaviour hints.
    pub annotations: Annotations,
    /// How the tool looks as a command; none when the component says nothing about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cli: Option<CliForm>,
    /// The profile's name of the component that offers it.
    pub component: String,
}

/// Behaviour hints, as MCP's tool annotations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Annotations {
    /// Changes nothing outside the call.
    pub read_only: bool,
    /// May destroy something that outlives the call.
    pub destructive: bool,
    /// A second call with the same arguments changes nothing more.
    pub idempotent: bool,
    /// Reaches things outside pyro's machines.
    pub open_world: bool,
}

/// Which output of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Hears of a call while it runs. Called from the call's own task: it must not block.
pub trait CallObserver: Send + Sync {
    /// Progress. `done` grows from report to report.
    fn progress(&self, done: f64, total: Option<f64>, message: Option<&str>) {
        let _ = (done, total, message);
    }

    /// Live output of a command, in the order the guest wrote it.
    fn output(&self, stream: OutputStream, bytes: &[u8]) {
        let _ = (stream, bytes);
    }
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl CallObserver for NoObserver {}

/// Bytes that a caller attaches to a call.
pub type CallInput = Pin<Box<dyn AsyncRead + Send>>;

/// Everything about a call that is not an argument.
pub struct CallOptions {
    /// Hears of progress and live output.
    pub observer: Arc<dyn CallObserver>,
    /// Names the client's session; calls of one session may share state in a later version.
    pub session_id: String,
    /// Names the call in logs.
    pub call_id: String,
    /// What a command that asks for the caller's input reads; end of file when none.
    pub stdin: Option<CallInput>,
    /// A W3C trace parent, passed on to the plugin.
    pub traceparent: Option<String>,
}

impl Default for CallOptions {
    fn default() -> CallOptions {
        CallOptions {
            observer: Arc::new(NoObserver),
            session_id: String::new(),
            call_id: String::new(),
            stdin: None,
            traceparent: None,
        }
    }
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolOutcome {
    /// Blocks for a reader; empty when `structured` says it all (a surface then shows its JSON text).
    pub content: Vec<Content>,
    /// The structured result; it satisfies the tool's output schema.
    pub structured: Option<Map<String, Value>>,
    /// The tool itself calls this outcome a failure.
    pub is_error: bool,
}

/// One block of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// The media type; `text/plain` for text and `application/octet-stream` for bytes when the plugin names none.
    pub mime: String,
    /// The block itself.
    pub body: ContentBody,
}

/// The bytes of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentBody {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Bytes(Vec<u8>),
}
