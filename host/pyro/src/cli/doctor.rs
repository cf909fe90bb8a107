//! `pyro doctor`: what this machine has, what it lacks, and what to do about it.

use std::time::Duration;

use pyro::doctor::{self, Verdict};
use pyro_engine::MachineReport;

use super::Context;
use crate::failure::{EXIT_FAILURE, Failure};

/// Check what this machine has and what it lacks
///
/// Looks at everything pyro needs, and says what to do about what is missing. Lists the microVMs that run and, as JSON,
/// all that is counted of each. Changes nothing. Exits with 1 when commands cannot be run.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  pyro doctor\n  pyro doctor --json | jq '.checks[] | select(.verdict != \"ok\")'\n  pyro doctor --json | jq '.machines[].statistics'"
)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Args {
    pub async fn run(self, context: Context) -> Result<u8, Failure> {
        let report = doctor::examine(context.pyro.paths(), context.pyro.engine_choice()).await;
        if self.json {
            context.printer.json(&report);
        } else {
            for check in &report.checks {
                let verdict = match check.verdict {
                    Verdict::Ok => "ok     ",
                    Verdict::Warning => "warning",
                    Verdict::Failed => "FAILED ",
                };
                context.printer.line(&format!("{verdict}  {:<22} {}", check.name, check.detail));
                if let Some(fix) = &check.fix {
                    context.printer.line(&format!("         {:<22} fix: {fix}", ""));
                }
            }
            for MachineReport { machine, statistics } in &report.machines {
                let costs = statistics.as_ref().map_or_else(String::new, |statistics| {
                    let mib = statistics.resident_bytes >> 20;
                    format!(
                        ", {mib} MiB resident, {:.1} s of CPU",
                        Duration::from_millis(statistics.cpu_ms).as_secs_f64()
                    )
                });
                let runs = format!("{} ({}){costs}", machine.environment, machine.execution_mode.as_str());
                context.printer.line(&format!("running  {:<22} {runs}", machine.id));
            }
            let verdict = if report.ok { "pyro can run commands here" } else { "pyro cannot run commands here yet" };
            context.printer.line(&format!("\n{verdict} (pyro {})", report.version));
        }
        Ok(if report.ok { 0 } else { EXIT_FAILURE })
    }
}
