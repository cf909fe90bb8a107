//! What a component may do: one grant per gated interface, with scopes that are checked on every call.

use serde::Serialize;

/// The grants of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GrantSet {
    /// `pyro:vm/machines`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machines: Option<MachinesScope>,
    /// `pyro:vm/exec`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecScope>,
}

/// Which machines a component may make. Every key narrows; an empty scope allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachinesScope {
    /// Patterns of environment names, `*` for any run of characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environments: Option<Vec<String>>,
}

/// Which commands a component may run. Every key narrows; an empty scope allows all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExecScope {
    /// Patterns of command lines, one word per argument. `*` in a word stands for any run of characters, a last word
    /// `*` for any further arguments, also none. A shell line counts as the arguments `sh`, `-lc`, LINE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Environment variables that may be set. With `argv` and without this, none: a variable such as `LD_PRELOAD`
    /// would make an allowed program run anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Longest timeout of a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<u32>,
}
