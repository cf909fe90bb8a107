//! The stable error codes, in one list. `docs/errors.md` explains each; a test holds both together.
//!
//! A code says what kind of failure it is, for programs; the message states the fact and the hint the next step, for
//! people and models. Codes are added, never renamed.

/// Who gives a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The engine: environments and machines.
    Engine,
    /// The component host: arguments, limits, plugins.
    Tool,
    /// Reading a profile.
    Profile,
}

/// One code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// The snake_case name.
    pub name: &'static str,
    /// Who gives it first; a tool passes the engine's codes on.
    pub origin: Origin,
}

macro_rules! codes {
    ($($origin:ident: $($name:literal)*;)*) => {
        &[$($(Code { name: $name, origin: Origin::$origin },)*)*]
    };
}

/// Every code that pyro itself gives. A plugin may give others of its own.
pub const CODES: &[Code] = codes! {
    Engine:
        "invalid_argument" "not_found" "unknown_environment" "environment_build_failed" "disk_full" "limit_exceeded"
        "engine_unavailable" "boot_failed" "boot_timeout" "guest_panic" "machine_died" "expired" "timeout"
        "outcome_unknown" "not_started" "already_exists" "invalid_state" "conflict" "denied" "cancelled" "io" "internal";
    Tool:
        "unknown_tool" "cpu_limit" "memory_limit" "output_limit" "handle_limit" "plugin_trap" "plugin_invalid"
        "plugin_error";
    Profile:
        "digest_mismatch" "invalid_component" "invalid_toml" "invalid_tool" "invalid_value" "missing_grant" "missing_key"
        "not_a_component" "profile_too_large" "tool_collision" "unknown_argument" "unknown_component" "unknown_grant"
        "unknown_import" "unknown_key" "unknown_schema" "unsupported" "wrong_type" "wrong_version" "wrong_world";
};
