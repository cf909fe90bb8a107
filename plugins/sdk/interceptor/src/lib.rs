//! The plugin's side of the exports of an interceptor, generated from `wit/`.
//!
//! Which exports a component has is decided by the world its bindings are made of, and a crate can hold the export
//! macros of one world only: so this is a crate. Use it through `pyro_plugin_sdk`.
#![allow(missing_docs, reason = "generated; the WIT files hold the documentation")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "generated")]
#![allow(unsafe_op_in_unsafe_fn, reason = "generated")]

wit_bindgen::generate!({
    path: ["../../../wit/pyro-host", "../../../wit/pyro-vm", "../../../wit/pyro-secrets", "../../../wit/pyro-plugin"],
    world: "pyro:plugin/interceptor-exports",
    generate_all,
    pub_export_macro: true,
    export_macro_name: "export_interceptor",
    default_bindings_module: "pyro_plugin_interceptor",
});
