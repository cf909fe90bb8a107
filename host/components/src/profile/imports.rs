//! Imports against grants: a component's import list is its permission request, and the profile's answer is checked
//! before anything of the component is compiled or run.

use super::grants::GrantSet;
use super::resolve::grants_toml;
use crate::component::ComponentScan;
use crate::diagnostic::name_list;

/// The version of every `pyro:` interface of this pyro.
const PYRO_VERSION: &str = "0.1.0";

/// What an interface needs.
enum Need {
    Nothing,
    Grant(&'static str),
}

/// The interfaces of pyro that a component may import.
const INTERFACES: [(&str, Need); 17] = [
    ("pyro:host/log", Need::Nothing),
    ("pyro:host/call", Need::Nothing),
    ("pyro:host/config", Need::Nothing),
    ("pyro:host/blobs", Need::Nothing),
    ("pyro:vm/types", Need::Nothing),
    ("pyro:vm/machines", Need::Grant("machines")),
    ("pyro:vm/exec", Need::Grant("exec")),
    ("pyro:vm/workspaces", Need::Grant("workspaces")),
    ("pyro:vm/files", Need::Grant("files")),
    ("pyro:vm/host-files", Need::Grant("host-files")),
    ("pyro:vm/terminals", Need::Grant("terminals")),
    ("pyro:vm/services", Need::Grant("services")),
    ("pyro:vm/ports", Need::Grant("ports")),
    ("pyro:vm/environments", Need::Grant("environments")),
    ("pyro:vm/machine-lifecycle", Need::Grant("machine-lifecycle")),
    ("pyro:secrets/store", Need::Grant("secrets")),
    ("pyro:secrets/bindings", Need::Grant("secrets")),
];

/// The parts of WASI that are there, over an empty context: no files, no environment, no arguments.
const WASI_PACKAGES: [&str; 5] = ["wasi:io", "wasi:cli", "wasi:clocks", "wasi:random", "wasi:filesystem"];

/// What a component cannot have: code, fact, next step.
pub(super) type Refusal = (&'static str, String, String);

/// Checks a component's imports. `place` is how a finding names it. An import that names types alone needs no grant:
/// there is nothing in it to call.
pub(super) fn check_imports(place: &str, scan: &ComponentScan, grants: &GrantSet, table_form: bool) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut missing: Vec<(&str, &str)> = Vec::new();
    for import in &scan.imports {
        let (name, version) = import.split_once('@').unwrap_or((import, ""));
        if let Some((_, need)) = INTERFACES.iter().find(|(known, _)| *known == name) {
            if version != PYRO_VERSION {
                let message =
                    format!("{place} was built for `{import}`; this pyro offers version {PYRO_VERSION} of it");
                let hint = "build it again against the interfaces of this pyro (wit/), or use a pyro of that version";
                refusals.push(("wrong_version", message, hint.to_owned()));
            } else if let Need::Grant(grant) = need
                && !grants.names().contains(grant)
                && !scan.type_only.contains(import)
            {
                missing.push((import, grant));
            }
            continue;
        }
        let package = name.split('/').next().unwrap_or_default();
        if WASI_PACKAGES.contains(&package) {
            if !version.starts_with("0.2.") {
                let message = format!("{place} was built for `{import}`; this pyro offers WASI 0.2");
                refusals.push(("wrong_version", message, "build it for the target `wasm32-wasip2`".to_owned()));
            }
            continue;
        }
        let hint = match package {
            "wasi:sockets" | "wasi:http" => {
                "components have no network of their own: reach it from inside a microVM. A guest language that links \
                 it unasked can leave it out (componentize-py: `--stub-wasi`; jco: `--disable http`)"
                    .to_owned()
            }
            _ => {
                let known = INTERFACES.iter().map(|(name, _)| *name).chain(WASI_PACKAGES);
                format!("this pyro offers {}", name_list(known))
            }
        };
        refusals.push(("unknown_import", format!("{place} imports `{import}`, which this pyro does not offer"), hint));
    }
    if !missing.is_empty() {
        let interfaces = name_list(missing.iter().map(|(import, _)| *import));
        let plural = if missing.len() == 1 { "a grant" } else { "grants" };
        let message = format!("{place} imports {interfaces} without {plural}");
        let wanted: Vec<&'static str> = GrantSet::NAMES
            .into_iter()
            .filter(|name| grants.names().contains(name) || missing.iter().any(|(_, grant)| grant == name))
            .collect();
        let hint = format!("to allow it, write under {place}:\n{}", grants_toml(grants, &wanted, table_form));
        refusals.push(("missing_grant", message, hint));
    }
    refusals
}

/// Returns what is wrong with a component's exports.
pub(super) fn check_exports(place: &str, exports: &[String]) -> Option<Refusal> {
    let wanted = format!("pyro:plugin/tools@{PYRO_VERSION}");
    if exports.contains(&wanted) {
        return None;
    }
    if let Some(other) = exports.iter().find(|export| export.starts_with("pyro:plugin/tools@")) {
        let message = format!("{place} was built for `{other}`; this pyro calls `{wanted}`");
        return Some((
            "wrong_version",
            message,
            "build it again against the interfaces of this pyro (wit/)".to_owned(),
        ));
    }
    let found = match exports {
        [] => "nothing".to_owned(),
        some => name_list(some.iter().take(6).map(String::as_str)),
    };
    let hint = "a plugin's world says `include pyro:plugin/plugin@0.1.0`; start from plugins/template".to_owned();
    Some(("wrong_world", format!("{place} does not export `{wanted}`; it exports {found}"), hint))
}
