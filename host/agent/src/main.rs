//! The guest agent's program: `/init` of the initramfs. See the library of this package.
#![cfg_attr(not(test), no_main)]

/// The C library's entry. The standard library's own would abort when the kernel could open no console, because it
/// replaces closed standard streams by `/dev/null`, which does not exist yet.
// SAFETY: no other function of the program has this name, and the signature is the C library's.
#[cfg(not(test))]
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: i32, _argv: *const *const std::ffi::c_char) -> i32 {
    if rustix::process::getpid().is_init() {
        pyro_agent::init::main()
    }
    let text = concat!(
        "pyro-agent ",
        env!("CARGO_PKG_VERSION"),
        " is the first process of a microVM and does nothing elsewhere\n"
    );
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
    2
}
