//! `pyro plugin`: what an author of components needs from pyro.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Context;
use crate::failure::Failure;

/// Help authors of components
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write a component's tool list into its `pyro:manifest` section
    ///
    /// Asks the component for its tools, checks them as a profile would, and writes the list into the file, so that
    /// listing tools runs no code. A component of any language can be packed; a packed one that answers otherwise later
    /// is refused.
    #[command(after_long_help = "Examples:\n  \
        pyro plugin pack grep.wasm\n  \
        pyro plugin pack build/grep.wasm --output plugins/grep.wasm")]
    Pack(PackArgs),
}

#[derive(Debug, clap::Args)]
struct PackArgs {
    /// The component
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where the packed component goes; over FILE when not said
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let Command::Pack(args) = &self.command;
        let shown = |path: &Path, error: std::io::Error| Failure::new("io", format!("`{}`: {error}", path.display()));
        let wasm = pyro_components::read_component(&args.file)?;
        let packed = pyro_components::pack(&wasm)?;
        let output = args.output.as_ref().unwrap_or(&args.file);
        write(output, &packed).map_err(|error| shown(output, error))?;
        if args.json {
            context.printer.json(&json!({"output": output, "bytes": packed.len()}));
        } else {
            context.printer.note(&format!("packed `{}` ({} bytes)", output.display(), packed.len()));
        }
        Ok(0)
    }
}

/// Replaces a file as a whole, so that nobody sees half of it.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension(format!("part-{}", std::process::id()));
    let written = std::fs::File::create_new(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    });
    written.inspect_err(|_| {
        // It may not have been made; what is left of it is of no use.
        let _ = std::fs::remove_file(&temporary);
    })
}
