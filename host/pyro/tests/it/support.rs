//! A home of its own for each test, and a raw MCP client.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for a busy machine, short enough to notice.
pub const SOON: Duration = Duration::from_secs(10);

/// A directory that is home, `PYRO_HOME` and working directory at once.
pub struct Home {
    directory: TempDir,
}

impl Home {
    pub fn new() -> Home {
        Home { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Puts a program in front of the ones of this machine. It writes its process id to `NAME.pid`, then sleeps.
    pub fn sleeping_program(&self, name: &str) -> PathBuf {
        let pid_file = self.path().join(format!("{name}.pid"));
        let text = format!("#!/bin/sh\necho $$ > {}\nexec sleep 600\n", pid_file.display());
        let path = self.write(&format!("bin/{name}.text"), &text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // Copied by another process: a child that a test next to this one is just starting would hold a file that this
        // process has open for writing, and such a file cannot be executed.
        assert!(Command::new("cp").arg(&path).arg(path.with_extension("")).status().unwrap().success());
        pid_file
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pyro"));
        let system = std::env::var("PATH").unwrap_or_default();
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("HOME", self.path())
            .env("PYRO_HOME", self.path().join("pyro"))
            .env("PATH", format!("{}:{system}", self.path().join("bin").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        Run::from(self.command(args).output().unwrap())
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Run {
        Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Run {
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Run {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Wire {
    Pipes,
    /// Two socket pairs, as Node makes them.
    Sockets,
}

/// A server, and its streams for a client that reads them as it likes.
pub fn start_unread(home: &Home, args: &[&str], wire: Wire) -> (Child, File, File) {
    let mut command = home.command(&[&["mcp", "serve"], args].concat());
    command.stderr(Stdio::inherit());
    match wire {
        Wire::Pipes => {
            let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
            let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            (child, File::from(OwnedFd::from(input)), File::from(OwnedFd::from(output)))
        }
        Wire::Sockets => {
            let (input, theirs_in) = UnixStream::pair().unwrap();
            let (output, theirs_out) = UnixStream::pair().unwrap();
            command.stdin(OwnedFd::from(theirs_in)).stdout(OwnedFd::from(theirs_out));
            let child = command.spawn().unwrap();
            (child, File::from(OwnedFd::from(input)), File::from(OwnedFd::from(output)))
        }
    }
}

/// Waits for a server that is to end well.
#[track_caller]
pub fn wait_for_success(mut server: Child, what: &str) {
    let started = Instant::now();
    let status = loop {
        if let Some(status) = server.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > SOON {
            let _ = server.kill();
            let _ = server.wait();
            panic!("{what}: the server does not end");
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{what}: {status}");
}

/// A server and the client's end of its streams.
pub struct Client {
    child: Child,
    input: Option<File>,
    messages: Receiver<Value>,
    waiting: VecDeque<Value>,
    next_id: i64,
    meta: Option<Value>,
}

impl Client {
    pub fn start(home: &Home, args: &[&str], wire: Wire) -> Client {
        let (child, input, output) = start_unread(home, args, wire);
        let (sender, messages) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                // Nothing but MCP may come out: anything else becomes a value that no test expects.
                let message = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "not JSON": line }));
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Client { child, input: Some(input), messages, waiting: VecDeque::new(), next_id: 1, meta: None }
    }

    /// A client that has shaken hands.
    pub fn ready(home: &Home) -> Client {
        let mut client = Client::start(home, &["--profile", "vm-run"], Wire::Pipes);
        client.initialize("2025-11-25");
        client
    }

    pub fn initialize(&mut self, version: &str) -> Value {
        let answer = self.request(
            "initialize",
            json!({"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}),
        );
        self.notify("notifications/initialized", json!({}));
        answer["result"].clone()
    }

    /// From now on each request is one of the stateless revision.
    pub fn stateless(&mut self) {
        self.meta = Some(json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }));
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().unwrap();
        input.write_all(bytes).unwrap();
        input.flush().unwrap();
    }

    pub fn line(&mut self, line: &str) {
        self.raw(format!("{line}\n").as_bytes());
    }

    pub fn notify(&mut self, method: &str, params: Value) {
        self.line(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string());
    }

    pub fn send(&mut self, method: &str, mut params: Value) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        if let Some(meta) = &self.meta {
            for (key, value) in meta.as_object().unwrap() {
                params["_meta"][key] = value.clone();
            }
        }
        self.line(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string());
        id
    }

    pub fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.send(method, params);
        self.answer(&json!(id))
    }

    #[track_caller]
    pub fn answer(&mut self, id: &Value) -> Value {
        self.next(SOON, |message| message["id"] == *id).unwrap_or_else(|| panic!("no answer for {id}"))
    }

    pub fn call(&mut self, name: &str, arguments: Value) -> Value {
        self.request("tools/call", json!({"name": name, "arguments": arguments}))
    }

    /// Returns the next message that fits, within `limit`; keeps the others.
    pub fn next(&mut self, limit: Duration, fits: impl Fn(&Value) -> bool) -> Option<Value> {
        if let Some(index) = self.waiting.iter().position(&fits) {
            return self.waiting.remove(index);
        }
        let deadline = Instant::now() + limit;
        loop {
            match self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(message) if fits(&message) => return Some(message),
                Ok(message) => self.waiting.push_back(message),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Closes the server's input and returns how, and how fast, it ended.
    pub fn close(&mut self) -> (ExitStatus, Duration) {
        drop(self.input.take());
        self.wait()
    }

    pub fn wait(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, started.elapsed());
            }
            assert!(started.elapsed() < SOON, "the server does not end");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a file with a process id in it.
pub fn wait_for_pid(file: &Path) -> i32 {
    let started = Instant::now();
    loop {
        if let Some(pid) = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()) {
            return pid;
        }
        assert!(started.elapsed() < SOON, "{} does not appear", file.display());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns how long a process still lived.
pub fn wait_for_end(pid: i32) -> Duration {
    let started = Instant::now();
    let stat = PathBuf::from(format!("/proc/{pid}/stat"));
    // A zombie has ended, too.
    while fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z")) {
        assert!(started.elapsed() < SOON, "process {pid} does not end");
        thread::sleep(Duration::from_millis(1));
    }
    started.elapsed()
}
