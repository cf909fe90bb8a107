//! What the binary carries so that it works wherever it is copied: the guest
//! agent, the built-in components and the built-in profiles. `build.rs` makes
//! them.

include!(concat!(env!("OUT_DIR"), "/artifacts.rs"));
