//! One file per tool.

pub mod export;
pub mod list;
pub mod read;

use pyro_plugin_guest::{invalid, open};
use pyro_plugin_sdk::ToolError;
use pyro_plugin_sdk::host::blobs::Blob;

use crate::image::{Image, ImageError};
use crate::pages::Pages;

/// The root disk of a stopped workspace.
fn disk(workspace_id: &str, tool: &str) -> Result<Blob, ToolError> {
    open(workspace_id)?.disk().map_err(|error| match error.code.as_str() {
        "invalid_state" => {
            ToolError::new("invalid_state", format!("workspace '{workspace_id}' must be stopped before {tool}"))
                .with_hint("stop it with workspace_stop")
        }
        _ => error.into(),
    })
}

fn image(workspace_id: &str, tool: &str) -> Result<Image, ToolError> {
    let blob = disk(workspace_id, tool)?;
    let size = blob.size();
    Image::open(Pages::new(size, move |offset, length| blob.read(offset, length))).map_err(failed)
}

/// The absolute path that a caller's path means.
fn path(path: &str) -> Result<String, ToolError> {
    crate::path::resolve(path)
        .ok_or_else(|| invalid("workspace disk path is empty, longer than 4096 bytes or has a NUL"))
}

fn failed(error: ImageError) -> ToolError {
    let code = match &error {
        ImageError::NotFound(_) => "not_found",
        ImageError::NotAFile(_) | ImageError::NotADirectory(_) => "invalid_argument",
        ImageError::Damaged { .. } => "disk_damaged",
    };
    ToolError::new(code, error.to_string())
}
