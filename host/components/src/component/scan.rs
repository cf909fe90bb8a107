//! Reading a component's outside from its bytes.

use std::collections::BTreeSet;

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind, ComponentType, ComponentTypeRef, Encoding,
    InstanceTypeDeclaration, Parser, Payload,
};

use super::spec::{Listing, parse_manifest};

/// The custom section that mirrors `list-tools`.
pub(crate) const MANIFEST_SECTION: &str = "pyro:manifest";

/// The next step for a section that does not hold.
pub(crate) const MANIFEST_HINT: &str =
    "build it again; where the build writes no section, `pyro plugin pack FILE` does, into a file without one";

/// What an interceptor exports.
const INTERCEPTOR: &str = "pyro:plugin/interceptor@0.1.0";

/// Largest manifest read: 128 tools with 16 KiB of schema each do not reach it.
const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// Largest component read. CPython, the largest known guest, is 18 MiB.
pub(crate) const MAX_COMPONENT_BYTES: u64 = 256 << 20;

/// Components and modules nested deeper than this are not ones that a tool chain made.
const MAX_DEPTH: usize = 32;

/// The outside of a component.
#[derive(Clone, Debug, Default)]
pub(crate) struct ComponentScan {
    /// Names of the imports, as `pyro:vm/exec@0.1.0`, in the order of the file.
    pub(crate) imports: Vec<String>,
    /// Those of the imports that name types alone. There is nothing in them to call, so they need no grant.
    pub(crate) type_only: BTreeSet<String>,
    /// Names of the exports.
    pub(crate) exports: Vec<String>,
    /// What the `pyro:manifest` section lists; none when there is no such section.
    pub(crate) listing: Option<Listing>,
}

/// Why bytes are not a component that can be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    /// Not wasm at all.
    #[error("not a WebAssembly file: it starts with {0}")]
    NotWasm(String),
    /// A core module.
    #[error("a core WebAssembly module, not a component")]
    CoreModule,
    /// Broken.
    #[error("damaged at byte {offset}: {message}")]
    Damaged {
        /// Offset in the file.
        offset: usize,
        /// What the parser says.
        message: String,
    },
    /// Nested too deep.
    #[error("components nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// An unreadable tool list.
    #[error("its `{MANIFEST_SECTION}` section {0}")]
    Manifest(String),
}

impl ScanError {
    /// Returns the next step.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            ScanError::NotWasm(_) | ScanError::Damaged { .. } | ScanError::TooDeep => {
                "build it again, for the target `wasm32-wasip2`"
            }
            ScanError::CoreModule => {
                "build it for the target `wasm32-wasip2`, or wrap it with `wasm-tools component new`"
            }
            ScanError::Manifest(_) => MANIFEST_HINT,
        }
    }
}

impl ComponentScan {
    /// Walks every payload of `bytes`, nested modules too: a section written by `#[link_section]` ends up there.
    pub(crate) fn read(bytes: &[u8]) -> Result<ComponentScan, ScanError> {
        if !bytes.starts_with(b"\0asm") {
            let head: Vec<u8> = bytes.iter().take(4).copied().collect();
            let shown = match bytes.len() {
                0 => "nothing, it is empty".to_owned(),
                _ => format!("0x{}", hex::encode(head)),
            };
            return Err(ScanError::NotWasm(shown));
        }
        let mut scan = ComponentScan::default();
        let mut manifest: Option<&[u8]> = None;
        let mut types = OuterTypes::default();
        let mut depth = 0usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(damaged)? {
                Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => return Err(ScanError::CoreModule),
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return Err(ScanError::TooDeep);
                    }
                }
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(reader) if depth == 0 => {
                    for import in reader {
                        let import = import.map_err(damaged)?;
                        let name = import.name.name.to_owned();
                        match import.ty {
                            ComponentTypeRef::Instance(index) if types.is_type_only(index) => {
                                scan.type_only.insert(name.clone());
                            }
                            ComponentTypeRef::Type(_) => types.push(false),
                            _ => {}
                        }
                        scan.imports.push(name);
                    }
                }
                Payload::ComponentExportSection(reader) if depth == 0 => {
                    for export in reader {
                        let export = export.map_err(damaged)?;
                        if export.kind == ComponentExternalKind::Type {
                            types.push(false);
                        }
                        scan.exports.push(export.name.name.to_owned());
                    }
                }
                Payload::ComponentTypeSection(reader) if depth == 0 => {
                    for ty in reader {
                        types.push(has_no_function(&ty.map_err(damaged)?));
                    }
                }
                Payload::ComponentAliasSection(reader) if depth == 0 => {
                    for alias in reader {
                        if let ComponentAlias::InstanceExport { kind: ComponentExternalKind::Type, .. }
                        | ComponentAlias::Outer { kind: ComponentOuterAliasKind::Type, .. } =
                            alias.map_err(damaged)?
                        {
                            types.push(false);
                        }
                    }
                }
                Payload::CustomSection(section) if section.name() == MANIFEST_SECTION => {
                    let earlier = manifest.replace(section.data());
                    if earlier.is_some() {
                        return Err(ScanError::Manifest("stands in it twice".to_owned()));
                    }
                }
                _ => {}
            }
        }
        if let Some(json) = manifest {
            if json.len() > MAX_MANIFEST_BYTES {
                return Err(ScanError::Manifest(format!("has {} bytes, more than {MAX_MANIFEST_BYTES}", json.len())));
            }
            let listing = parse_manifest(json).map_err(ScanError::Manifest)?;
            if !listing.amendments.is_empty() && !scan.is_interceptor() {
                let message = format!("lists amendments, but the component does not export `{INTERCEPTOR}`");
                return Err(ScanError::Manifest(message));
            }
            scan.listing = Some(listing);
        }
        Ok(scan)
    }

    /// Returns whether the component takes part in other components' tools.
    pub(crate) fn is_interceptor(&self) -> bool {
        self.exports.iter().any(|export| export == INTERCEPTOR)
    }
}

/// The component's types by index, as far as this needs them: whether each is an instance without a function.
#[derive(Debug, Default)]
struct OuterTypes(Vec<bool>);

impl OuterTypes {
    fn push(&mut self, type_only: bool) {
        self.0.push(type_only);
    }

    /// An index that is not known is not believed to be harmless.
    fn is_type_only(&self, index: u32) -> bool {
        usize::try_from(index).ok().and_then(|index| self.0.get(index)).copied().unwrap_or(false)
    }
}

/// Whether `ty` is an instance that exports types alone.
fn has_no_function(ty: &ComponentType<'_>) -> bool {
    let ComponentType::Instance(declarations) = ty else { return false };
    declarations.iter().all(|declaration| match declaration {
        InstanceTypeDeclaration::Export { ty, .. } => matches!(ty, ComponentTypeRef::Type(_)),
        _ => true,
    })
}

fn damaged(error: wasmparser::BinaryReaderError) -> ScanError {
    ScanError::Damaged { offset: error.offset(), message: error.message().to_owned() }
}

/// Returns the component with a `pyro:manifest` section at its end.
pub(crate) fn append_manifest(component: &[u8], json: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(json.len() + 16);
    leb128(&mut body, MANIFEST_SECTION.len());
    body.extend_from_slice(MANIFEST_SECTION.as_bytes());
    body.extend_from_slice(json.as_bytes());
    let mut packed = component.to_vec();
    // Section 0 is a custom section in modules and components alike.
    packed.push(0);
    leb128(&mut packed, body.len());
    packed.extend_from_slice(&body);
    packed
}

fn leb128(into: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            into.push(low);
            return;
        }
        into.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The preamble of an empty component.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn an_appended_manifest_is_read_back() {
        let json = r#"{"manifest":1,"tools":[{"name":"a","description":"does a","input_schema":{"type":"object"}}]}"#;
        let scan = ComponentScan::read(&append_manifest(EMPTY, json)).unwrap();
        let tools = scan.listing.unwrap().tools;
        assert_eq!(tools.len(), 1);
        assert_eq!(tools[0].name, "a");
        assert!(ComponentScan::read(EMPTY).unwrap().listing.is_none());
    }

    #[test]
    fn amendments_are_for_interceptors_only() {
        let json = r#"{"manifest":1,"tools":[],"amendments":[{"tool":"a"}],"a_later_key":1}"#;
        let error = ComponentScan::read(&append_manifest(EMPTY, json)).unwrap_err().to_string();
        assert!(error.contains("lists amendments, but the component does not export"), "{error}");
    }

    #[test]
    fn the_sdk_appends_the_same_section() {
        for length in [0, 100, 127, 128, 20_000] {
            let json = "x".repeat(length);
            let ours = append_manifest(EMPTY, &json);
            assert!(ours == pyro_plugin_sdk::append_manifest(EMPTY, &json), "{length}");
        }
    }

    #[test]
    fn what_is_not_a_component_is_named() {
        let text = |bytes: &[u8]| ComponentScan::read(bytes).unwrap_err().to_string();
        assert_eq!(text(b""), "not a WebAssembly file: it starts with nothing, it is empty");
        assert_eq!(text(b"\x7fELF\x02"), "not a WebAssembly file: it starts with 0x7f454c46");
        assert_eq!(text(b"\0asm\x01\0\0\0"), "a core WebAssembly module, not a component");
        assert!(text(b"\0asm\x0d\0\x01\0\x07\xff").starts_with("damaged at byte"));
        let twice = append_manifest(&append_manifest(EMPTY, "{}"), "{}");
        assert_eq!(text(&twice), "its `pyro:manifest` section stands in it twice");
        assert!(text(&append_manifest(EMPTY, "[]")).starts_with("its `pyro:manifest` section is not valid:"));
    }

    #[test]
    fn no_prefix_of_a_component_panics() {
        let packed = append_manifest(EMPTY, r#"{"manifest":1,"tools":[]}"#);
        for end in 0..packed.len() {
            let _ = ComponentScan::read(&packed[..end]);
        }
    }
}
