//! `[tool.NAME]`: fixing, defaulting and hiding arguments of a tool.

use serde_json::{Map, Value};

/// One `[tool.NAME]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Narrowing {
    pub(crate) fixed: Map<String, Value>,
    pub(crate) default: Map<String, Value>,
    pub(crate) hide: Vec<String>,
}

pub(crate) fn narrowed() {}
