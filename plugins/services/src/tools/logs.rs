//! `service_logs`.

use pyro_plugin_guest::{Guest, bytes, name};
use pyro_plugin_sdk::vm::services;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::logs::tail;
use crate::shape::{Service, failed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Service
    pub service_name: String,
    /// Last lines of each stream
    #[serde(default = "tail_lines")]
    #[schemars(range(min = 1, max = 100_000))]
    pub tail_lines: u32,
    /// Everything that is kept, up to 256 KiB a stream
    #[serde(default)]
    pub all: bool,
}

fn tail_lines() -> u32 {
    200
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    #[serde(flatten)]
    pub service: Service,
    pub stdout: String,
    pub stderr: String,
    /// Absent with all
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail_lines: Option<u32>,
    /// Older output is not shown
    pub truncated: bool,
}

/// Reads the logs of a service.
pub struct ServiceLogs;

impl Tool for ServiceLogs {
    const NAME: &'static str = "service_logs";
    const DESCRIPTION: &'static str = "Reads the end of a service's output.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "service", "logs"],
            positionals: vec!["workspace_id", "service_name"],
            human: Some(Human {
                text: Some("stdout"),
                error_text: Some("stderr"),
                summary: Some("{service_name} is {state}, truncated: {truncated}"),
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let name = name("service_name", &arguments.service_name)?;
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let told = |error| failed(&arguments.workspace_id, &name, error);
        let info = services::status(guest.machine(), &name).map_err(told)?;
        let (stdout, stderr, dropped) = services::logs(guest.machine(), &name).map_err(told)?;
        let lines = (!arguments.all).then_some(arguments.tail_lines);
        let stdout = tail(&bytes(&stdout, u64::MAX), lines);
        let stderr = tail(&bytes(&stderr, u64::MAX), lines);
        Ok(Output {
            service: Service::new(&arguments.workspace_id, guest.execution_mode(), info),
            truncated: dropped || stdout.truncated || stderr.truncated,
            stdout: stdout.text,
            stderr: stderr.text,
            tail_lines: lines,
        })
    }
}
