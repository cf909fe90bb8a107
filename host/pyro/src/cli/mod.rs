//! The command line: what can be typed, and who does it. One file per command.

mod completions;
mod doctor;
mod env;
mod exit_codes;
mod mcp;
mod profile;
mod run;
pub mod vmm;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use pyro::{EngineChoice, Pyro, PyroConfig};
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;
use crate::printer::{Printer, Verbosity};

/// What is logged when `PYRO_LOG` says nothing. rmcp warns about every refused request; its client is told anyway.
const DEFAULT_LOG: &str = "warn,rmcp=error";
const VERBOSE_LOG: &str = "info,rmcp=warn";

/// Runs an AI agent's commands in microVMs.
#[derive(Debug, Parser)]
#[command(
    name = "pyro",
    version,
    max_term_width = 110,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        pyro run debian:12 -- git --version\n  \
        pyro env list\n  \
        pyro doctor\n  \
        pyro mcp serve --profile vm-run\n  \
        pyro mcp config --host claude\n\n\
        `pyro help COMMAND` says more, with examples. `pyro help exit-codes` lists the exit codes.",
    after_long_help = "Examples:\n  \
        pyro run debian:12 -- git --version       a command in a microVM of its own\n  \
        pyro env list                             what a microVM can be made from\n  \
        pyro doctor                               what this machine has and what it lacks\n  \
        pyro mcp serve --profile vm-run           the tools of a profile, for an MCP client\n  \
        pyro mcp config --host claude             how to tell a host about it\n\n\
        Environment variables:\n  \
        PYRO_HOME      keep everything below this directory (default: the XDG directories)\n  \
        PYRO_ENGINE    as --engine\n  \
        PYRO_LOG       what is logged to standard error, as `info` or `pyro_engine=debug`\n\n\
        `pyro help exit-codes` lists the exit codes."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Say nothing on standard error but errors
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more on standard error
    #[arg(long, short, global = true)]
    verbose: bool,
    /// What runs the microVMs
    #[arg(long, global = true, env = "PYRO_ENGINE", value_name = "ENGINE", hide_env_values = true)]
    engine: Option<EngineArg>,
    /// The kernel of the microVMs instead of their environment's, an ELF or bzImage file
    #[arg(long, global = true, value_name = "FILE")]
    kernel: Option<std::path::PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EngineArg {
    /// The fastest that is proven to work here
    Auto,
    /// KVM, whatever the self-test says
    Kvm,
    /// Software emulation; works everywhere
    Qemu,
}

impl From<EngineArg> for EngineChoice {
    fn from(arg: EngineArg) -> EngineChoice {
        match arg {
            EngineArg::Auto => EngineChoice::Auto,
            EngineArg::Kvm => EngineChoice::Kvm,
            EngineArg::Qemu => EngineChoice::Qemu,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Env(env::Args),
    Mcp(mcp::Args),
    Profile(profile::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    #[command(name = "exit-codes", hide = true)]
    ExitCodes(exit_codes::Args),
}

/// What every command is given.
struct Context {
    pyro: Pyro,
    printer: Arc<Printer>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let verbosity = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    };
    let printer = Arc::new(Printer::new(verbosity));
    log_to_stderr(verbosity, &printer);
    let as_json = cli.command.wants_json();
    let exit_code = match dispatch(cli, &printer) {
        Ok(exit_code) => exit_code,
        Err(failure) => {
            printer.end_progress();
            printer.failure(&failure, as_json);
            failure.exit_code
        }
    };
    ExitCode::from(exit_code)
}

fn dispatch(cli: Cli, printer: &Arc<Printer>) -> Result<u8, Failure> {
    let Cli { global, command } = cli;
    // Commands that need neither directories nor a runtime.
    let command = match command {
        Command::Completions(args) => return Ok(args.run(printer)),
        Command::ExitCodes(args) => return Ok(args.run(printer)),
        command => command,
    };
    let failure_code = command.failure_code();
    let open = || -> Result<Context, Failure> {
        // The VM process works elsewhere, and the file's place is part of what its build is known by.
        let kernel = global.kernel.map(|file| std::path::absolute(&file).unwrap_or(file));
        let engine = global.engine.map(EngineChoice::from);
        let pyro = Pyro::open(PyroConfig { engine, kernel, ..PyroConfig::default() })?;
        Ok(Context { pyro, printer: Arc::clone(printer) })
    };
    let run = |context: Context| match command {
        Command::Run(args) => with_runtime(args.run(context)),
        Command::Env(args) => with_runtime(args.run(context)),
        Command::Mcp(args) => with_runtime(args.run(context)),
        Command::Profile(args) => args.run(&context),
        Command::Doctor(args) => with_runtime(args.run(context)),
        Command::Completions(_) | Command::ExitCodes(_) => Ok(0),
    };
    open().and_then(run).map_err(|failure| match failure_code {
        Some(exit_code) => failure.with_exit_code(exit_code),
        None => failure,
    })
}

impl Command {
    fn wants_json(&self) -> bool {
        match self {
            Command::Run(args) => args.json,
            Command::Env(args) => args.wants_json(),
            Command::Profile(args) => args.wants_json(),
            Command::Doctor(args) => args.json,
            Command::Mcp(_) | Command::Completions(_) | Command::ExitCodes(_) => false,
        }
    }

    /// The exit code of every failure, where the usual ones would be mistaken for the command's.
    fn failure_code(&self) -> Option<u8> {
        matches!(self, Command::Run(_)).then_some(crate::failure::EXIT_RUN_FAILURE)
    }
}

/// Runs a command to its end, without waiting for what still runs in the background: a read of standard input cannot
/// be interrupted.
fn with_runtime(command: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    // Two threads at least: one may be held up by a slow reader of our output while the other hears signals.
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

fn log_to_stderr(verbosity: Verbosity, printer: &Printer) {
    let default = if verbosity == Verbosity::Verbose { VERBOSE_LOG } else { DEFAULT_LOG };
    let filter = match std::env::var("PYRO_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).unwrap_or_else(|error| {
            printer.warning(&format!("PYRO_LOG is `{text}`, which is no filter: {error}"));
            EnvFilter::new(default)
        }),
        _ => EnvFilter::new(default),
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
