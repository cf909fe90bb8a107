//! From a manifest's text to a [`ResolvedProfile`].

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::imports::{check_exports, check_imports};
use super::narrow::bind_tools;
use super::raw::{self, At, Locator, MAX_PROFILE_BYTES, RawComponent};
use super::{
    Builtins, ComponentBytes, ComponentDescription, GrantSet, ProfileDescription, ResolvedComponent, ResolvedProfile,
    ToolDescription,
};
use crate::component::{ComponentScan, Listing, MAX_COMPONENT_BYTES};
use crate::diagnostic::{Diagnostic, LoadError, name_list, suggestion};
use crate::error::ToolError;
use crate::tool::ToolDef;

impl ResolvedProfile {
    /// Opens a profile: a built-in name, or the path of a TOML file (anything with a `/` or ending in `.toml`).
    /// Relative paths in a file start at the file's directory, those in a built-in profile at the current one.
    ///
    /// # Errors
    /// Every mistake found in it.
    pub fn open(reference: &str, builtins: &Builtins) -> Result<ResolvedProfile, LoadError> {
        if let Some((name, text)) = builtins.profiles.iter().find(|(name, _)| *name == reference) {
            return ResolvedProfile::from_toml(text, name, Path::new("."), builtins);
        }
        let fail = |code, message: String, hint: String| {
            let file = reference.to_owned();
            Err(LoadError::new(vec![Diagnostic { code, file, line: None, message, hint: Some(hint) }]))
        };
        let names = || builtins.profiles.iter().map(|(name, _)| *name);
        if !reference.contains('/') && !reference.ends_with(".toml") {
            let hint = match suggestion(reference, names()) {
                Some(near) => format!("did you mean `{near}`? A file is named by its path, as ./{reference}.toml"),
                None => format!("built-in profiles: {}; a file is named by its path", name_list(names())),
            };
            return fail("not_found", format!("no built-in profile `{reference}`"), hint);
        }
        let path = Path::new(reference);
        let bytes = match read_file(path, MAX_PROFILE_BYTES as u64) {
            Ok(bytes) => bytes,
            Err(ReadError::NotFound) => {
                let hint = format!("check the path; built-in profiles: {}", name_list(names()));
                return fail("not_found", "no such file".to_owned(), hint);
            }
            Err(error) => return fail("io", error.to_string(), "name a readable TOML file".to_owned()),
        };
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to());
                return fail("invalid_toml", message, "save it as UTF-8".to_owned());
            }
        };
        let base = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ResolvedProfile::from_toml(&text, reference, base, builtins)
    }

    /// Reads a profile from text. `origin` names it in findings; relative paths start at `base`.
    ///
    /// # Errors
    /// Every mistake found in it.
    pub fn from_toml(text: &str, origin: &str, base: &Path, builtins: &Builtins) -> Result<ResolvedProfile, LoadError> {
        let locator = Locator::new(origin, text);
        let mut findings = Vec::new();
        let Some(raw) = raw::parse(text, &locator, &mut findings) else {
            return Err(LoadError::new(findings));
        };
        let mut resolver = Resolver { base, builtins, locator: &locator, findings: &mut findings };
        let components = raw.components.into_iter().filter_map(|raw| resolver.component(raw)).collect();
        let mut host = raw.host;
        let [read, write] = &raw.host_paths;
        host.read = resolver.host_paths(read);
        host.write = resolver.host_paths(write);
        let profile = ResolvedProfile {
            name: raw.name.value,
            description: raw.description,
            instructions: raw.instructions,
            components,
            host,
            origin: origin.to_owned(),
            narrowing: raw.tools,
            locator: locator.clone(),
        };
        if findings.is_empty() && profile.lists_itself() {
            bind_tools(&profile, &profile.stated_tools(), &mut findings);
        }
        if findings.is_empty() { Ok(profile) } else { Err(LoadError::new(findings)) }
    }

    /// Returns whether every component carries its tool list. The others are asked when a [`crate::Toolbox`] is loaded.
    pub fn lists_itself(&self) -> bool {
        self.components.iter().all(|component| component.scan.listing.is_some())
    }

    /// Returns what each component lists as its bytes state it.
    pub(crate) fn stated_tools(&self) -> Vec<Listing> {
        self.components.iter().map(|component| component.scan.listing.clone().unwrap_or_default()).collect()
    }

    /// Returns everything the profile amounts to. Runs nothing, so the tools of a component that does not carry its
    /// list are missing; [`crate::Toolbox::describe`] knows them too.
    pub fn describe(&self) -> ProfileDescription {
        // Findings were reported when the profile was opened.
        let bound = bind_tools(self, &self.stated_tools(), &mut Vec::new());
        let tools: Vec<ToolDef> = bound.into_iter().map(|tool| tool.def).collect();
        self.describe_with(&tools)
    }

    pub(crate) fn describe_with(&self, tools: &[ToolDef]) -> ProfileDescription {
        let components = self.components.iter().map(|component| ComponentDescription {
            name: component.name.clone(),
            source: component.source.clone(),
            digest: component.digest.clone(),
            size: component.bytes.as_slice().len(),
            imports: component.scan.imports.clone(),
            grants: component.grants.clone(),
            limits: component.limits,
            config: component.config.clone(),
        });
        let tools = tools.iter().map(|tool| {
            let narrowing = self.narrowing.iter().find(|narrowing| narrowing.name.value == tool.name);
            let values = |pairs: &[(At<String>, serde_json::Value)]| {
                pairs.iter().map(|(name, value)| (name.value.clone(), value.clone())).collect()
            };
            let properties = tool.input_schema.get("properties").and_then(|properties| properties.as_object());
            ToolDescription {
                name: tool.name.clone(),
                component: tool.component.clone(),
                description: tool.description.clone(),
                arguments: properties.map(|map| map.keys().cloned().collect()).unwrap_or_default(),
                fixed: narrowing.map(|n| values(&n.fixed)).unwrap_or_default(),
                default: narrowing.map(|n| values(&n.default)).unwrap_or_default(),
                hide: narrowing.map(|n| n.hide.iter().map(|h| h.value.clone()).collect()).unwrap_or_default(),
                annotations: tool.annotations,
            }
        });
        ProfileDescription {
            name: self.name.clone(),
            description: self.description.clone(),
            origin: self.origin.clone(),
            instructions: self.instructions.clone(),
            host: self.host.clone(),
            components: components.collect(),
            tools: tools.collect(),
        }
    }
}

/// Returns the `grants` line with `wanted` in it, keeping the scopes that are there.
pub(super) fn grants_toml(grants: &GrantSet, wanted: &[&'static str], table_form: bool) -> String {
    if !table_form {
        let names: Vec<String> = wanted.iter().map(|name| format!("\"{name}\"")).collect();
        return format!("grants = [{}]", names.join(", "));
    }
    let scopes = serde_json::to_value(grants).unwrap_or_default();
    let entries: Vec<String> = wanted
        .iter()
        .map(|name| {
            let scope = scopes.get(*name).and_then(|scope| scope.as_object());
            let keys: Vec<String> =
                scope.into_iter().flatten().map(|(key, value)| format!("{key} = {value}")).collect();
            if keys.is_empty() { format!("{name} = {{}}") } else { format!("{name} = {{ {} }}", keys.join(", ")) }
        })
        .collect();
    format!("grants = {{ {} }}", entries.join(", "))
}

struct Resolver<'r> {
    base: &'r Path,
    builtins: &'r Builtins,
    locator: &'r Locator,
    findings: &'r mut Vec<Diagnostic>,
}

impl Resolver<'_> {
    fn report(&mut self, code: &'static str, line: usize, message: String, hint: String) {
        let finding = self.locator.finding(code, line, message, Some(hint).filter(|hint| !hint.is_empty()));
        self.findings.push(finding);
    }

    fn component(&mut self, raw: RawComponent) -> Option<ResolvedComponent> {
        let place = format!("[components.{}]", raw.name.value);
        let source = raw.source?;
        let bytes = match self.bytes(&source) {
            Ok(bytes) => bytes,
            Err((code, message, hint)) => {
                self.report(code, source.line, message, hint);
                return None;
            }
        };
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(bytes.as_slice())));
        if let Some(pin) = &raw.digest {
            self.check_digest(pin, &digest, &source.value);
        }
        let scan = match ComponentScan::read(bytes.as_slice()) {
            Ok(scan) => scan,
            Err(error) => {
                let message = format!("`{}` is not a component: {error}", source.value);
                self.report("not_a_component", source.line, message, error.hint().to_owned());
                return None;
            }
        };
        if let Some((code, message, hint)) = check_exports(&place, &scan.exports) {
            self.report(code, source.line, message, hint);
        }
        for (code, message, hint) in check_imports(&place, &scan, &raw.grants, raw.grants_table) {
            self.report(code, raw.grants_line, message, hint);
        }
        Some(ResolvedComponent {
            line: raw.name.line,
            tools_line: raw.tools.iter().flatten().next().map_or(raw.name.line, |tool| tool.line),
            name: raw.name.value,
            source: source.value,
            digest,
            grants: raw.grants,
            tools: raw.tools.map(|tools| tools.into_iter().map(|tool| tool.value).collect()),
            limits: raw.limits,
            config: raw.config,
            bytes,
            scan: Arc::new(scan),
        })
    }

    fn bytes(&self, source: &At<String>) -> Result<ComponentBytes, (&'static str, String, String)> {
        let text = source.value.as_str();
        let names = || self.builtins.components.iter().map(|(name, _)| *name);
        if let Some(name) = text.strip_prefix("builtin:") {
            let found = self.builtins.components.iter().find(|(known, _)| *known == name);
            return found.map(|(_, bytes)| ComponentBytes::Builtin(bytes)).ok_or_else(|| {
                let hint = match suggestion(name, names()) {
                    Some(near) => format!("did you mean `builtin:{near}`?"),
                    None => format!("built-in components: {}", name_list(names())),
                };
                ("unknown_component", format!("no built-in component `{name}`"), hint)
            });
        }
        let path = Path::new(text);
        let looks_like_path = text.ends_with(".wasm") && !text.contains("://");
        if !looks_like_path {
            let hint = match suggestion(text, names()).or_else(|| names().find(|name| *name == text)) {
                Some(near) => format!("did you mean `builtin:{near}`?"),
                None if text.contains("://") || text.contains('@') || text.contains(':') => {
                    "registries are not supported yet: download the component and name its file".to_owned()
                }
                None => "write `builtin:NAME`, or a path that ends in `.wasm`".to_owned(),
            };
            let message = format!("source `{text}` is neither a built-in component nor a file");
            return Err(("unknown_component", message, hint));
        }
        let path = self.base.join(path);
        match read_file(&path, MAX_COMPONENT_BYTES) {
            Ok(bytes) => Ok(ComponentBytes::Read(bytes.into())),
            Err(ReadError::NotFound) => {
                let shown = path.display();
                Err(("not_found", format!("no file `{shown}`"), "paths start at the profile's directory".to_owned()))
            }
            Err(error) => Err(("io", format!("cannot read `{}`: {error}", path.display()), String::new())),
        }
    }

    fn check_digest(&mut self, pin: &At<String>, actual: &str, source: &str) {
        let hex = pin.value.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            let message = format!("digest `{}` is not `sha256:` and 64 lower-case hex digits", pin.value);
            self.report("invalid_value", pin.line, message, format!("`{source}` is {actual}"));
        } else if pin.value != actual {
            let message = format!("`{source}` is not what the profile pins: it is {actual}");
            let hint = "get the pinned file again; change the pin only when you trust the new one".to_owned();
            self.report("digest_mismatch", pin.line, message, hint);
        }
    }

    fn host_paths(&mut self, paths: &[At<String>]) -> Vec<PathBuf> {
        let mut absolute = Vec::with_capacity(paths.len());
        for path in paths {
            if path.value.is_empty() {
                self.report("invalid_value", path.line, "empty path in [host]".to_owned(), "write a path".to_owned());
                continue;
            }
            match std::path::absolute(self.base.join(&path.value)) {
                Ok(path) => absolute.push(path),
                Err(error) => {
                    let message = format!("path `{}` cannot be made absolute: {error}", path.value);
                    self.report("io", path.line, message, String::new());
                }
            }
        }
        absolute
    }
}

/// Reads a component's file as a profile's `source` is read: a regular file of a size that a component may have.
///
/// # Errors
/// `not_found` and `io`.
pub fn read_component(path: &Path) -> Result<Vec<u8>, ToolError> {
    read_file(path, MAX_COMPONENT_BYTES).map_err(|error| match error {
        ReadError::NotFound => ToolError::new("not_found", format!("no file `{}`", path.display())),
        error => ToolError::new("io", format!("cannot read `{}`: {error}", path.display())),
    })
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("no such file")]
    NotFound,
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Reads a regular file of at most `most` bytes. Pipes and devices are refused before they are opened.
fn read_file(path: &Path, most: u64) -> Result<Vec<u8>, ReadError> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(ReadError::NotFound),
        Err(error) => return Err(error.into()),
    };
    if !metadata.is_file() {
        return Err(ReadError::NotAFile);
    }
    if metadata.len() > most {
        return Err(ReadError::TooLarge(most));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(ReadError::TooLarge(most));
    }
    Ok(bytes)
}
