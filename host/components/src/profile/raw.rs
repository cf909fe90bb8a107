//! A manifest as written: keys and types checked, every value with its line.
//!
//! The TOML tree is walked by hand instead of through serde, so that one pass reports every mistake, each with its line
//! and the nearest known key.

use std::ops::Range;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::grants::{ExecScope, FilesScope, GrantSet, MachinesScope, SecretsScope, WholeScope};
use super::{HostSettings, Limits};
use crate::diagnostic::{Diagnostic, name_list, suggestion};

/// Largest manifest. Real ones have a few KiB.
pub(super) const MAX_PROFILE_BYTES: usize = 256 << 10;

/// Most entries of a list in a manifest.
const MAX_LIST: usize = 256;

/// Deepest nesting of `config` and of argument values.
const MAX_VALUE_DEPTH: usize = 32;

/// Finds the line of a byte.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locator {
    file: String,
    line_starts: Vec<usize>,
}

impl Locator {
    pub(super) fn new(file: &str, text: &str) -> Locator {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Locator { file: file.to_owned(), line_starts }
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.line_starts.partition_point(|start| *start <= span.start).max(1)
    }

    /// Returns a finding at `line`; 0 means the whole file.
    pub(crate) fn finding(
        &self,
        code: &'static str,
        line: usize,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Diagnostic {
        let line = (line > 0).then_some(line);
        Diagnostic { code, file: self.file.clone(), line, message: message.into(), hint }
    }
}

/// A value and the line it stands on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) line: usize,
}

/// A manifest with every key and type checked.
#[derive(Debug, Default)]
pub(super) struct RawProfile {
    pub(super) name: At<String>,
    pub(super) description: String,
    pub(super) instructions: Option<String>,
    pub(super) components: Vec<RawComponent>,
    pub(super) tools: Vec<Narrowing>,
    pub(super) host: HostSettings,
    /// `read` and `write` as written.
    pub(super) host_paths: [Vec<At<String>>; 2],
}

#[derive(Debug, Default)]
pub(super) struct RawComponent {
    pub(super) name: At<String>,
    pub(super) source: Option<At<String>>,
    pub(super) digest: Option<At<String>>,
    pub(super) grants: GrantSet,
    /// The line of `grants`, or of the component.
    pub(super) grants_line: usize,
    /// Whether `grants` is written as a table.
    pub(super) grants_table: bool,
    pub(super) tools: Option<Vec<At<String>>>,
    pub(super) limits: Limits,
    pub(super) config: Map<String, Value>,
}

/// One `[tool.NAME]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Narrowing {
    /// The tool.
    pub(crate) name: At<String>,
    pub(crate) fixed: Vec<(At<String>, Value)>,
    pub(crate) default: Vec<(At<String>, Value)>,
    pub(crate) hide: Vec<At<String>>,
}

type Node<'a> = Spanned<DeValue<'a>>;

/// Reads a manifest, adding what is wrong to `findings`. Returns none when it is not TOML.
pub(super) fn parse(text: &str, locator: &Locator, findings: &mut Vec<Diagnostic>) -> Option<RawProfile> {
    if text.len() > MAX_PROFILE_BYTES {
        let message = format!("the profile has {} bytes, more than {MAX_PROFILE_BYTES}", text.len());
        findings.push(locator.finding("profile_too_large", 0, message, None));
        return None;
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // One broken line makes the parser stumble over what follows it, so only the first error is a fact.
        if let Some(error) = errors.first() {
            let line = error.span().map_or(0, |span| locator.line(&span));
            let hint = Some("profiles are TOML 1.0; see docs/profiles.md".to_owned());
            findings.push(locator.finding("invalid_toml", line, error.message().trim(), hint));
        }
        return None;
    }
    let mut reader = Reader { locator, findings };
    Some(reader.profile(root.get_ref()))
}

struct Reader<'r> {
    locator: &'r Locator,
    findings: &'r mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn report(&mut self, code: &'static str, line: usize, message: String, hint: Option<String>) {
        let finding = self.locator.finding(code, line, message, hint);
        self.findings.push(finding);
    }

    fn line(&self, node: &Node<'_>) -> usize {
        self.locator.line(&node.span())
    }

    /// The entries of a table in the order of the file, after refusing keys that are not in `known`.
    fn entries<'t, 'a>(
        &mut self,
        table: &'t DeTable<'a>,
        place: &str,
        known: Option<&[&str]>,
    ) -> Vec<(At<&'t str>, &'t Node<'a>)> {
        let mut entries: Vec<(Range<usize>, &'t str, &'t Node<'a>)> =
            table.iter().map(|(key, value)| (key.span(), key.get_ref().as_ref(), value)).collect();
        entries.sort_by_key(|(span, ..)| span.start);
        let mut kept = Vec::with_capacity(entries.len());
        for (span, key, value) in entries {
            let line = self.locator.line(&span);
            if let Some(known) = known
                && !known.contains(&key)
            {
                let hint = match suggestion(key, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known keys: {}", name_list(known.iter().copied())),
                };
                self.report("unknown_key", line, format!("unknown key `{key}` in {place}"), Some(hint));
                continue;
            }
            kept.push((At { value: key, line }, value));
        }
        kept
    }

    fn wrong(&mut self, node: &Node<'_>, what: &str, expected: &str) {
        let line = self.line(node);
        let found = node.get_ref().type_str();
        self.report("wrong_type", line, format!("{what} must be {expected}, not {}", article(found)), None);
    }

    fn string(&mut self, node: &Node<'_>, what: &str, most: usize) -> Option<At<String>> {
        let Some(text) = node.get_ref().as_str() else {
            self.wrong(node, what, "a string");
            return None;
        };
        let line = self.line(node);
        if text.len() > most {
            self.report("invalid_value", line, format!("{what} has {} bytes, more than {most}", text.len()), None);
            return None;
        }
        if text.contains('\0') {
            self.report("invalid_value", line, format!("{what} contains a NUL character"), None);
            return None;
        }
        Some(At { value: text.to_owned(), line })
    }

    fn integer(&mut self, node: &Node<'_>, what: &str, range: Range<u32>) -> Option<u32> {
        let Some(integer) = node.get_ref().as_integer() else {
            self.wrong(node, what, "an integer");
            return None;
        };
        let value = i64::from_str_radix(integer.as_str(), integer.radix());
        match value.ok().and_then(|value| u32::try_from(value).ok()).filter(|value| range.contains(value)) {
            Some(value) => Some(value),
            None => {
                let line = self.line(node);
                let (low, high) = (range.start, range.end.saturating_sub(1));
                let message = format!("{what} must be between {low} and {high}, not {}", integer.as_str());
                self.report("invalid_value", line, message, None);
                None
            }
        }
    }

    fn array<'t, 'a>(&mut self, node: &'t Node<'a>, what: &str) -> Option<&'t DeArray<'a>> {
        match node.get_ref().as_array() {
            None => {
                self.wrong(node, what, "an array");
                None
            }
            Some(array) if array.len() > MAX_LIST => {
                let line = self.line(node);
                let message = format!("{what} has {} entries, more than {MAX_LIST}", array.len());
                self.report("invalid_value", line, message, None);
                None
            }
            Some(array) => Some(array),
        }
    }

    fn strings(&mut self, node: &Node<'_>, what: &str) -> Option<Vec<At<String>>> {
        let array = self.array(node, what)?;
        Some(array.iter().filter_map(|item| self.string(item, &format!("each entry of {what}"), 4096)).collect())
    }

    fn table<'t, 'a>(&mut self, node: &'t Node<'a>, what: &str) -> Option<&'t DeTable<'a>> {
        let table = node.get_ref().as_table();
        if table.is_none() {
            self.wrong(node, what, "a table");
        }
        table
    }

    fn json_table(&mut self, node: &Node<'_>, what: &str) -> Map<String, Value> {
        let Some(table) = self.table(node, what) else { return Map::new() };
        let entries = self.entries(table, what, None);
        entries
            .into_iter()
            .filter_map(|(key, value)| Some((key.value.to_owned(), self.json(value, what, 0)?)))
            .collect()
    }

    fn json(&mut self, node: &Node<'_>, what: &str, depth: usize) -> Option<Value> {
        if depth > MAX_VALUE_DEPTH {
            let line = self.line(node);
            self.report("invalid_value", line, format!("{what} is nested more than {MAX_VALUE_DEPTH} deep"), None);
            return None;
        }
        match node.get_ref() {
            DeValue::String(text) => Some(Value::from(text.as_ref())),
            DeValue::Boolean(value) => Some(Value::from(*value)),
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(value) => Some(Value::from(value)),
                Err(_) => {
                    let line = self.line(node);
                    self.report("invalid_value", line, format!("{what}: {} is too large", integer.as_str()), None);
                    None
                }
            },
            DeValue::Float(float) => {
                let value = float.as_str().parse::<f64>().ok().and_then(serde_json::Number::from_f64);
                if value.is_none() {
                    let line = self.line(node);
                    self.report("invalid_value", line, format!("{what}: {} is not finite", float.as_str()), None);
                }
                value.map(Value::Number)
            }
            DeValue::Datetime(datetime) => Some(Value::from(datetime.to_string())),
            DeValue::Array(items) => {
                Some(Value::Array(items.iter().filter_map(|item| self.json(item, what, depth + 1)).collect()))
            }
            DeValue::Table(table) => {
                let entries = self.entries(table, what, None);
                let pairs = entries
                    .into_iter()
                    .filter_map(|(key, value)| Some((key.value.to_owned(), self.json(value, what, depth + 1)?)));
                Some(Value::Object(pairs.collect()))
            }
        }
    }

    fn profile(&mut self, root: &DeTable<'_>) -> RawProfile {
        let known = ["schema", "name", "description", "instructions", "components", "tool", "host"];
        let mut raw = RawProfile::default();
        let mut schema = None;
        for (key, value) in self.entries(root, "the profile", Some(&known)) {
            match key.value {
                "schema" => schema = Some((self.integer(value, "`schema`", 0..u32::MAX), key.line)),
                "name" => raw.name = self.string(value, "`name`", 64).unwrap_or_default(),
                "description" => raw.description = self.string(value, "`description`", 1024).unwrap_or_default().value,
                "instructions" => {
                    raw.instructions = self.string(value, "`instructions`", 16 << 10).map(|text| text.value);
                }
                "components" => self.components(value, &mut raw.components),
                "tool" => self.tools(value, &mut raw.tools),
                "host" => self.host(value, &mut raw),
                _ => {}
            }
        }
        match schema {
            Some((Some(1) | None, _)) => {}
            Some((Some(other), line)) => {
                let hint = "this pyro reads schema 1; a newer one may read this profile".to_owned();
                self.report("unknown_schema", line, format!("unknown profile schema {other}"), Some(hint));
            }
            None => {
                let hint = "write `schema = 1` at its top".to_owned();
                self.report("missing_key", 0, "the profile does not say its schema".to_owned(), Some(hint));
            }
        }
        let named = root.iter().any(|(key, _)| key.get_ref().as_ref() == "name");
        // A name of another type was reported where it stands.
        if !is_name(&raw.name.value, false) && (raw.name.line > 0 || !named) {
            let line = raw.name.line;
            let (message, hint) = match raw.name.value.as_str() {
                "" => ("the profile has no name".to_owned(), "write `name = \"my-profile\"`"),
                other => {
                    (format!("profile name `{other}` is not allowed"), "use a-z, 0-9 and `-`, at most 64 characters")
                }
            };
            self.report("invalid_value", line, message, Some(hint.to_owned()));
        }
        if !root.iter().any(|(key, _)| key.get_ref().as_ref() == "components") {
            let hint = "add one: [components.exec] with `source = \"builtin:exec\"`".to_owned();
            self.report("missing_key", 0, "the profile names no component".to_owned(), Some(hint));
        }
        raw
    }

    fn components(&mut self, node: &Node<'_>, into: &mut Vec<RawComponent>) {
        let Some(table) = self.table(node, "`components`") else { return };
        for (name, value) in self.entries(table, "`components`", None) {
            let place = format!("[components.{}]", name.value);
            if !is_name(name.value, true) {
                let hint = "use a-z, 0-9, `-` and `_`, at most 64 characters".to_owned();
                let message = format!("component name `{}` is not allowed", name.value);
                self.report("invalid_value", name.line, message, Some(hint));
            }
            let Some(table) = self.table(value, &place) else { continue };
            let name = At { value: name.value.to_owned(), line: name.line };
            into.push(self.component(table, name, &place));
        }
    }

    fn component(&mut self, table: &DeTable<'_>, name: At<String>, place: &str) -> RawComponent {
        let known = ["source", "digest", "grants", "tools", "limits", "config"];
        let mut raw = RawComponent { grants_line: name.line, name, ..RawComponent::default() };
        let mut has_source = false;
        // `instance` is known, so that asking for it gets an answer instead of a guess.
        for (key, value) in self.entries(table, place, Some(&[known.as_slice(), &["instance"]].concat())) {
            let what = format!("`{}` in {place}", key.value);
            match key.value {
                "source" => {
                    has_source = true;
                    raw.source = self.string(value, &what, 4096);
                }
                "digest" => raw.digest = self.string(value, &what, 128),
                "grants" => {
                    raw.grants_line = key.line;
                    raw.grants_table = value.get_ref().is_table();
                    self.grants(value, &what, &mut raw.grants);
                }
                "tools" => raw.tools = self.strings(value, &what),
                "limits" => self.limits(value, &what, &mut raw.limits),
                "config" => raw.config = self.json_table(value, &what),
                _ => match value.get_ref().as_str() {
                    Some("call") => {}
                    _ => {
                        let message =
                            format!("{what} must be \"call\": this pyro makes a fresh instance for every call");
                        self.report("unsupported", key.line, message, Some("leave `instance` out".to_owned()));
                    }
                },
            }
        }
        if !has_source {
            let hint = "write `source = \"builtin:NAME\"` or a path as `source = \"./plugin.wasm\"`".to_owned();
            self.report("missing_key", raw.name.line, format!("{place} has no `source`"), Some(hint));
        }
        raw
    }

    fn grants(&mut self, node: &Node<'_>, what: &str, into: &mut GrantSet) {
        match node.get_ref() {
            DeValue::Array(items) if items.len() <= MAX_LIST => {
                for item in items.iter() {
                    if let Some(name) = self.string(item, &format!("each entry of {what}"), 64) {
                        self.grant(&name, None, what, into);
                    }
                }
            }
            DeValue::Table(table) => {
                for (name, scope) in self.entries(table, what, None) {
                    let name = At { value: name.value.to_owned(), line: name.line };
                    self.grant(&name, Some(scope), what, into);
                }
            }
            _ => self.wrong(node, what, "a list of grants, or a table of grants and their scopes"),
        }
    }

    fn unknown_grant(&mut self, name: &At<String>, what: &str) {
        let hint = match suggestion(&name.value, GrantSet::NAMES) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("this pyro offers {}", name_list(GrantSet::NAMES)),
        };
        self.report("unknown_grant", name.line, format!("unknown grant `{}` in {what}", name.value), Some(hint));
    }

    /// One grant, with its scope when it is written as a table.
    fn grant(&mut self, name: &At<String>, scope: Option<&Node<'_>>, what: &str, into: &mut GrantSet) {
        let place = format!("grant `{}`", name.value);
        match name.value.as_str() {
            "machines" => into.machines = Some(self.machines_scope(scope, &place)),
            "exec" => into.exec = Some(scope.map(|scope| self.exec_scope(scope, &place)).unwrap_or_default()),
            "workspaces" => into.workspaces = Some(self.machines_scope(scope, &place)),
            "files" => into.files = Some(self.files_scope(scope, &place)),
            "host-files" => into.host_files = Some(self.whole_scope(scope, &place)),
            "terminals" => into.terminals = Some(self.whole_scope(scope, &place)),
            "services" => into.services = Some(self.whole_scope(scope, &place)),
            "ports" => into.ports = Some(self.whole_scope(scope, &place)),
            "environments" => into.environments = Some(self.whole_scope(scope, &place)),
            "machine-lifecycle" => into.machine_lifecycle = Some(self.machines_scope(scope, &place)),
            "secrets" => into.secrets = Some(SecretsScope { names: self.scope_list(scope, &place, "names") }),
            _ => self.unknown_grant(name, what),
        }
    }

    fn machines_scope(&mut self, node: Option<&Node<'_>>, place: &str) -> MachinesScope {
        MachinesScope { environments: self.scope_list(node, place, "environments") }
    }

    /// Directories of a guest. A call names its own without `.` and `..`, so one with them would never be reached.
    fn files_scope(&mut self, node: Option<&Node<'_>>, place: &str) -> FilesScope {
        let Some(table) = node.and_then(|node| self.table(node, place)) else { return FilesScope::default() };
        let mut scope = FilesScope::default();
        for (_, value) in self.entries(table, place, Some(&["roots"])) {
            let what = format!("`roots` of {place}");
            let roots = self.strings(value, &what).unwrap_or_default();
            for root in &roots {
                let plain =
                    root.value.starts_with('/') && !root.value.split('/').any(|name| name == "." || name == "..");
                if !plain {
                    let hint = "write an absolute directory of the guest without `.` and `..`, such as \"/workspace\"";
                    let message = format!("`{}` in {what} is no directory that a call could be in", root.value);
                    self.report("invalid_value", root.line, message, Some(hint.to_owned()));
                }
            }
            scope.roots = Some(roots.into_iter().map(|root| root.value).collect());
        }
        scope
    }

    /// A scope that has no keys.
    fn whole_scope(&mut self, node: Option<&Node<'_>>, place: &str) -> WholeScope {
        if let Some(table) = node.and_then(|node| self.table(node, place)) {
            self.entries(table, place, Some(&[]));
        }
        WholeScope {}
    }

    /// The only key of a scope: a list.
    fn scope_list(&mut self, node: Option<&Node<'_>>, place: &str, key: &str) -> Option<Vec<String>> {
        let table = self.table(node?, place)?;
        let mut list = None;
        for (_, value) in self.entries(table, place, Some(&[key])) {
            list = Some(self.patterns(value, &format!("`{key}` of {place}")));
        }
        list
    }

    fn exec_scope(&mut self, node: &Node<'_>, place: &str) -> ExecScope {
        let mut scope = ExecScope::default();
        let Some(table) = self.table(node, place) else { return scope };
        for (key, value) in self.entries(table, place, Some(&["argv", "env", "max_seconds"])) {
            let what = format!("`{}` of {place}", key.value);
            match key.value {
                "argv" => scope.argv = Some(self.patterns(value, &what)),
                "env" => scope.env = Some(self.patterns(value, &what)),
                _ => scope.max_seconds = self.integer(value, &what, 1..86_401),
            }
        }
        scope
    }

    /// A list of patterns. A list that cannot be read allows nothing, so a mistake never widens a grant.
    fn patterns(&mut self, node: &Node<'_>, what: &str) -> Vec<String> {
        let strings = self.strings(node, what).unwrap_or_default();
        for pattern in &strings {
            if pattern.value.trim().is_empty() {
                let hint = "write a pattern such as \"rg *\"".to_owned();
                self.report("invalid_value", pattern.line, format!("empty pattern in {what}"), Some(hint));
            }
        }
        strings.into_iter().map(|pattern| pattern.value).collect()
    }

    fn limits(&mut self, node: &Node<'_>, what: &str, into: &mut Limits) {
        let Some(table) = self.table(node, what) else { return };
        let known = ["memory_mib", "cpu_ms", "call_seconds", "output_bytes", "handles"];
        for (key, value) in self.entries(table, what, Some(&known)) {
            let (field, range) = match key.value {
                "memory_mib" => (&mut into.memory_mib, 1..4097),
                "cpu_ms" => (&mut into.cpu_ms, 20..600_001),
                "call_seconds" => (&mut into.call_seconds, 1..86_401),
                "output_bytes" => (&mut into.output_bytes, 1024..(64 << 20) + 1),
                _ => (&mut into.handles, 16..100_001),
            };
            if let Some(limit) = self.integer(value, &format!("`{}` in {what}", key.value), range) {
                *field = limit;
            }
        }
    }

    fn tools(&mut self, node: &Node<'_>, into: &mut Vec<Narrowing>) {
        let Some(table) = self.table(node, "`tool`") else { return };
        for (name, value) in self.entries(table, "`tool`", None) {
            let place = format!("[tool.{}]", name.value);
            let Some(table) = self.table(value, &place) else { continue };
            let mut raw =
                Narrowing { name: At { value: name.value.to_owned(), line: name.line }, ..Narrowing::default() };
            for (key, value) in self.entries(table, &place, Some(&["fixed", "default", "hide"])) {
                let what = format!("`{}` in {place}", key.value);
                match key.value {
                    "hide" => raw.hide = self.strings(value, &what).unwrap_or_default(),
                    which => {
                        let Some(table) = self.table(value, &what) else { continue };
                        let mut values = Vec::new();
                        for (argument, value) in self.entries(table, &what, None) {
                            if let Some(json) = self.json(value, &what, 0) {
                                values.push((At { value: argument.value.to_owned(), line: argument.line }, json));
                            }
                        }
                        match which {
                            "fixed" => raw.fixed = values,
                            _ => raw.default = values,
                        }
                    }
                }
            }
            into.push(raw);
        }
    }

    fn host(&mut self, node: &Node<'_>, into: &mut RawProfile) {
        let Some(table) = self.table(node, "[host]") else { return };
        let known = ["read", "write", "max_machines", "max_calls", "engine"];
        for (key, value) in self.entries(table, "[host]", Some(&known)) {
            let what = format!("`{}` in [host]", key.value);
            match key.value {
                "read" => into.host_paths[0] = self.strings(value, &what).unwrap_or_default(),
                "write" => into.host_paths[1] = self.strings(value, &what).unwrap_or_default(),
                "max_machines" => into.host.max_machines = self.integer(value, &what, 1..1025),
                "max_calls" => into.host.max_calls = self.integer(value, &what, 1..1025),
                _ => {
                    let Some(engine) = self.string(value, &what, 64) else { continue };
                    match engine.value.as_str() {
                        "auto" => into.host.engine = pyro_engine::EngineChoice::Auto,
                        "kvm" => into.host.engine = pyro_engine::EngineChoice::Kvm,
                        "qemu" => into.host.engine = pyro_engine::EngineChoice::Qemu,
                        other => {
                            let hint = "use `auto`, `kvm` or `qemu`".to_owned();
                            self.report("invalid_value", engine.line, format!("unknown engine `{other}`"), Some(hint));
                        }
                    }
                }
            }
        }
    }
}

fn article(kind: &str) -> String {
    match kind {
        "array" | "integer" => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

fn is_name(name: &str, underscore: bool) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (underscore && b == b'_'))
}
