//! `pyro run`: one command in a microVM of its own.
//!
//! It calls the tool `vm_run` of a profile, as an MCP client would, and shows the result differently: output streams as
//! it comes, and the command's exit code is ours.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pyro::{CallInput, CallObserver, CallOptions, OutputStream};
use serde_json::{Map, Value};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Context;
use crate::failure::{EXIT_FAILURE, EXIT_RUN_FAILURE, EXIT_TIMEOUT, Failure};
use crate::printer::Printer;

const TOOL: &str = "vm_run";
const DEFAULT_PROFILE: &str = "vm-run";
/// How often the status line shows that time passes.
const TICK: Duration = Duration::from_millis(200);

/// Run a command in a microVM of its own
///
/// Makes a microVM from an environment, runs one command in it, and ends it. Output streams as it comes; standard
/// input is passed on when it is not a terminal; the command's exit code becomes pyro's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    pyro run debian:12 -- git --version\n  \
    pyro run debian:12 -- 'echo $HOME | wc -c'          one word after -- is a line for the shell\n  \
    pyro run debian:12 -- printf '%s\\n' '$HOME' '*'     several are passed as they are\n  \
    tar c src | pyro run debian:12-build -- 'tar x && make'\n  \
    pyro run debian:12 --json -- uname -r | jq -r .stdout\n\n\
    Exit codes: the command's own; 124 out of time; 125 pyro failed; `pyro help exit-codes` has all.")]
pub struct Args {
    /// What the microVM is made from; `pyro env list` shows them
    #[arg(value_name = "ENVIRONMENT")]
    environment: String,
    /// The command: one word is a line for the guest's shell, several are a program and its arguments
    #[arg(value_name = "COMMAND", last = true, required = true, num_args = 1..)]
    command: Vec<String>,
    /// Virtual CPUs
    #[arg(long, value_name = "N")]
    vcpu_count: Option<u64>,
    /// Memory in MiB
    #[arg(long, value_name = "MIB")]
    mem_mib: Option<u64>,
    /// Kill the command after this time
    #[arg(long, value_name = "SECONDS")]
    timeout_seconds: Option<u64>,
    /// End the microVM after this time, whatever it does
    #[arg(long, value_name = "SECONDS")]
    ttl_seconds: Option<u64>,
    /// Take the tool from this profile: a built-in name, or the path of a TOML file
    #[arg(long, value_name = "PROFILE", default_value = DEFAULT_PROFILE)]
    profile: String,
    /// Print the structured result as JSON instead of the output
    #[arg(long)]
    pub json: bool,
}

impl Args {
    pub async fn run(self, context: Context) -> Result<u8, Failure> {
        let started = Instant::now();
        // Before anything else, so that no interrupt is lost.
        let mut stop = StopSignals::listen()?;
        let profile = context.pyro.profile(&self.profile)?;
        let toolbox = context.pyro.toolbox(&profile)?;
        if toolbox.tool(TOOL).is_none() {
            return Err(Failure::new("unknown_tool", format!("profile `{}` has no tool `{TOOL}`", profile.name))
                .with_hint(format!("`pyro run` needs it; `--profile {DEFAULT_PROFILE}` has it")));
        }
        let observer = Arc::new(Observer {
            printer: Arc::clone(&context.printer),
            streaming: !self.json,
            streamed: AtomicBool::new(false),
        });
        let options = CallOptions {
            observer: observer.clone(),
            session_id: format!("cli-{}", std::process::id()),
            call_id: format!("cli-{}-1", std::process::id()),
            stdin: caller_input(),
            traceparent: std::env::var("TRACEPARENT").ok(),
        };
        let arguments = self.arguments();
        let outcome = tokio::select! {
            biased;
            exit_code = stop.first() => {
                context.printer.end_progress();
                context.printer.note("interrupted: the command and its microVM are ended");
                return Ok(exit_code);
            }
            outcome = toolbox.call(TOOL, arguments, options) => outcome?,
            never = tick(&context.printer) => never,
        };
        context.printer.end_progress();
        let result = outcome.structured.unwrap_or_default();
        if self.json {
            context.printer.json(&result);
        } else {
            show(&result, &observer, &context.printer);
            summarise(&result, started.elapsed(), &context.printer);
        }
        if let Some(limit) = time_over(&result, self.timeout_seconds)
            && !self.json
        {
            context.printer.note(&format!(
                "error: the command was killed after {limit} s\nhint: give it more with --timeout-seconds"
            ));
        }
        Ok(exit_code_of(&result, outcome.is_error))
    }

    /// The tool's arguments; what was not said is left to the profile and the tool.
    fn arguments(&self) -> Map<String, Value> {
        let mut arguments = Map::new();
        arguments.insert("environment".to_owned(), self.environment.clone().into());
        arguments.insert("command".to_owned(), command_line(&self.command).into());
        for (name, value) in [
            ("vcpu_count", self.vcpu_count),
            ("mem_mib", self.mem_mib),
            ("timeout_seconds", self.timeout_seconds),
            ("ttl_seconds", self.ttl_seconds),
        ] {
            if let Some(value) = value {
                arguments.insert(name.to_owned(), value.into());
            }
        }
        arguments
    }
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

/// The signals that ask pyro to stop.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    fn listen() -> std::io::Result<StopSignals> {
        Ok(StopSignals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns the exit code for the first signal. A second one ends the process at once, whatever holds it up.
    async fn first(&mut self) -> u8 {
        let exit_code = self.next().await;
        if let Ok(mut again) = StopSignals::listen() {
            tokio::spawn(async move {
                let exit_code = again.next().await;
                std::process::exit(i32::from(exit_code));
            });
        }
        exit_code
    }

    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }
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

/// Shows output that did not come live, as from a component that does not stream.
fn show(result: &Map<String, Value>, observer: &Observer, printer: &Printer) {
    if observer.streamed.load(Ordering::Relaxed) {
        return;
    }
    let text = |key: &str| result.get(key).and_then(Value::as_str).unwrap_or_default();
    printer.bytes(text("stdout").as_bytes());
    printer.error_bytes(text("stderr").as_bytes());
}

fn summarise(result: &Map<String, Value>, total: Duration, printer: &Printer) {
    if !printer.is_verbose() {
        return;
    }
    let text = |key: &str| result.get(key).and_then(Value::as_str).unwrap_or("unknown");
    let seconds = result.get("duration_ms").and_then(Value::as_f64).map_or(0.0, |ms| ms / 1e3);
    printer.detail(&format!(
        "pyro: {} {} as {}, command {seconds:.2} s, everything {:.2} s",
        text("environment"),
        text("environment_version"),
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

fn exit_code_of(result: &Map<String, Value>, is_error: bool) -> u8 {
    if time_over(result, None).is_some() {
        return EXIT_TIMEOUT;
    }
    if let Some(exit_code) = result.get("exit_code").and_then(Value::as_i64) {
        // A shell reports 128 + N itself; whatever else the guest says is cut as a process's exit status is.
        return u8::try_from(exit_code & 0xFF).unwrap_or(EXIT_FAILURE);
    }
    if let Some(number) = result.get("signal").and_then(Value::as_str).and_then(signal_number) {
        return 128_u8.saturating_add(number);
    }
    if is_error { EXIT_RUN_FAILURE } else { 0 }
}

/// Returns the number of a signal by its name, on x86-64 Linux.
fn signal_number(name: &str) -> Option<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let short = name.strip_prefix("SIG").unwrap_or(name);
    let index = NAMES.iter().position(|known| *known == short)?;
    u8::try_from(index + 1).ok()
}

/// Returns the words as one line for a POSIX shell. A single word is a line already.
fn command_line(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(words: &[&str]) -> String {
        command_line(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn one_word_is_a_shell_line() {
        assert_eq!(line(&["echo $HOME | wc"]), "echo $HOME | wc");
    }

    #[test]
    fn several_words_reach_the_program_as_they_are() {
        assert_eq!(line(&["git", "--version"]), "git --version");
        let words = ["printf", "%s|", "a b", "$HOME", "it's", "*", "", "x\ny", "-n", "~", "é", "A=b c"];
        let output = std::process::Command::new("sh").args(["-c", &line(&words)]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a b|$HOME|it's|*||x\ny|-n|~|é|A=b c|");
    }

    #[test]
    fn exit_codes_follow_the_result() {
        let code = |value: Value| exit_code_of(value.as_object().unwrap(), false);
        assert_eq!(code(json!({"exit_code": 7})), 7);
        assert_eq!(code(json!({"exit_code": 124, "timed_out": true})), EXIT_TIMEOUT);
        assert_eq!(code(json!({"exit_code": null, "signal": "SIGKILL"})), 137);
        assert_eq!(code(json!({"exit_code": null, "signal": "SIGTERM", "timed_out": false})), 143);
        assert_eq!(code(json!({"exit_code": 137})), 137);
        assert_eq!(code(json!({"exit_code": -1})), 255);
        assert_eq!(code(json!({})), 0);
        assert_eq!(exit_code_of(&Map::new(), true), EXIT_RUN_FAILURE);
    }

    #[test]
    fn signals_have_linux_numbers() {
        assert_eq!(signal_number("SIGHUP"), Some(1));
        assert_eq!(signal_number("SIGKILL"), Some(9));
        assert_eq!(signal_number("TERM"), Some(15));
        assert_eq!(signal_number("SIGSYS"), Some(31));
        assert_eq!(signal_number("SIGNOPE"), None);
    }
}
