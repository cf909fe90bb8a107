//! `workspace_disk_export`.

use pyro_plugin_sdk::vm::host_files;
use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

/// Bytes the host copies at a time; between two pieces the caller hears of progress.
const PIECE: u64 = 64 << 20;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Stopped workspace
    pub workspace_id: String,
    /// New file on the host
    pub output_path: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub output_path: String,
    /// ext4
    pub disk_format: String,
    pub bytes_written: u64,
}

/// Copies the disk of a stopped workspace to a host file.
pub struct DiskExport;

impl Tool for DiskExport {
    const NAME: &'static str = "workspace_disk_export";
    const DESCRIPTION: &'static str = "Copies a stopped workspace's whole disk to a host file.";
    const HINTS: Hints = Hints { open_world: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "disk", "export"],
            positionals: vec!["workspace_id"],
            flags: vec![Flag::plain("output", "output_path").value_name("PATH")],
            human: Some(Human::summary("{disk_format}: {bytes_written} bytes copied to {output_path}")),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, call: &Call) -> Result<Output, ToolError> {
        let disk = super::disk(&arguments.workspace_id, Self::NAME)?;
        let size = disk.size();
        let output = host_files::open_output(&arguments.output_path).map_err(|error| match error.code.as_str() {
            "already_exists" => {
                ToolError::new("already_exists", format!("output_path already exists: {}", arguments.output_path))
            }
            _ => error.into(),
        })?;
        output.file("", 0o600)?;
        let mut at = 0;
        while at < size {
            let length = PIECE.min(size - at);
            output.write_blob(&disk, at, length)?;
            at += length;
            call.progress(at as f64, Some(size as f64), "copying the disk");
        }
        output.commit()?;
        Ok(Output {
            workspace_id: arguments.workspace_id,
            output_path: arguments.output_path,
            disk_format: "ext4".to_owned(),
            bytes_written: size,
        })
    }
}
