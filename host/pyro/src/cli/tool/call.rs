//! Calls a tool for a person at a terminal: output streams as it comes, Ctrl-C ends the call, and a command's exit code
//! is ours.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::ArgMatches;
use pyro::{CallInput, CallObserver, CallOptions, OutputStream, ToolDef, Toolbox};
use serde_json::{Map, Value};

use super::show::{self, Way};
use super::signals::StopSignals;
use crate::failure::{EXIT_FAILURE, EXIT_RUN_FAILURE, EXIT_TIMEOUT, Failure};
use crate::printer::Printer;

/// How often the status line shows that time passes.
const TICK: Duration = Duration::from_millis(200);

/// Calls a tool and shows its result. Returns the exit code.
pub async fn call(
    toolbox: &Toolbox,
    tool: &ToolDef,
    arguments: Map<String, Value>,
    matches: &ArgMatches,
    printer: &Arc<Printer>,
) -> Result<u8, Failure> {
    let started = Instant::now();
    // Before anything else, so that no interrupt is lost.
    let mut stop = StopSignals::listen()?;
    let form = tool.cli.clone().unwrap_or_default();
    let way = Way::of(matches);
    let observer = Arc::new(Observer {
        printer: Arc::clone(printer),
        streaming: form.streams && way == Way::Human,
        streamed: AtomicBool::new(false),
    });
    let options = CallOptions {
        observer: observer.clone(),
        session_id: format!("cli-{}", std::process::id()),
        call_id: format!("cli-{}-1", std::process::id()),
        stdin: if form.stdin { caller_input() } else { None },
        traceparent: std::env::var("TRACEPARENT").ok(),
    };
    let asked = arguments.get("timeout_seconds").and_then(Value::as_u64);
    let outcome = tokio::select! {
        biased;
        exit_code = first_of(&mut stop) => {
            printer.end_progress();
            let what = if form.streams { "interrupted: the command is ended" } else { "interrupted" };
            printer.note(what);
            return Ok(exit_code);
        }
        outcome = toolbox.call(&tool.name, arguments, options) => {
            outcome.map_err(|error| with_commands(error.into(), toolbox))?
        }
        never = tick(printer) => never,
    };
    printer.end_progress();
    show::outcome(&outcome, &form, way, observer.streamed.load(Ordering::Relaxed), printer);
    let result = outcome.structured.unwrap_or_default();
    if form.exit_code.is_none() {
        return Ok(if outcome.is_error { EXIT_FAILURE } else { 0 });
    }
    if way == Way::Human {
        summarise(&result, started.elapsed(), printer);
        if let Some(limit) = time_over(&result, asked) {
            printer.note(&format!(
                "error: the command was killed after {limit} s\nhint: give it more with --timeout-seconds"
            ));
        }
    }
    Ok(exit_code_of(&result, form.exit_code.as_deref(), outcome.is_error))
}

/// Puts the commands of tools in the place of their names in hints: what a person can type.
fn with_commands(mut failure: Failure, toolbox: &Toolbox) -> Failure {
    // One that has a command already is for a person.
    for hint in failure.facts.iter_mut().filter_map(|fact| fact.hint.as_mut()).filter(|hint| !hint.contains("pyro ")) {
        let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = hint.split_inclusive(|c: char| !in_name(c)).map(|piece| {
            let name = piece.trim_end_matches(|c: char| !in_name(c));
            match toolbox.tools().iter().find(|tool| tool.name == name && name.contains('_')) {
                Some(tool) => format!("`pyro {}`{}", super::path_of(tool).join(" "), piece.split_at(name.len()).1),
                None => piece.to_owned(),
            }
        });
        *hint = words.collect();
    }
    failure
}

/// Hears of the call while it runs.
struct Observer {
    printer: Arc<Printer>,
    /// Output is shown as it comes.
    streaming: bool,
    /// Some was.
    streamed: AtomicBool,
}

impl CallObserver for Observer {
    fn progress(&self, done: f64, total: Option<f64>, message: Option<&str>) {
        self.printer.progress(message.unwrap_or("working"), done, total);
    }

    fn output(&self, stream: OutputStream, bytes: &[u8]) {
        if !self.streaming {
            return;
        }
        if !self.streamed.swap(true, Ordering::Relaxed) {
            self.printer.end_progress();
        }
        // A slow reader of ours slows the command down, not the threads of the runtime.
        tokio::task::block_in_place(|| match stream {
            OutputStream::Stdout => self.printer.bytes(bytes),
            OutputStream::Stderr => self.printer.error_bytes(bytes),
        });
    }
}

/// Returns the exit code for the first signal. A second one ends the process at once, whatever holds it up.
async fn first_of(signals: &mut StopSignals) -> u8 {
    let exit_code = signals.next().await;
    if let Ok(mut again) = StopSignals::listen() {
        tokio::spawn(async move {
            let exit_code = again.next().await;
            std::process::exit(i32::from(exit_code));
        });
    }
    exit_code
}

/// Keeps the status line moving. Never ends.
async fn tick<T>(printer: &Printer) -> T {
    if !printer.is_interactive() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(TICK).await;
        printer.tick();
    }
}

/// What the command reads. A terminal is not passed on: the command would wait for a person who expects none.
fn caller_input() -> Option<CallInput> {
    if std::io::stdin().is_terminal() {
        return None;
    }
    Some(Box::pin(tokio::io::stdin()))
}

fn summarise(result: &Map<String, Value>, total: Duration, printer: &Printer) {
    if !printer.is_verbose() {
        return;
    }
    let text = |key: &str| result.get(key).and_then(Value::as_str).unwrap_or("unknown");
    let seconds = result.get("duration_ms").and_then(Value::as_f64).map_or(0.0, |ms| ms / 1e3);
    printer.detail(&format!(
        "pyro: as {}, command {seconds:.2} s, everything {:.2} s",
        text("execution_mode"),
        total.as_secs_f64()
    ));
}

/// Returns the time in seconds that the command was given, when it needed more.
fn time_over(result: &Map<String, Value>, asked: Option<u64>) -> Option<u64> {
    if result.get("timed_out").and_then(Value::as_bool) != Some(true) {
        return None;
    }
    let ran = result.get("duration_ms").and_then(Value::as_u64).unwrap_or_default() / 1000;
    Some(asked.unwrap_or(ran))
}

fn exit_code_of(result: &Map<String, Value>, property: Option<&str>, is_error: bool) -> u8 {
    if time_over(result, None).is_some() {
        return EXIT_TIMEOUT;
    }
    if let Some(exit_code) = property.and_then(|name| result.get(name)).and_then(Value::as_i64) {
        // A shell reports 128 + N itself; whatever else the guest says is cut as a process's exit status is.
        return u8::try_from(exit_code & 0xFF).unwrap_or(EXIT_FAILURE);
    }
    if is_error { EXIT_RUN_FAILURE } else { 0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exit_codes_follow_the_result() {
        let code = |value: Value| exit_code_of(value.as_object().unwrap(), Some("exit_code"), false);
        assert_eq!(code(json!({"exit_code": 7})), 7);
        assert_eq!(code(json!({"exit_code": 124, "timed_out": true})), EXIT_TIMEOUT);
        assert_eq!(code(json!({"exit_code": 137})), 137);
        assert_eq!(code(json!({"exit_code": -1})), 255);
        assert_eq!(code(json!({})), 0);
        assert_eq!(exit_code_of(&Map::new(), Some("exit_code"), true), EXIT_RUN_FAILURE);
    }
}
