//! Calls `host-files` alone; of `workspaces` it has a type in its hands.

use pyro_test_guests::bindings::exports::pyro::plugin::tools::{CallContext, Guest, ToolDef, ToolError, ToolResult};
use pyro_test_guests::bindings::pyro::vm::host_files;
use pyro_test_guests::{error, text, tool};

struct Plugin;

impl Guest for Plugin {
    fn list_tools() -> Result<Vec<ToolDef>, ToolError> {
        Ok(vec![tool("count", None)])
    }

    fn call(_: String, _: String, _: CallContext) -> Result<ToolResult, ToolError> {
        let archive = host_files::read_archive("/").map_err(|e| error(&e.code, &e.message))?;
        Ok(text(archive.entry_count.to_string()))
    }
}

pyro_test_guests::bindings::export_platform!(Plugin with_types_in pyro_test_guests::bindings);
