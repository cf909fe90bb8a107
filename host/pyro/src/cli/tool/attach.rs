//! `pyro workspace shell attach`: a person's terminal on a shell of a workspace.
//!
//! It is made of the tools that an agent has too, `shell_open`, `shell_read`, `shell_write` and `shell_resize`, so it
//! exists where a profile has them, and what it shows is redacted as theirs is.

use std::io::{IsTerminal, Read};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command};
use pyro::{CallOptions, Toolbox};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::signals::StopSignals;
use crate::failure::Failure;
use crate::printer::Printer;

/// The words of the command.
pub const PATH: [&str; 3] = ["workspace", "shell", "attach"];
const WORKSPACE: &str = "workspace_id";
const SHELL: &str = "shell_id";
/// Ctrl-], as telnet has it.
const DETACH: u8 = 0x1d;
/// How long a read waits for the output to pause: while somebody types, and otherwise.
const PAUSE_MS: (u64, u64) = (10, 100);
/// How long after the last key somebody still types.
const TYPING: Duration = Duration::from_secs(3);

/// How long pyro has to end by itself after a signal.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// What `shell_open` and `shell_resize` take.
const COLS: RangeInclusive<u16> = 20..=500;
/// Rows too.
const ROWS: RangeInclusive<u16> = 5..=200;

/// Says whether a profile has what it takes.
pub fn is_possible(toolbox: &Toolbox) -> bool {
    ["shell_open", "shell_read", "shell_write"].iter().all(|name| toolbox.tool(name).is_some())
}

/// Returns its command.
pub fn command() -> Command {
    Command::new("attach")
        .about("Put this terminal on a shell of a workspace")
        .long_about(
            "Put this terminal on a shell of a workspace\n\nOpens a new shell when none is named. Ctrl-] detaches: the \
             shell goes on, and `pyro workspace shell attach WORKSPACE_ID SHELL_ID` comes back to it.",
        )
        .arg(Arg::new(WORKSPACE).value_name("WORKSPACE_ID").required(true).help("The workspace"))
        .arg(Arg::new(SHELL).value_name("SHELL_ID").help("The shell; a new one when none is named"))
}

/// Attaches until the shell ends or the person detaches. Returns the exit code.
pub async fn run(toolbox: &Toolbox, matches: &ArgMatches, printer: &Arc<Printer>) -> Result<u8, Failure> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let workspace = text(WORKSPACE).unwrap_or_default();
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Failure::new("invalid_argument", "standard input and output are not a terminal")
            .with_hint("use `pyro workspace shell write` and `pyro workspace shell read` from a program"));
    }
    let shell = Shell { toolbox, workspace: workspace.clone(), id: String::new() };
    let (cols, rows) = size();
    let shell = match text(SHELL) {
        Some(id) => {
            let shell = Shell { id, ..shell };
            // One that there is not is told before anything is said of it.
            shell.call("shell_read", json!({"max_chars": 1})).await?;
            shell
        }
        None => {
            let opened = shell.call("shell_open", json!({"cols": cols, "rows": rows})).await?;
            let id = opened.get(SHELL).and_then(Value::as_str).unwrap_or_default().to_owned();
            Shell { id, ..shell }
        }
    };
    printer.note(&format!("attached to shell {} of workspace {workspace}; Ctrl-] detaches", shell.id));
    // Before the terminal is raw: none of them may come when it is and nobody waits for them.
    let signals = StopSignals::listen()?;
    let raw = RawTerminal::enter()?;
    let stopped = watch(signals, RawTerminal(raw.0.clone()));
    let ended = tokio::select! {
        ended = session(&shell, printer) => ended,
        // The terminal may be what has gone: nothing is said.
        Ok(exit_code) = stopped => return Ok(exit_code),
    };
    drop(raw);
    printer.data("\n");
    match ended? {
        Some(exit_code) => Ok(u8::try_from(exit_code & 0xff).unwrap_or(1)),
        None => {
            printer.note(&format!("detached; `pyro workspace shell attach {workspace} {}` comes back", shell.id));
            Ok(0)
        }
    }
}

/// Returns what tells the exit code for the first of the signals that would end pyro and leave the terminal raw; the keys
/// that send one are the shell's meanwhile. When that is not enough, as while the terminal takes no output, a second one
/// or a short time ends the process.
fn watch(mut signals: StopSignals, terminal: RawTerminal) -> oneshot::Receiver<u8> {
    let (sender, first) = oneshot::channel();
    tokio::spawn(async move {
        let exit_code = signals.next().await;
        let _ = sender.send(exit_code);
        let _ = tokio::time::timeout(STOP_LIMIT, signals.next()).await;
        drop(terminal);
        std::process::exit(i32::from(exit_code));
    });
    first
}

/// Carries bytes both ways. Returns the shell's exit code, and none when the person detached.
async fn session(shell: &Shell<'_>, printer: &Arc<Printer>) -> Result<Option<i64>, Failure> {
    let mut keys = keys();
    let mut resized = signal(SignalKind::window_change())?;
    shell.resize().await;
    let mut typed_at = Instant::now();
    let (mut cursor, mut pending) = (0, Vec::new());
    loop {
        let pause = if typed_at.elapsed() < TYPING { PAUSE_MS.0 } else { PAUSE_MS.1 };
        let arguments = json!({"cursor": cursor, "wait_for_idle_ms": pause});
        // A read that is given up is asked again from the same place, so nothing is lost.
        let read = tokio::select! {
            biased;
            bytes = keys.recv() => {
                typed_at = Instant::now();
                let Some(bytes) = bytes else { return Ok(None) };
                pending.extend_from_slice(&bytes);
                let detach = pending.iter().position(|byte| *byte == DETACH);
                pending.truncate(detach.unwrap_or(pending.len()));
                shell.write(&mut pending).await?;
                if detach.is_some() {
                    return Ok(None);
                }
                continue;
            }
            _ = resized.recv() => {
                shell.resize().await;
                continue;
            }
            read = shell.call("shell_read", arguments) => read?,
        };
        cursor = read.get("next_cursor").and_then(Value::as_u64).unwrap_or(cursor);
        let output = read.get("output").and_then(Value::as_str).unwrap_or_default();
        printer.data(output);
        if output.is_empty() && read.get("state").and_then(Value::as_str) == Some("stopped") {
            return Ok(Some(read.get("exit_code").and_then(Value::as_i64).unwrap_or_default()));
        }
    }
}

struct Shell<'a> {
    toolbox: &'a Toolbox,
    workspace: String,
    id: String,
}

impl Shell<'_> {
    async fn call(&self, tool: &str, arguments: Value) -> Result<Map<String, Value>, Failure> {
        let mut all = Map::new();
        all.insert(WORKSPACE.to_owned(), self.workspace.as_str().into());
        if !self.id.is_empty() {
            all.insert(SHELL.to_owned(), self.id.as_str().into());
        }
        if let Value::Object(arguments) = arguments {
            all.extend(arguments);
        }
        let options = CallOptions { session_id: format!("cli-{}", std::process::id()), ..CallOptions::default() };
        Ok(self.toolbox.call(tool, all, options).await?.structured.unwrap_or_default())
    }

    /// Writes what is whole UTF-8 and keeps the beginning of a character for the next time.
    async fn write(&self, bytes: &mut Vec<u8>) -> Result<(), Failure> {
        let whole = match std::str::from_utf8(bytes) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            // No terminal sends that; what it was meant to be cannot be told.
            Err(_) => bytes.len(),
        };
        let rest = bytes.split_off(whole);
        let input = String::from_utf8_lossy(bytes).into_owned();
        *bytes = rest;
        if !input.is_empty() {
            self.call("shell_write", json!({"input": input, "append_newline": false})).await?;
        }
        Ok(())
    }

    /// Tells the shell how large this terminal is, where there is a tool for it.
    async fn resize(&self) {
        if self.toolbox.tool("shell_resize").is_some() {
            let (cols, rows) = size();
            // A shell that has just ended is noticed by the next read.
            let _ = self.call("shell_resize", json!({"cols": cols, "rows": rows})).await;
        }
    }
}

/// Returns the size for the shell of this terminal.
fn size() -> (u16, u16) {
    let size = tcgetwinsize(std::io::stdout().as_fd()).ok();
    shell_size(size.map_or((0, 0), |size| (size.ws_col, size.ws_row)))
}

/// Returns the size nearest to a terminal's that a shell can have. One that tells none is as most are.
fn shell_size((cols, rows): (u16, u16)) -> (u16, u16) {
    if cols == 0 || rows == 0 {
        return (80, 24);
    }
    (cols.clamp(*COLS.start(), *COLS.end()), rows.clamp(*ROWS.start(), *ROWS.end()))
}

/// Returns what is typed. The thread that reads ends with the process: a read of a terminal cannot be interrupted.
fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, keys) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = std::io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(buffer.get(..count).unwrap_or_default().to_vec()).is_err() {
                return;
            }
        }
    });
    keys
}

/// The terminal in raw mode; as it was again when dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<RawTerminal, Failure> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).map_err(std::io::Error::from)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).map_err(std::io::Error::from)?;
        Ok(RawTerminal(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::shell_size;

    #[test]
    fn any_terminal_has_a_size_that_a_shell_takes() {
        for (terminal, shell) in [
            ((100, 30), (100, 30)),
            ((10, 3), (20, 5)),
            ((800, 300), (500, 200)),
            ((0, 0), (80, 24)),
            ((0, 30), (80, 24)),
        ] {
            assert_eq!(shell_size(terminal), shell, "{terminal:?}");
        }
    }
}
