//! The `pyro:manifest` custom section: a component's tool list, readable without running it.

use crate::interceptor::Amendment;
use crate::tool::Definition;

/// Name of the section.
const SECTION: &str = "pyro:manifest";

/// Returns the section's text for a plugin's tools.
#[doc(hidden)]
pub fn manifest(tools: &[Definition]) -> String {
    serde_json::json!({ "manifest": 1, "tools": tools }).to_string()
}

/// Returns the section's text for a plugin that is an interceptor too.
#[doc(hidden)]
pub fn intercepting_manifest(tools: &[Definition], amendments: &[Amendment]) -> String {
    serde_json::json!({ "manifest": 1, "tools": tools, "amendments": amendments }).to_string()
}

/// Returns `component` with `manifest` as its `pyro:manifest` section. For build scripts; `pyro_components::pack` does the
/// same for a component of any language.
pub fn append_manifest(component: &[u8], manifest: &str) -> Vec<u8> {
    let mut body = Vec::new();
    leb128(&mut body, SECTION.len());
    body.extend_from_slice(SECTION.as_bytes());
    body.extend_from_slice(manifest.as_bytes());
    let mut packed = component.to_vec();
    // Section 0 is a custom section in components, as in modules.
    packed.push(0);
    leb128(&mut packed, body.len());
    packed.extend_from_slice(&body);
    packed
}

/// Writes an unsigned LEB128 number.
fn leb128(into: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        into.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}
