//! What is linked into a component: everything ungated, and of the gated interfaces only what is granted.

use std::collections::BTreeSet;

use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker};

use super::bindings::pyro;
use super::state::CallState;
use crate::profile::GrantSet;

/// Links an interface when it is granted, or when a component names types of it alone: that calls nothing.
macro_rules! gated {
    ($linker:ident, $type_only:ident, $($granted:expr => $($module:ident)::+ as $name:literal;)+) => {
        $(
            if $granted.is_some() || $type_only.contains($name) {
                pyro::$($module)::+::add_to_linker::<_, HasSelf<_>>(&mut $linker, |state| state)?;
            }
        )+
    };
}

/// Returns the linker of a set of grants. An interface that is not granted is not there: a component that calls it
/// cannot be instantiated, whatever was checked before.
pub(crate) fn linker(
    engine: &Engine,
    grants: &GrantSet,
    type_only: &BTreeSet<String>,
) -> wasmtime::Result<Linker<CallState>> {
    let mut linker = Linker::new(engine);
    // Sockets are among it; the import check refuses a component that asks for them, and the context allows none.
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    pyro::host::log::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    pyro::host::call::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    pyro::host::config::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    pyro::host::blobs::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    pyro::vm::types::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    gated! { linker, type_only,
        grants.machines => vm::machines as "pyro:vm/machines@0.1.0";
        grants.exec => vm::exec as "pyro:vm/exec@0.1.0";
        grants.workspaces => vm::workspaces as "pyro:vm/workspaces@0.1.0";
        grants.files => vm::files as "pyro:vm/files@0.1.0";
        grants.host_files => vm::host_files as "pyro:vm/host-files@0.1.0";
        grants.terminals => vm::terminals as "pyro:vm/terminals@0.1.0";
        grants.services => vm::services as "pyro:vm/services@0.1.0";
        grants.ports => vm::ports as "pyro:vm/ports@0.1.0";
        grants.environments => vm::environments as "pyro:vm/environments@0.1.0";
        grants.machine_lifecycle => vm::machine_lifecycle as "pyro:vm/machine-lifecycle@0.1.0";
        grants.secrets => secrets::store as "pyro:secrets/store@0.1.0";
        grants.secrets => secrets::bindings as "pyro:secrets/bindings@0.1.0";
    }
    Ok(linker)
}
