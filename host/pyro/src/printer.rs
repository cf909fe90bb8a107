//! The only place that prints.
//!
//! Data goes to standard output, everything else to standard error. Meaning never depends on colour; there is none. On
//! a terminal one status line says what is being done, elsewhere a long operation says so in plain lines, seldom.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use crate::failure::{EXIT_BROKEN_PIPE, EXIT_FAILURE, Failure};

/// On a terminal the status line is drawn at most this often.
const REDRAW: Duration = Duration::from_millis(100);
/// Off a terminal an operation is worth a line when it takes longer than this...
const WORTH_A_LINE: Duration = Duration::from_secs(4);
/// ...and another one this long after the last.
const NEXT_LINE: Duration = Duration::from_secs(10);
/// Longest status line; a terminal would wrap a longer one and leave its rest behind.
const STATUS_COLUMNS: usize = 78;

/// How much is said on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

pub struct Printer {
    verbosity: Verbosity,
    terminal: bool,
    status: Mutex<Status>,
    /// The exit code when standard output cannot be written.
    exit_code: AtomicU8,
}

#[derive(Default)]
struct Status {
    started: Option<Instant>,
    drawn: Option<Instant>,
    /// Something stands on the terminal's last line.
    visible: bool,
    last_message: String,
    last_done: f64,
    last_total: Option<f64>,
    /// Output of a command has begun; from then on standard error is the command's.
    ended: bool,
}

impl Printer {
    pub fn new(verbosity: Verbosity) -> Printer {
        Printer {
            verbosity,
            terminal: io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            status: Mutex::default(),
            exit_code: AtomicU8::new(EXIT_FAILURE),
        }
    }

    /// Sets the exit code for standard output that cannot be written: where a command's own exit code is pyro's, a
    /// failure of pyro has another than elsewhere.
    pub fn fail_with(&self, exit_code: u8) {
        self.exit_code.store(exit_code, Ordering::Relaxed);
    }

    pub fn is_verbose(&self) -> bool {
        self.verbosity == Verbosity::Verbose
    }

    /// Whether somebody looks at standard error.
    pub fn is_interactive(&self) -> bool {
        self.terminal && self.verbosity > Verbosity::Quiet
    }

    /// Prints text as it is.
    pub fn data(&self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Prints a line of data.
    pub fn line(&self, line: &str) {
        self.bytes(format!("{line}\n").as_bytes());
    }

    /// Prints bytes as they are, to standard output.
    pub fn bytes(&self, bytes: &[u8]) {
        self.clear_status();
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            give_up_on_output(&error, self.exit_code.load(Ordering::Relaxed));
        }
    }

    /// Prints bytes of a command as they are, to standard error.
    pub fn error_bytes(&self, bytes: &[u8]) {
        self.clear_status();
        // When nobody reads our errors there is nobody to tell.
        let _ = io::stderr().lock().write_all(bytes);
    }

    /// Prints a value as indented JSON.
    pub fn json(&self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(&text),
            Err(error) => self.warning(&format!("the result cannot be shown as JSON: {error}")),
        }
    }

    /// Says something that is no data.
    pub fn note(&self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.error_line(text);
        }
    }

    /// Says something that only matters to who asked for more.
    pub fn detail(&self, text: &str) {
        if self.is_verbose() {
            self.error_line(text);
        }
    }

    /// Says what may be wrong. Only `--quiet` hides it.
    pub fn warning(&self, text: &str) {
        self.note(&format!("warning: {text}"));
    }

    /// Prints what went wrong, for a reader and, with `--json`, for a program.
    pub fn failure(&self, failure: &Failure, as_json: bool) {
        for fact in &failure.facts {
            if let Some(output) = &fact.output {
                for line in output.trim_end().lines() {
                    self.error_line(&format!("  | {line}"));
                }
            }
            self.error_line(&format!("error: {}", fact.message));
            if let Some(hint) = &fact.hint {
                self.error_line(&format!("hint: {}", hint.replace('\n', "\n      ")));
            }
        }
        if as_json && let Some(first) = failure.facts.first() {
            self.json(&json!({ "error": first, "errors": failure.facts }));
        }
    }

    /// Shows what is being done.
    pub fn progress(&self, message: &str, done: f64, total: Option<f64>) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        let mut status = self.status();
        if status.ended {
            return;
        }
        let now = Instant::now();
        let started = *status.started.get_or_insert(now);
        (status.last_done, status.last_total) = (done, total);
        let changed = status.last_message != message;
        if changed {
            status.last_message = message.to_owned();
        }
        let since = status.drawn.map(|drawn| now.duration_since(drawn));
        let percent = percent_of(done, total);
        let elapsed = now.duration_since(started).as_secs_f64();
        if self.terminal {
            if since.is_none_or(|since| since >= REDRAW) || (changed && self.is_verbose()) {
                let text: String =
                    format!("{percent}{message} ({elapsed:.1} s)").chars().take(STATUS_COLUMNS).collect();
                let _ = write!(io::stderr().lock(), "\r\x1b[2K{text}");
                status.visible = true;
                status.drawn = Some(now);
            }
        } else {
            let due = match since {
                None => now.duration_since(started) >= WORTH_A_LINE,
                Some(since) => since >= NEXT_LINE,
            };
            if due || (changed && self.is_verbose()) {
                let _ = writeln!(io::stderr().lock(), "{percent}{message} ({elapsed:.1} s)");
                status.drawn = Some(now);
            }
        }
    }

    /// Says in a line of its own what is being done, once for each message.
    pub fn step(&self, message: &str, done: f64, total: Option<f64>) {
        let mut status = self.status();
        if self.verbosity == Verbosity::Quiet || status.last_message == message {
            return;
        }
        status.last_message = message.to_owned();
        drop(status);
        self.error_line(&format!("{}{message}", percent_of(done, total)));
    }

    /// Draws the status line again, with the time that has passed since.
    pub fn tick(&self) {
        let (message, done, total) = {
            let status = self.status();
            (status.last_message.clone(), status.last_done, status.last_total)
        };
        if !message.is_empty() {
            self.progress(&message, done, total);
        }
    }

    /// Takes the status line away for good.
    pub fn end_progress(&self) {
        self.clear_status();
        self.status().ended = true;
    }

    fn error_line(&self, line: &str) {
        self.clear_status();
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    fn clear_status(&self) {
        let mut status = self.status();
        if status.visible {
            let _ = write!(io::stderr().lock(), "\r\x1b[2K");
            status.visible = false;
        }
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn percent_of(done: f64, total: Option<f64>) -> String {
    match total {
        Some(total) if total > 0.0 && done >= 0.0 => {
            format!("{:3.0} %  ", (done / total * 100.0).min(100.0))
        }
        _ => String::new(),
    }
}

/// Ends the program: what it is asked for cannot be delivered. Machines of a running call end with the process.
fn give_up_on_output(error: &io::Error, exit_code: u8) -> ! {
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(i32::from(EXIT_BROKEN_PIPE));
    }
    let _ = writeln!(io::stderr().lock(), "error: cannot write to standard output: {error}");
    std::process::exit(i32::from(exit_code));
}
