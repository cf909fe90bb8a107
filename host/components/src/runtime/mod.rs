//! Running components: the wasmtime engine, what is linked into an instance, and the limits of a call.
