//! `pyro profile`: what a profile amounts to, before anything runs.

use pyro::OpenError;
use pyro_components::profile::ProfileDescription;

use super::Context;
use crate::failure::Failure;
use crate::printer::Printer;

/// Check profiles and show what they allow
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say whether a profile can be used, and every mistake in it
    #[command(
        after_long_help = "Examples:\n  pyro profile check ./my-profile.toml\n  pyro profile check vm-run --json"
    )]
    Check(Which),
    /// Show everything a profile amounts to: components, grants, tools, limits
    #[command(after_long_help = "Examples:\n  pyro profile show vm-run\n  pyro profile show ./my-profile.toml --json")]
    Show(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// A built-in name, or the path of a TOML file
    #[arg(value_name = "PROFILE")]
    profile: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        match &self.command {
            Command::Check(which) => check(which, context),
            Command::Show(which) => show(which, context),
        }
    }
}

fn check(which: &Which, context: &Context) -> Result<u8, Failure> {
    let checked = context.pyro.profile(&which.profile).and_then(|profile| {
        let toolbox = context.pyro.toolbox(&profile)?;
        // It may be made later, as a disk that is not mounted yet, so it is no mistake of the profile.
        for root in profile.host.read.iter().chain(&profile.host.write).filter(|root| !root.is_dir()) {
            context.printer.warning(&format!("`{}` of [host] is no directory here", root.display()));
        }
        Ok((profile.name.clone(), toolbox.tools().len()))
    });
    match checked {
        Ok((name, tools)) if which.json => {
            context.printer.json(&serde_json::json!({"ok": true, "name": name, "tools": tools, "diagnostics": []}));
        }
        Ok((name, tools)) => {
            let s = if tools == 1 { "" } else { "s" };
            context.printer.line(&format!("profile `{name}` is fine: {tools} tool{s}"));
        }
        Err(OpenError::Profile(error)) if which.json => {
            context.printer.json(&serde_json::json!({"ok": false, "diagnostics": error.diagnostics}));
            return Ok(crate::failure::EXIT_FAILURE);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(0)
}

fn show(which: &Which, context: &Context) -> Result<u8, Failure> {
    let profile = context.pyro.profile(&which.profile)?;
    // A component that does not carry its tool list is asked for it, as `check` does.
    let description =
        if profile.lists_itself() { profile.describe() } else { context.pyro.toolbox(&profile)?.describe() };
    if which.json {
        context.printer.json(&description);
    } else {
        print_description(&description, &context.printer);
    }
    Ok(0)
}

fn print_description(profile: &ProfileDescription, printer: &Printer) {
    printer.line(&format!("profile {} ({})", profile.name, profile.origin));
    if !profile.description.is_empty() {
        printer.line(&format!("  {}", profile.description));
    }
    for component in &profile.components {
        printer.line(&format!("\ncomponent {}", component.name));
        printer.line(&format!("  source   {} ({} bytes)", component.source, component.size));
        printer.line(&format!("  digest   {}", component.digest));
        printer.line(&format!("  imports  {}", list_or_none(&component.imports)));
        printer.line(&format!("  grants   {}", compact(&component.grants)));
        printer.line(&format!("  limits   {}", compact(&component.limits)));
        if !component.config.is_empty() {
            printer.line(&format!("  config   {}", compact(&component.config)));
        }
    }
    for tool in &profile.tools {
        printer.line(&format!("\ntool {} (component {})", tool.name, tool.component));
        let first = tool.description.lines().next().unwrap_or_default();
        printer.line(&format!("  {first}"));
        printer.line(&format!("  arguments  {}", list_or_none(&tool.arguments)));
        if !tool.fixed.is_empty() {
            printer.line(&format!("  fixed      {}", compact(&tool.fixed)));
        }
        if !tool.default.is_empty() {
            printer.line(&format!("  default    {}", compact(&tool.default)));
        }
        if !tool.hide.is_empty() {
            printer.line(&format!("  hidden     {}", tool.hide.join(", ")));
        }
        printer.line(&format!("  hints      {}", compact(&tool.annotations)));
    }
    printer.line(&format!("\nhost {}", compact(&profile.host)));
}

fn list_or_none(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn compact(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
