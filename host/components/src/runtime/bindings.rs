//! The host's side of the WIT interfaces, generated from `wit/`.
#![allow(missing_docs, reason = "generated; the WIT files hold the documentation")]

wasmtime::component::bindgen!({
    path: ["../../wit/pyro-host", "../../wit/pyro-vm", "../../wit/pyro-secrets", "../../wit/pyro-plugin"],
    world: "pyro:plugin/catalogue",
    imports: {
        "pyro:host/log": trappable,
        "pyro:host/call": trappable,
        "pyro:host/config": trappable,
        "pyro:host/blobs": trappable,
        default: async | trappable,
    },
    exports: { default: async },
    with: {
        "pyro:host/blobs.blob": crate::runtime::blob::Blob,
        "pyro:vm/types.machine": crate::runtime::vm::MachineEntry,
        "pyro:vm/workspaces.workspace": crate::runtime::vm::WorkspaceEntry,
        "pyro:vm/host-files.output": crate::runtime::host_files::OutputEntry,
    },
});

/// What a component exports besides when it is an interceptor. Its records are generated once more: they belong to the
/// world's exports.
pub mod interceptor {
    wasmtime::component::bindgen!({
        path: ["../../wit/pyro-host", "../../wit/pyro-vm", "../../wit/pyro-secrets", "../../wit/pyro-plugin"],
        world: "pyro:plugin/interceptor-exports",
        exports: { default: async },
        with: {
            "pyro:host/blobs": crate::runtime::bindings::pyro::host::blobs,
        },
    });
}
