//! `shell_list`.

use pyro_plugin_guest::{Guest, OneWorkspace};
use pyro_plugin_sdk::vm::terminals;
use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::Serialize;

use crate::shape::Shell;

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub count: usize,
    pub running_count: usize,
    /// In the order they were opened
    pub shells: Vec<Shell>,
}

/// Lists shells.
pub struct ShellList;

impl Tool for ShellList {
    const NAME: &'static str = "shell_list";
    const DESCRIPTION: &'static str = "Lists a workspace's shells.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = OneWorkspace;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "shell", "list"],
            positionals: vec!["workspace_id"],
            human: Some(Human::table("shells", &["shell_id", "state", "cwd", "started_at", "exit_code"])),
            ..Cli::default()
        })
    }

    fn call(arguments: OneWorkspace, _call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let mut shells: Vec<Shell> = terminals::list(guest.machine())?
            .into_iter()
            .map(|info| Shell::new(&arguments.workspace_id, &guest, info))
            .collect();
        shells.sort_by(|a, b| a.started_at.total_cmp(&b.started_at));
        let running_count = shells.iter().filter(|shell| shell.state == "running").count();
        Ok(Output { workspace_id: arguments.workspace_id, count: shells.len(), running_count, shells })
    }
}
