//! What is linked into a component: everything ungated, and of the gated interfaces only what is granted.

use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker};

use super::bindings::pyro;
use super::state::CallState;
use crate::profile::GrantSet;

/// Returns the linker of a set of grants. An interface that is not granted is not there: a component that imports it
/// cannot be instantiated, whatever was checked before.
pub(crate) fn linker(engine: &Engine, grants: &GrantSet) -> wasmtime::Result<Linker<CallState>> {
    let mut linker = Linker::new(engine);
    // Sockets are among it; the import check refuses a component that asks for them, and the context allows none.
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    pyro::host::log::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    pyro::host::call::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    pyro::host::config::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    pyro::host::blobs::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    pyro::vm::types::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    if grants.machines.is_some() {
        pyro::vm::machines::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    }
    if grants.exec.is_some() {
        pyro::vm::exec::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    }
    Ok(linker)
}
