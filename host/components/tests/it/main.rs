//! The component host against well-behaved, broken and hostile components. No test needs a microVM.

mod cache;
mod calls;
mod gated;
mod interceptors;
mod loading;
mod profiles;
mod support;
