//! The host's side of the WIT interfaces, generated from `wit/`.
#![allow(missing_docs, reason = "generated; the WIT files hold the documentation")]

wasmtime::component::bindgen!({
    path: ["../../wit/pyro-host", "../../wit/pyro-vm", "../../wit/pyro-secrets", "../../wit/pyro-plugin"],
    world: "pyro:plugin/platform",
    imports: {
        "pyro:vm/machines.run-ephemeral": async | trappable,
        "pyro:vm/machines.end": async | trappable,
        "pyro:vm/exec.run": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: {
        "pyro:host/blobs.blob": crate::runtime::capture::Blob,
        "pyro:vm/types.machine": crate::runtime::vm::MachineEntry,
    },
});
