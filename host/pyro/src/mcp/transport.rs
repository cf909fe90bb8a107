//! One JSON-RPC message per line, both ways, and an answer for every line that could be a request.
//!
//! rmcp's own line transport drops what it cannot parse. A client that sent an id then waits for ever, so this one
//! answers, with the id when [`super::recover`] finds it:
//!
//! | line | answer |
//! | --- | --- |
//! | not JSON, not UTF-8, nested too deep | -32700, only when an id is found |
//! | over [`MAX_LINE_BYTES`] | -32600, only when an id is found |
//! | JSON, but no message | -32600 |
//! | a batch (an array) | -32600 for every request in it |
//! | a notification before the session begins | none |
//!
//! A client that sends more than it reads is not read from any more until it has caught up. End of input, or of whoever
//! reads the output, cancels `closed`, which ends the calls in progress.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use rmcp::model::{
    ClientNotification, ClientRequest, ErrorCode, GetMeta, InitializeRequestParams, JsonRpcMessage, ProtocolVersion,
    RequestId,
};
use rmcp::service::{RoleServer, RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::LAST_ANSWERS;
use super::recover::{self, IdScanner};
use super::stdio::{Input, Output};

/// Longest line that is read. A longer one is skipped, not buffered.
pub(crate) const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;
/// Above this many unsent bytes nothing more is read: a client that does not read its answers gets no more work done.
const MAX_UNSENT_BYTES: usize = 64 * 1024 * 1024;
/// The same for requests that have no answer yet. Each of them may hold a large one.
const MAX_UNANSWERED: usize = 1024;
/// How often a client that is not read from is looked at.
const STALLED_LOOK: Duration = Duration::from_millis(250);
/// Bytes asked for at a time.
const READ_BYTES: usize = 64 * 1024;
/// A buffer that grew beyond this for one message is given back.
const KEEP_BUFFER_BYTES: usize = 1024 * 1024;

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const INVALID_PARAMS: i32 = -32602;

/// The transport of one client.
pub(crate) struct LineTransport {
    input: Input,
    output: Output,
    /// Cancelled at the end of input.
    closed: CancellationToken,
    lines: LineBuffer,
    chunk: Vec<u8>,
    /// Requests that were passed on and have no answer.
    unanswered: HashSet<RequestId>,
    /// The client has to catch up: how far it was behind, and since when.
    stalled: Option<(usize, Instant)>,
    /// A request that begins a session was seen. Before it, rmcp takes anything but a request as fatal.
    opened: bool,
}

impl LineTransport {
    pub(crate) fn new(input: Input, output: Output, closed: CancellationToken) -> LineTransport {
        LineTransport {
            input,
            output,
            closed,
            lines: LineBuffer::default(),
            chunk: vec![0; READ_BYTES],
            unanswered: HashSet::new(),
            stalled: None,
            opened: false,
        }
    }

    /// Waits until the client may ask for more. Returns false when it has left.
    async fn may_ask(&mut self) -> bool {
        loop {
            let changed = self.output.changed();
            let Some(unsent) = self.output.unsent() else { return false };
            if unsent <= MAX_UNSENT_BYTES && self.unanswered.len() < MAX_UNANSWERED {
                self.stalled = None;
                return true;
            }
            let behind = unsent + self.unanswered.len();
            let since = match self.stalled {
                Some((before, since)) if before <= behind => since,
                _ => Instant::now(),
            };
            self.stalled = Some((behind, since));
            if self.input.is_hung_up() && since.elapsed() > LAST_ANSWERS {
                return false;
            }
            let _ = tokio::time::timeout(STALLED_LOOK, changed).await;
        }
    }

    /// Keeps account of a message that is passed on.
    fn note(&mut self, message: &RxJsonRpcMessage<RoleServer>) {
        match message {
            JsonRpcMessage::Request(request) => {
                self.unanswered.insert(request.id.clone());
            }
            JsonRpcMessage::Notification(notification) => {
                // It gets no answer any more.
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    self.unanswered.remove(id);
                }
            }
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => {}
        }
    }

    /// Understands a line, or answers it.
    fn read_line(&mut self, line: &[u8]) -> Option<RxJsonRpcMessage<RoleServer>> {
        let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line).trim_ascii();
        let first = line.first()?;
        if *first == b'[' {
            self.refuse_batch(line);
            return None;
        }
        match serde_json::from_slice::<RxJsonRpcMessage<RoleServer>>(line) {
            Ok(message) => {
                if let Some(fault) = fault_of_parameters(&message, line) {
                    self.answer(INVALID_PARAMS, &fault, recover::request_id(line));
                    return None;
                }
                self.opens(&message).then_some(message)
            }
            Err(error) => {
                self.refuse(line, &error);
                None
            }
        }
    }

    /// Whether rmcp may see the message.
    fn opens(&mut self, message: &RxJsonRpcMessage<RoleServer>) -> bool {
        let JsonRpcMessage::Request(request) = message else {
            if !self.opened {
                tracing::debug!("a message before the session began is ignored");
            }
            return self.opened;
        };
        self.opened |= match &request.request {
            ClientRequest::InitializeRequest(_) => true,
            ClientRequest::PingRequest(_) | ClientRequest::DiscoverRequest(_) => false,
            other => {
                let meta = other.get_meta();
                meta.missing_required_keys(&ProtocolVersion::V_2026_07_28).is_empty()
                    && meta.protocol_version().is_some_and(|v| ProtocolVersion::KNOWN_VERSIONS.contains(&v))
            }
        };
        true
    }

    fn refuse(&self, line: &[u8], error: &serde_json::Error) {
        let id = recover::request_id(line);
        if error.classify() == serde_json::error::Category::Data {
            // A broken notification or answer has nobody waiting for it.
            let nobody_waits = serde_json::from_slice::<Value>(line).is_ok_and(|value| {
                value.get("result").is_some()
                    || value.get("error").is_some()
                    || (value.get("method").is_some() && value.get("id").is_none())
            });
            if id.is_some() || !nobody_waits {
                let (code, fact) = match serde_json::from_slice(line).ok().and_then(|message| misshapen(&message)) {
                    Some(fact) => (INVALID_PARAMS, fact),
                    None => (INVALID_REQUEST, "the message is not a valid JSON-RPC 2.0 request".to_owned()),
                };
                self.answer(code, &fact, id);
            }
        } else if id.is_some() {
            self.answer(PARSE_ERROR, &format!("the message cannot be parsed: {error}"), id);
        } else {
            // Other servers are silent here too; an answer could start an endless exchange with an echoing peer.
            tracing::debug!(%error, "a line that is no message is ignored");
        }
    }

    fn refuse_batch(&self, line: &[u8]) {
        const MESSAGE: &str = "batches are not supported, send one message per line";
        let ids: Vec<Value> = serde_json::from_slice::<Vec<Value>>(line)
            .unwrap_or_default()
            .iter()
            .filter(|item| item.get("method").is_some())
            .filter_map(|item| item.get("id").filter(|id| id.is_string() || id.is_i64()).cloned())
            .collect();
        if ids.is_empty() {
            self.answer(INVALID_REQUEST, MESSAGE, None);
        }
        for id in ids {
            self.answer(INVALID_REQUEST, MESSAGE, Some(id));
        }
    }

    fn answer(&self, code: i32, message: &str, id: Option<Value>) {
        let mut answer = json!({"jsonrpc": "2.0", "error": {"code": code, "message": message}});
        // MCP's schema allows an error without id, but no null.
        if let (Some(id), Some(object)) = (id, answer.as_object_mut()) {
            object.insert("id".to_owned(), id);
        }
        let mut bytes = answer.to_string().into_bytes();
        bytes.push(b'\n');
        let send = self.output.send(&bytes);
        // The bytes are in line already; the task only waits for a slow client.
        tokio::spawn(async move {
            if let Err(error) = send.await {
                tracing::debug!(%error, "cannot answer");
            }
        });
    }
}

/// Returns what is wrong with the parameters of a request that rmcp would take for another, or for one without any.
fn fault_of_parameters(message: &RxJsonRpcMessage<RoleServer>, line: &[u8]) -> Option<String> {
    let JsonRpcMessage::Request(request) = message else { return None };
    match &request.request {
        ClientRequest::CustomRequest(custom) if custom.method == "initialize" => {
            let error = custom.params_as::<InitializeRequestParams>().err()?;
            Some(format!("invalid parameters of `initialize`: {error}"))
        }
        ClientRequest::ListToolsRequest(list) if list.params.as_ref().is_none_or(|params| params.cursor.is_none()) => {
            let message: Value = serde_json::from_slice(line).ok()?;
            misshapen(&message).or_else(|| {
                let cursor = message.get("params")?.get("cursor")?;
                (!cursor.is_null())
                    .then(|| format!("invalid parameters of `tools/list`: the cursor {cursor} is no string"))
            })
        }
        _ => None,
    }
}

/// Returns which part of a request is not the object that MCP wants there.
fn misshapen(message: &Value) -> Option<String> {
    let method = message.get("method")?.as_str()?;
    let params = message.get("params").filter(|params| !params.is_null())?;
    let part = match params.get("_meta") {
        _ if !params.is_object() => "they",
        Some(meta) if !meta.is_object() => "`_meta`",
        _ => return None,
    };
    let verb = if part == "they" { "are" } else { "is" };
    Some(format!("invalid parameters of `{method}`: {part} {verb} no object"))
}

impl Transport<RoleServer> for LineTransport {
    type Error = io::Error;

    fn send(
        &mut self,
        mut item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        match &mut item {
            JsonRpcMessage::Response(response) => {
                self.unanswered.remove(&response.id);
            }
            JsonRpcMessage::Error(answer) => {
                if let Some(id) = &answer.id {
                    self.unanswered.remove(id);
                }
                // rmcp's own message is the bare method.
                if answer.error.code == ErrorCode::METHOD_NOT_FOUND && !answer.error.message.contains(' ') {
                    answer.error.message = format!("unknown method `{}`", answer.error.message).into();
                }
            }
            JsonRpcMessage::Request(_) | JsonRpcMessage::Notification(_) => {}
        }
        let sent = match serde_json::to_vec(&item) {
            Ok(mut bytes) => {
                bytes.push(b'\n');
                Ok(self.output.send(&bytes))
            }
            Err(error) => Err(io::Error::from(error)),
        };
        async move { sent?.await }
    }

    /// Nothing is lost when the future is dropped: what was read stays in `lines`.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        while self.may_ask().await {
            if let Some(line) = self.lines.next_line() {
                match line {
                    Line::Whole(line) => {
                        if let Some(message) = self.read_line(&line) {
                            self.note(&message);
                            return Some(message);
                        }
                    }
                    Line::TooLong(id) => {
                        tracing::warn!(limit = MAX_LINE_BYTES, "a message over the limit is skipped");
                        if id.is_some() {
                            let fact = format!("the message is longer than {MAX_LINE_BYTES} bytes");
                            self.answer(INVALID_REQUEST, &fact, id);
                        }
                    }
                }
                continue;
            }
            match self.input.read(&mut self.chunk).await {
                Ok(0) => break,
                Ok(read) => self.lines.push(self.chunk.get(..read).unwrap_or_default()),
                Err(error) => {
                    tracing::warn!(%error, "cannot read from the client");
                    break;
                }
            }
        }
        self.closed.cancel();
        None
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        self.output.flush().await
    }
}

/// Bytes on their way to lines.
#[derive(Default)]
struct LineBuffer {
    bytes: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where no line ends.
    searched: usize,
    /// Reads the rest of a line that is too long.
    skipping: Option<IdScanner>,
}

enum Line {
    Whole(Vec<u8>),
    /// With its id, when it is a request.
    TooLong(Option<Value>),
}

impl LineBuffer {
    fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        if self.bytes.is_empty() && self.bytes.capacity() > KEEP_BUFFER_BYTES {
            self.bytes = Vec::new();
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn next_line(&mut self) -> Option<Line> {
        let rest = self.bytes.get(self.searched..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
        let line = self.bytes.get(self.start..end.unwrap_or(self.bytes.len())).unwrap_or_default();
        if self.skipping.is_none() && line.len() > MAX_LINE_BYTES {
            self.skipping = Some(IdScanner::default());
        }
        let result = match (&mut self.skipping, end) {
            (Some(scanner), _) => {
                scanner.push(line);
                self.start = self.bytes.len();
                end.map(|_| Line::TooLong(scanner.request_id()))
            }
            (None, Some(_)) => Some(Line::Whole(line.to_vec())),
            (None, None) => None,
        };
        match end {
            Some(end) => {
                self.skipping = None;
                self.start = end + 1;
                self.searched = self.start;
            }
            None => self.searched = self.bytes.len(),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut buffer = LineBuffer::default();
        let mut lines = Vec::new();
        for piece in pieces {
            buffer.push(piece);
            while let Some(line) = buffer.next_line() {
                lines.push(match line {
                    Line::Whole(line) => String::from_utf8(line).unwrap(),
                    Line::TooLong(id) => format!("too long, id {id:?}"),
                });
            }
        }
        lines
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = b"one\n\ntwo\r\nthree\nfour";
        for size in 1..=text.len() {
            let pieces: Vec<&[u8]> = text.chunks(size).collect();
            assert_eq!(lines(&pieces), ["one", "", "two\r", "three"], "pieces of {size}");
        }
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_and_its_id_kept() {
        let filler = vec![b'x'; MAX_LINE_BYTES / 2];
        let pieces: &[&[u8]] =
            &[br#"{"method":"tools/call","params":{"a":""#, &filler, &filler, &filler, br#""},"id":41}"#, b"\nnext\n"];
        assert_eq!(lines(pieces), ["too long, id Some(Number(41))", "next"]);
    }

    #[test]
    fn a_line_at_the_limit_is_read() {
        let mut filler = vec![b'x'; MAX_LINE_BYTES];
        filler.push(b'\n');
        assert_eq!(lines(&[&filler])[0].len(), MAX_LINE_BYTES);
    }

    #[test]
    fn memory_of_a_long_line_is_not_kept() {
        let mut buffer = LineBuffer::default();
        for _ in 0..3 * MAX_LINE_BYTES / READ_BYTES {
            buffer.push(&[b'x'; READ_BYTES]);
            assert!(buffer.next_line().is_none());
        }
        assert!(buffer.bytes.len() <= MAX_LINE_BYTES + READ_BYTES);
    }
}
