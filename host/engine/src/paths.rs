//! Where pyro keeps things.

use std::path::PathBuf;

/// The directories of one pyro installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// What must survive.
    pub state: PathBuf,
    /// What can be made again.
    pub cache: PathBuf,
    /// One directory per running machine.
    pub run: PathBuf,
}
