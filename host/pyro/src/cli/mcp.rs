//! `pyro mcp`: the tools of a profile for an MCP client, and how to tell a host about them.

use std::path::Path;

use clap::ValueEnum;
use pyro::mcp::host_config::{HostConfig, HostKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::failure::Failure;

const DEFAULT_PROFILE: &str = "workspace-core";

/// Serve tools to an MCP client
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serve a profile's tools on standard input and output
    ///
    /// Speaks MCP 2026-07-28 and 2025-11-25 (and older). Ends when the client closes standard input, or on SIGTERM;
    /// the microVMs of unfinished calls end with it. Logs go to standard error.
    #[command(after_long_help = "Examples:\n  \
        pyro mcp serve --profile vm-run\n  \
        pyro mcp serve --profile ./my-profile.toml --engine qemu\n  \
        PYRO_LOG=debug pyro mcp serve --profile vm-run 2> pyro.log")]
    Serve(ServeArgs),
    /// Print what to put into a host's configuration
    ///
    /// The configuration goes to standard output, where it belongs to standard error.
    #[command(after_long_help = "Examples:\n  \
        pyro mcp config --host claude\n  \
        pyro mcp config --host codex --profile ./my-profile.toml >> ~/.codex/config.toml")]
    Config(ConfigArgs),
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// A built-in name, or the path of a TOML file
    #[arg(long, value_name = "PROFILE", default_value = DEFAULT_PROFILE)]
    profile: String,
}

#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// The host that will start pyro
    #[arg(long, value_name = "HOST")]
    host: HostArg,
    /// A built-in name, or the path of a TOML file
    #[arg(long, value_name = "PROFILE", default_value = DEFAULT_PROFILE)]
    profile: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HostArg {
    Claude,
    Codex,
    Gemini,
    Opencode,
    Vscode,
    Cursor,
    Zed,
    Goose,
}

impl From<HostArg> for HostKind {
    fn from(arg: HostArg) -> HostKind {
        match arg {
            HostArg::Claude => HostKind::Claude,
            HostArg::Codex => HostKind::Codex,
            HostArg::Gemini => HostKind::Gemini,
            HostArg::Opencode => HostKind::OpenCode,
            HostArg::Vscode => HostKind::VsCode,
            HostArg::Cursor => HostKind::Cursor,
            HostArg::Zed => HostKind::Zed,
            HostArg::Goose => HostKind::Goose,
        }
    }
}

impl Args {
    pub async fn run(self, context: Context) -> Result<u8, Failure> {
        match self.command {
            Command::Serve(args) => serve(args, context).await,
            Command::Config(args) => config(&args, &context),
        }
    }
}

async fn serve(args: ServeArgs, context: Context) -> Result<u8, Failure> {
    let server = context.pyro.create_server(&args.profile)?;
    server.toolbox().warm();
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            stop.cancel();
        }
    });
    server.serve_stdio(stop).await.map_err(|error| Failure::new("internal", error.to_string()))?;
    Ok(0)
}

fn config(args: &ConfigArgs, context: &Context) -> Result<u8, Failure> {
    // A configuration for a profile that cannot be used would fail later, inside the host.
    context.pyro.profile(&args.profile)?;
    let profile = if Path::new(&args.profile).exists() {
        // The host starts pyro in a directory of its own.
        std::path::absolute(&args.profile)?.to_string_lossy().into_owned()
    } else {
        args.profile.clone()
    };
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    let config = HostConfig::new(args.host.into(), &program, &profile);
    context.printer.note(&config.place);
    context.printer.data(&config.text);
    Ok(0)
}
