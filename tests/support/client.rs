//! A raw MCP client: JSON lines over the server's stdio, so that a test says
//! exactly what is on the wire.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::home::{Home, Running};

/// How client and server are connected. Hosts use both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Two pipes.
    Pipes,
    /// One Unix socket pair as the server's stdin and stdout.
    SocketPair,
}

/// A client with its server process.
pub struct Client {
    server: Running,
    input: Option<Box<dyn Write + Send>>,
    /// The client's end of a socket pair: closing it takes a shutdown, because
    /// the reader holds it too.
    socket: Option<UnixStream>,
    messages: Receiver<Value>,
    pending: VecDeque<Value>,
    next_id: i64,
    /// Sent with each request of the stateless revision.
    meta: Option<Value>,
}

impl Client {
    /// Starts `pyro mcp serve` with `args` and does not say anything yet.
    ///
    /// # Panics
    ///
    /// When the server cannot be started.
    #[must_use]
    pub fn connect(home: &Home, args: &[&str], transport: Transport) -> Self {
        let mut all = vec!["mcp", "serve"];
        all.extend(args);
        let mut command = home.command(&all);
        command.stderr(Stdio::inherit());
        let mut ours = None;
        if transport == Transport::SocketPair {
            let (client, server) = UnixStream::pair().expect("a socket pair");
            command.stdin(OwnedFd::from(server.try_clone().expect("the socket is open")));
            command.stdout(OwnedFd::from(server));
            ours = Some(client);
        } else {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().expect("the server starts");
        let (input, output): (Box<dyn Write + Send>, Box<dyn Read + Send>) = match &ours {
            Some(socket) => (
                Box::new(socket.try_clone().expect("the socket is open")),
                Box::new(socket.try_clone().expect("the socket is open")),
            ),
            None => (
                Box::new(child.stdin.take().expect("the pipe was asked for")),
                Box::new(child.stdout.take().expect("the pipe was asked for")),
            ),
        };
        let (sender, messages) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                let message = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "not-json": line }));
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Self {
            server: Running { child },
            input: Some(input),
            socket: ours,
            messages,
            pending: VecDeque::new(),
            next_id: 1,
            meta: None,
        }
    }

    /// Connects over pipes and shakes hands by the 2025-11-25 revision.
    #[must_use]
    pub fn initialized(home: &Home, args: &[&str]) -> Self {
        let mut client = Self::connect(home, args, Transport::Pipes);
        client.initialize();
        client
    }

    /// The handshake of the revisions up to 2025-11-25.
    ///
    /// # Panics
    ///
    /// When the server refuses it.
    pub fn initialize(&mut self) -> Value {
        let answer = self.request(
            "initialize",
            json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "e2e", "version": "1" } }),
        );
        self.notify("notifications/initialized", json!({}));
        answer["result"].clone()
    }

    /// Makes every later request one of the stateless 2026-07-28 revision.
    pub fn stateless(&mut self) {
        self.meta = Some(json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": { "name": "e2e", "version": "1" },
        }));
    }

    /// Writes one line as it is.
    ///
    /// # Panics
    ///
    /// When the server has closed its input.
    pub fn send_line(&mut self, line: &[u8]) {
        let input = self.input.as_mut().expect("the input is still open");
        input
            .write_all(line)
            .and_then(|()| input.write_all(b"\n"))
            .and_then(|()| input.flush())
            .expect("the server reads");
    }

    /// Sends a notification.
    pub fn notify(&mut self, method: &str, params: Value) {
        self.send_line(json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string().as_bytes());
    }

    /// Sends a request and returns its id.
    pub fn send(&mut self, method: &str, mut params: Value) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        if let (Some(meta), Some(params)) = (&self.meta, params.as_object_mut()) {
            let own = params.remove("_meta");
            let mut meta = meta.clone();
            if let (Some(meta), Some(Value::Object(own))) = (meta.as_object_mut(), own) {
                meta.extend(own);
            }
            params.insert("_meta".to_owned(), meta);
        }
        self.send_line(
            json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string().as_bytes(),
        );
        id
    }

    /// Returns the next message that `wanted` accepts, keeping the others for
    /// later; `None` when none comes within `limit` or the server ends.
    pub fn next(&mut self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        if let Some(index) = self.pending.iter().position(&wanted) {
            return self.pending.remove(index);
        }
        let deadline = Instant::now() + limit;
        loop {
            match self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(message) if wanted(&message) => return Some(message),
                Ok(message) => self.pending.push_back(message),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Returns the answer to the request `id`.
    ///
    /// # Panics
    ///
    /// When none comes within two minutes.
    pub fn answer(&mut self, id: i64) -> Value {
        self.next(Duration::from_secs(120), |message| message["id"] == json!(id) && message.get("method").is_none())
            .unwrap_or_else(|| panic!("request {id} was not answered; other messages: {:?}", self.pending))
    }

    /// Sends a request and returns the whole answer, `result` or `error`.
    pub fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.send(method, params);
        self.answer(id)
    }

    /// Calls a tool and returns the result.
    ///
    /// # Panics
    ///
    /// When the answer is a protocol error.
    pub fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let answer = self.request("tools/call", json!({ "name": tool, "arguments": arguments }));
        assert!(answer.get("error").is_none(), "{tool} failed: {answer}");
        answer["result"].clone()
    }

    /// Closes the input and returns how the server ended.
    ///
    /// # Panics
    ///
    /// When it has not ended within `limit`.
    pub fn close_within(&mut self, limit: Duration) -> ExitStatus {
        self.close();
        self.server.wait_within(limit)
    }

    /// Closes the input.
    pub fn close(&mut self) {
        self.input = None;
        if let Some(socket) = &self.socket {
            // The server may have closed it first.
            drop(socket.shutdown(std::net::Shutdown::Write));
        }
    }

    /// The server's process.
    pub fn server(&mut self) -> &mut Running {
        &mut self.server
    }
}
