//! The plugin's side of the WIT interfaces, generated from `wit/`.
//!
//! The whole platform is generated, and a component imports only what it uses: the component linker leaves the rest
//! out.
#![allow(missing_docs, reason = "generated; the WIT files hold the documentation")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "generated")]
#![allow(unsafe_op_in_unsafe_fn, reason = "generated")]

wit_bindgen::generate!({
    path: ["../../wit/pyro-host", "../../wit/pyro-vm", "../../wit/pyro-secrets", "../../wit/pyro-plugin"],
    world: "pyro:plugin/catalogue",
    generate_all,
    pub_export_macro: true,
    export_macro_name: "export_platform",
    default_bindings_module: "pyro_plugin_sdk::bindings",
});
