//! The `pyro:manifest` custom section: a component's tool list, readable without running it.

use serde::{Deserialize, Serialize};

use crate::interceptor::Amendment;
use crate::tool::Definition;

/// Name of the section.
const SECTION: &str = "pyro:manifest";

/// What the section says.
#[doc(hidden)]
#[derive(Serialize, Deserialize)]
pub struct Manifest {
    manifest: u32,
    /// The component's own tools.
    pub tools: Vec<Definition>,
    /// What it adds to those of others, when it is an interceptor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amendments: Option<Vec<Amendment>>,
}

impl Manifest {
    /// Returns that of a plugin.
    pub fn new(tools: Vec<Definition>, amendments: Option<Vec<Amendment>>) -> Manifest {
        Manifest { manifest: 1, tools, amendments }
    }

    /// Returns what `stated`, the section's text from an earlier build of the same plugin, says; makes it anew when there
    /// is none. Making it takes the code that derives schemas along, about 150 KiB.
    #[inline(always)]
    pub fn stated_or(stated: Option<&str>, make: impl FnOnce() -> Manifest) -> Manifest {
        match stated {
            // A text that this crate did not write gives no tools, which the host refuses by the name of the component.
            Some(text) => serde_json::from_str(text).unwrap_or_else(|_| Manifest::new(Vec::new(), None)),
            None => make(),
        }
    }

    /// Returns the section's text.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_build_states_is_what_the_next_one_answers() {
        let text = r#"{"manifest":1,"tools":[{"name":"a","description":"does a","input_schema":{"type":"object"},"output_schema":{"type":"object"},"read_only":true,"meta":{"cli":"{}"}}],"amendments":[{"tool":"b","required":["c"]}]}"#;
        let manifest = Manifest::stated_or(Some(text), || panic!("it is stated"));
        assert_eq!(manifest.text(), text);
        assert_eq!((manifest.tools.len(), manifest.amendments.map(|all| all.len())), (1, Some(1)));
        let made = Manifest::stated_or(None, || Manifest::new(Vec::new(), None));
        assert_eq!(made.text(), r#"{"manifest":1,"tools":[]}"#);
        assert!(Manifest::stated_or(Some("{"), || panic!("it is stated")).tools.is_empty());
    }
}
