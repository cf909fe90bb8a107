//! Traps in `list-tools`.

use pyro_test_guests::bindings::exports::pyro::plugin::tools::{CallContext, Guest, ToolDef, ToolError, ToolResult};

struct Plugin;

impl Guest for Plugin {
    fn list_tools() -> Result<Vec<ToolDef>, ToolError> {
        panic!("no tools today");
    }

    fn call(_: String, _: String, _: CallContext) -> Result<ToolResult, ToolError> {
        Ok(pyro_test_guests::text(String::new()))
    }
}

pyro_test_guests::bindings::export_platform!(Plugin with_types_in pyro_test_guests::bindings);
