//! What the components in `examples/` share: the plugin's side of the interfaces, and tools as data.
//!
//! They are written without the SDK, because an SDK would keep them from behaving badly.

/// The plugin's side of the WIT interfaces, generated from `wit/`.
#[allow(missing_docs, reason = "generated; the WIT files hold the documentation")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "generated")]
#[allow(unsafe_op_in_unsafe_fn, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/pyro-host", "../../wit/pyro-vm", "../../wit/pyro-secrets", "../../wit/pyro-plugin"],
        world: "pyro:plugin/catalogue",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_platform",
        default_bindings_module: "pyro_test_guests::bindings",
    });
}

use bindings::exports::pyro::plugin::tools::{Body, Content, ToolDef, ToolError, ToolResult};

/// Returns a tool that takes `n`, an integer.
pub fn tool(name: &str, output_schema: Option<&str>) -> ToolDef {
    ToolDef {
        name: name.to_owned(),
        title: None,
        description: format!("Behaves as its name says: {name}."),
        input_schema: r#"{"type":"object","properties":{"n":{"type":"integer","description":"how much","minimum":0,"default":1}},"additionalProperties":false}"#
            .to_owned(),
        output_schema: output_schema.map(str::to_owned),
        read_only: None,
        destructive: None,
        idempotent: None,
        open_world: None,
        meta: Vec::new(),
    }
}

/// Returns a result of one text block.
pub fn text(text: String) -> ToolResult {
    let content = vec![Content { mime: None, body: Body::Text(text), meta: Vec::new() }];
    ToolResult { content, structured: None, is_error: false, meta: Vec::new() }
}

/// Returns a structured result.
pub fn structured(json: String) -> ToolResult {
    ToolResult { content: Vec::new(), structured: Some(json), is_error: false, meta: Vec::new() }
}

/// Returns an error.
pub fn error(code: &str, message: &str) -> ToolError {
    ToolError { code: code.to_owned(), message: message.to_owned(), hint: None, retryable: false }
}
