//! Never returns from `list-tools`.

use pyro_test_guests::bindings::exports::pyro::plugin::tools::{CallContext, Guest, ToolDef, ToolError, ToolResult};

struct Plugin;

impl Guest for Plugin {
    fn list_tools() -> Result<Vec<ToolDef>, ToolError> {
        let mut n = 0u64;
        loop {
            n = std::hint::black_box(n.wrapping_add(1));
        }
    }

    fn call(_: String, _: String, _: CallContext) -> Result<ToolResult, ToolError> {
        Ok(pyro_test_guests::text(String::new()))
    }
}

pyro_test_guests::bindings::export_platform!(Plugin with_types_in pyro_test_guests::bindings);
