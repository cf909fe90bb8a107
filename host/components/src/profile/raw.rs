//! TOML with line numbers.

/// Finds lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locator {}
