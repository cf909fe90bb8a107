//! Imports an interface that no pyro offers.

use pyro_test_guests::bindings::exports::pyro::plugin::tools::{CallContext, Guest, ToolDef, ToolError, ToolResult};

mod other {
    wit_bindgen::generate!({
        inline: "package acme:cloud@1.0.0; interface store { get: func(key: string) -> string; } \
                 world other { import store; }",
    });
}

struct Plugin;

impl Guest for Plugin {
    fn list_tools() -> Result<Vec<ToolDef>, ToolError> {
        Ok(vec![pyro_test_guests::tool("fetch", None)])
    }

    fn call(_: String, arguments: String, _: CallContext) -> Result<ToolResult, ToolError> {
        Ok(pyro_test_guests::text(other::acme::cloud::store::get(&arguments)))
    }
}

pyro_test_guests::bindings::export_platform!(Plugin with_types_in pyro_test_guests::bindings);
