//! The component host against well-behaved, broken and hostile components. A test that needs a microVM is run on
//! request.

mod cache;
mod calls;
mod gated;
mod interceptors;
mod loading;
mod profiles;
mod support;
mod vm;
