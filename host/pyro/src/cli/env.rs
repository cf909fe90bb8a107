//! `pyro env`: what microVMs are made from.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pyro_engine::Progress;
use pyro_engine::environments::{EnvironmentReport, EnvironmentSummary, Environments, PullOptions};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use crate::failure::Failure;
use crate::printer::Printer;

/// List, build and remove environments: what microVMs are made from
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the environments, and which are installed
    #[command(
        after_long_help = "Examples:\n  pyro env list\n  pyro env list --json | jq -r '.[] | select(.installed).name'"
    )]
    List(ListArgs),
    /// Install an environment now, so that the first command need not wait for it
    ///
    /// Builds a root file system, a kernel and an initramfs from Debian's packages; minutes the first time, a second
    /// when it is installed. What is installed is verified, and what is damaged is built again.
    #[command(after_long_help = "Examples:\n  pyro env pull debian:12\n  pyro env pull debian:12 --refresh")]
    Pull(PullArgs),
    /// Show everything about an environment
    #[command(after_long_help = "Examples:\n  pyro env inspect debian:12\n  pyro env inspect debian:12 --json")]
    Inspect(InspectArgs),
    /// Remove what nobody needs: interrupted builds, and what is out of date
    #[command(after_long_help = "Examples:\n  pyro env prune\n  pyro env prune --all")]
    Prune(PruneArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct PullArgs {
    /// Its name, as `pyro env list` shows it
    #[arg(value_name = "NAME")]
    name: String,
    /// Build it again from the packages of today
    #[arg(long)]
    refresh: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// Its name, as `pyro env list` shows it
    #[arg(value_name = "NAME")]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct PruneArgs {
    /// Remove every environment that no microVM uses
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub async fn run(self, context: Context) -> Result<u8, Failure> {
        let environments = context.pyro.environments();
        let printer = &context.printer;
        match self.command {
            Command::List(args) => list(&args, &environments, printer),
            Command::Pull(args) => pull(args, environments, printer).await,
            Command::Inspect(args) => inspect(&args, &environments, printer),
            Command::Prune(args) => prune(&args, &environments, printer),
        }
    }
}

fn list(args: &ListArgs, environments: &Environments, printer: &Printer) -> Result<u8, Failure> {
    let list = environments.list()?;
    if args.json {
        printer.json(&list);
        return Ok(0);
    }
    let width = list.iter().map(|item| item.name.len()).max().unwrap_or_default();
    for item in &list {
        printer.line(&format!("{:<width$}  {:<13}  {}", item.name, state(item), item.description));
    }
    Ok(0)
}

fn state(item: &EnvironmentSummary) -> &'static str {
    match (item.installed, item.outdated) {
        (true, _) => "installed",
        (false, true) => "out of date",
        (false, false) => "not installed",
    }
}

async fn pull(args: PullArgs, environments: Environments, printer: &Arc<Printer>) -> Result<u8, Failure> {
    let started = Instant::now();
    let progress = Arc::new(PullProgress { printer: Arc::clone(printer), cancelled: AtomicBool::new(false) });
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut building = tokio::task::spawn_blocking({
        let progress = Arc::clone(&progress);
        let name = args.name.clone();
        move || environments.pull(&name, PullOptions { refresh: args.refresh }, &*progress)
    });
    let mut exit_code = 0;
    let installed = loop {
        tokio::select! {
            finished = &mut building => break finished.map_err(|error| {
                Failure::new("internal", format!("the build ended without a result: {error}"))
            })?,
            code = async { tokio::select! { _ = interrupt.recv() => 130, _ = terminate.recv() => 143 } } => {
                if exit_code != 0 {
                    std::process::exit(i32::from(exit_code));
                }
                // The build undoes what it began; a second signal does not wait for that.
                exit_code = code;
                progress.cancelled.store(true, Ordering::Relaxed);
                printer.note("stopping the build");
            }
        }
    };
    printer.end_progress();
    let installed = match installed {
        Err(error) if exit_code != 0 => return Err(Failure::from(error).with_exit_code(exit_code)),
        other => other?,
    };
    if args.json {
        printer.json(&json!({
            "name": installed.name,
            "version": installed.version,
            "built": installed.built,
            "rootfs": installed.rootfs,
            "rootfs_sha256": installed.rootfs_sha256,
            "kernel": installed.kernel,
            "kernel_sha256": installed.kernel_sha256,
            "initramfs": installed.initramfs,
            "initramfs_sha256": installed.initramfs_sha256,
        }));
    } else if installed.built {
        printer.line(&format!("{} is installed ({:.0} s)", installed.name, started.elapsed().as_secs_f64()));
    } else {
        printer.line(&format!("{} was installed already, and is sound", installed.name));
    }
    Ok(0)
}

/// Progress of a build; long enough that every new step is worth a line where there is no terminal.
struct PullProgress {
    printer: Arc<Printer>,
    cancelled: AtomicBool,
}

impl Progress for PullProgress {
    fn report(&self, message: &str, done: f64, total: Option<f64>) {
        if std::io::stderr().is_terminal() {
            self.printer.progress(message, done, total);
        } else {
            self.printer.step(message, done, total);
        }
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

fn inspect(args: &InspectArgs, environments: &Environments, printer: &Printer) -> Result<u8, Failure> {
    let report = environments.inspect(&args.name)?;
    if args.json {
        printer.json(&report);
    } else {
        print_report(&report, printer);
    }
    Ok(0)
}

fn print_report(report: &EnvironmentReport, printer: &Printer) {
    let summary = &report.summary;
    printer.line(&format!("{} ({})", summary.name, state(summary)));
    printer.line(&format!("  {}", summary.description));
    printer.line(&format!("  version       {} ({} {})", summary.version, summary.distribution, summary.suite));
    printer.line(&format!("  packages      {}", report.packages.join(", ")));
    printer.line(&format!("  disk          {} MiB as a microVM sees it", report.disk_mib));
    printer.line(&format!("  defined in    {}", report.defined_in));
    let Some(details) = &report.details else {
        return;
    };
    if let Some(created) = &summary.created {
        printer.line(&format!("  built         {created}, in {:.0} s", details.build_seconds));
    }
    let sound = if details.sound { "sound" } else { "DAMAGED; `pyro env pull` builds it again" };
    printer.line(&format!("  files         {} ({sound})", details.directory));
    for file in &details.files {
        printer.line(&format!("    {:<20} {:>11} bytes  {}", file.name, file.size, file.sha256));
    }
    if let Some(kernel) = &details.kernel {
        let release = kernel.release.as_deref().unwrap_or("unknown release");
        printer.line(&format!("  kernel        {release} from {}", kernel.origin));
        for file in &kernel.files {
            printer.line(&format!("    {:<20} {:>11} bytes  {}", file.name, file.size, file.sha256));
        }
    }
    printer.line(&format!("  installed     {} packages (--json lists them)", details.installed_packages.len()));
}

fn prune(args: &PruneArgs, environments: &Environments, printer: &Printer) -> Result<u8, Failure> {
    let report = environments.prune(args.all)?;
    if args.json {
        printer.json(&report);
        return Ok(0);
    }
    for removed in &report.removed {
        printer.line(&format!("removed {} ({} MiB)", removed.name, removed.bytes >> 20));
    }
    for name in &report.in_use {
        printer.note(&format!("kept {name}: a microVM uses it"));
    }
    printer.line(&format!("{} MiB are free again", report.freed_bytes >> 20));
    Ok(0)
}
