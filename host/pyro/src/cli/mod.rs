//! The command line: what can be typed, and who does it. One file per command.

mod completions;
mod doctor;
mod env;
mod exit_codes;
mod mcp;
mod plugin;
mod profile;
mod tool;
pub mod vmm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use pyro::{EngineChoice, Pyro, PyroConfig};
use tracing_subscriber::EnvFilter;

use self::tool::{Sketch, ToolCommands};
use crate::failure::Failure;
use crate::printer::{Printer, Verbosity};

/// What is logged when `PYRO_LOG` says nothing. rmcp warns about every refused request, whose client is told anyway, and has
/// an error for every answer that nobody takes any more.
const DEFAULT_LOG: &str = "warn,rmcp=off";
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
        pyro workspace create debian:12 --id-only\n  \
        pyro mcp serve --profile workspace-core\n  \
        pyro mcp config --host claude\n\n\
        `pyro help COMMAND` says more, with examples. `pyro help exit-codes` lists the exit codes.",
    after_long_help = "Examples:\n  \
        pyro run debian:12 -- git --version       a command in a microVM of its own\n  \
        pyro env list                             what a microVM can be made from\n  \
        pyro doctor                               what this machine has and what it lacks\n  \
        pyro workspace create debian:12 --id-only a microVM that stays, with files, shells and services\n  \
        pyro mcp serve --profile workspace-core   the tools of a profile, for an MCP client\n  \
        pyro mcp config --host claude             how to tell a host about it\n\n\
        Environment variables:\n  \
        PYRO_HOME      keep everything below this directory (default: the XDG directories)\n  \
        PYRO_ENGINE    as --engine\n  \
        PYRO_PROFILE   the profile whose tools are commands (default: all that are built in)\n  \
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
    kernel: Option<PathBuf>,
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
    Env(env::Args),
    Mcp(mcp::Args),
    Profile(profile::Args),
    Plugin(plugin::Args),
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
    let args: Vec<OsString> = std::env::args_os().collect();
    let sketch = Sketch::of(args.get(1..).unwrap_or_default());
    let own = Cli::command();
    let is_own = |word: &str| own.find_subcommand(word).is_some() && word != completions::NAME;
    // Commands of pyro itself need no profile. Everything else, help too, may speak of a tool.
    let tools = match sketch.word.as_deref() {
        Some(word) if is_own(word) => None,
        _ => Some(load_tools(&sketch)),
    };
    let command = match &tools {
        Some(Ok(tools)) => tools.add_to(own),
        // A command line that is wrong by itself is told so even then.
        Some(Err(_)) => tool::with_profile(own).allow_external_subcommands(true),
        None => own,
    };
    let matches = match (command.clone().try_get_matches_from(&args), &tools) {
        (Ok(matches), _) => matches,
        // Help, and which words are commands, depend on the profile that was typed.
        (Err(error), Some(Err(failure))) if sketch.names_a_profile() && depends_on_tools(&error) => {
            Printer::new(Verbosity::Normal).failure(failure, false);
            return ExitCode::from(failure.exit_code);
        }
        (Err(mut error), None) if sketch.names_a_profile() && error.kind() == ErrorKind::UnknownArgument => {
            let tip = "of pyro's own commands `mcp serve` and `mcp config` take `--profile`, behind their names".into();
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
            error.exit();
        }
        (Err(error), _) => error.exit(),
    };
    let global = Global::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let verbosity = match (global.quiet, global.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    };
    let printer = Arc::new(Printer::new(verbosity));
    log_to_stderr(verbosity, &printer);
    let done = match (Cli::from_arg_matches(&matches), tools) {
        // `completions` would leave the profile's commands out.
        (Ok(_), Some(Err(failure))) if sketch.names_a_profile() => Err(failure),
        (Ok(cli), _) => dispatch(cli, command, &printer),
        (Err(error), tools) => match tools {
            Some(Ok(tools)) => {
                with_runtime(async { tools.run(&matches, &printer).await.unwrap_or_else(|| error.exit()) })
            }
            Some(Err(failure)) if sketch.word.as_deref() == Some("run") => {
                Err(failure.with_exit_code(crate::failure::EXIT_RUN_FAILURE))
            }
            Some(Err(failure)) => Err(failure),
            None => error.exit(),
        },
    };
    ExitCode::from(done.unwrap_or_else(|failure| {
        printer.end_progress();
        printer.failure(&failure, tool::wants_json(&matches));
        failure.exit_code
    }))
}

/// Says whether what clap answers would be another with the tools.
fn depends_on_tools(error: &clap::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::InvalidSubcommand
            | ErrorKind::MissingSubcommand
    )
}

/// Loads the tools that are commands on this command line.
fn load_tools(sketch: &Sketch) -> Result<ToolCommands, Failure> {
    // An engine that there is not is refused when the command line is parsed.
    let engine = sketch.engine.clone().or_else(|| std::env::var("PYRO_ENGINE").ok());
    let engine = engine.and_then(|name| EngineArg::from_str(&name, false).ok());
    ToolCommands::load(&open(engine, sketch.kernel.as_ref().map(PathBuf::from))?, &sketch.profile())
}

fn open(engine: Option<EngineArg>, kernel: Option<PathBuf>) -> Result<Pyro, Failure> {
    // The VM process works elsewhere, and the file's place is part of what its build is known by.
    let kernel = kernel.map(|file| std::path::absolute(&file).unwrap_or(file));
    Ok(Pyro::open(PyroConfig { engine: engine.map(EngineChoice::from), kernel, ..PyroConfig::default() })?)
}

fn dispatch(cli: Cli, all: clap::Command, printer: &Arc<Printer>) -> Result<u8, Failure> {
    let Cli { global, command } = cli;
    let context = move || -> Result<Context, Failure> {
        Ok(Context { pyro: open(global.engine, global.kernel)?, printer: Arc::clone(printer) })
    };
    match command {
        Command::Env(args) => with_runtime(args.run(context()?)),
        Command::Mcp(args) => with_runtime(args.run(context()?)),
        Command::Profile(args) => args.run(&context()?),
        Command::Plugin(args) => args.run(&context()?),
        Command::Doctor(args) => with_runtime(args.run(context()?)),
        Command::Completions(args) => Ok(args.run(all, printer)),
        Command::ExitCodes(args) => Ok(args.run(printer)),
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

    /// What a component's tools cannot be called, so that they can be typed.
    #[test]
    fn pyros_own_commands_are_kept_from_tools() {
        let command = super::Cli::command();
        for own in command.get_subcommands() {
            assert!(pyro_components::OWN_COMMANDS.contains(&own.get_name()), "{}", own.get_name());
        }
    }
}
