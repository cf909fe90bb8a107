//! Builds what the `pyro` binary embeds: the guest agent (static musl) and the
//! built-in components (wasm). They are built by a nested cargo in a target
//! directory of their own, because the outer cargo holds the lock of this one.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const AGENT_TARGET: &str = "x86_64-unknown-linux-musl";
const PLUGIN_TARGET: &str = "wasm32-wasip2";

/// Returns the text of a component's manifest.
type Manifest = fn() -> String;

/// Folders of `plugins/` that are built in, in the order they are listed. Each is also linked into this script, which
/// asks it for the text of its `pyro:manifest` section.
const BUILTIN_PLUGINS: &[(&str, Manifest)] = &[
    ("exec", pyro_plugin_exec::pyro_manifest),
    ("workspace", pyro_plugin_workspace::pyro_manifest),
    ("workspace-exec", pyro_plugin_workspace_exec::pyro_manifest),
    ("files", pyro_plugin_files::pyro_manifest),
    ("vm", pyro_plugin_vm::pyro_manifest),
    ("shells", pyro_plugin_shells::pyro_manifest),
    ("services", pyro_plugin_services::pyro_manifest),
    ("snapshots", pyro_plugin_snapshots::pyro_manifest),
    ("disk", pyro_plugin_disk::pyro_manifest),
    ("summary", pyro_plugin_summary::pyro_manifest),
    ("secrets", pyro_plugin_secrets::pyro_manifest),
    ("network", pyro_plugin_network::pyro_manifest),
    ("background", pyro_plugin_background::pyro_manifest),
];

fn main() {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest_dir.ancestors().nth(2).expect("host/pyro is two levels below the root").to_owned();
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));

    for input in [
        "Cargo.lock",
        "Cargo.toml",
        "host/agent",
        "host/agent-protocol/Cargo.toml",
        "host/agent-protocol/src",
        "plugins",
        "profiles",
        "wit",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }

    let target_dir = embed_target_dir(&out_dir);
    let agent = build(&root, &target_dir, AGENT_TARGET, &["pyro-agent".to_owned()], &[]).join("pyro-agent");
    let manifests: Vec<(&str, String)> = BUILTIN_PLUGINS.iter().map(|(name, manifest)| (*name, manifest())).collect();
    let packages: Vec<String> = manifests.iter().map(|(name, _)| format!("pyro-plugin-{name}")).collect();
    // A component that is given its manifest answers with it and leaves out the code that makes it.
    let stated: Vec<(String, &str)> =
        manifests.iter().map(|(name, text)| (format!("PYRO_MANIFEST_pyro-plugin-{name}"), text.as_str())).collect();
    let wasm_dir = build(&root, &target_dir, PLUGIN_TARGET, &packages, &stated);

    let mut code = String::new();
    writeln!(
        code,
        "/// The guest agent: a static ELF for the guest.\npub static AGENT: &[u8] = include_bytes!({agent:?});"
    )
    .expect("a String takes all");
    code.push_str(
        "/// The built-in components: name and bytes.\npub static BUILTIN_COMPONENTS: &[(&str, &[u8])] = &[\n",
    );
    for (name, manifest) in &manifests {
        let built = wasm_dir.join(format!("pyro_plugin_{}.wasm", name.replace('-', "_")));
        let component = fs::read(&built).unwrap_or_else(|error| panic!("cannot read {}: {error}", built.display()));
        let wasm = out_dir.join(format!("{name}.wasm"));
        fs::write(&wasm, pyro_plugin_sdk::append_manifest(&component, manifest)).expect("OUT_DIR is writable");
        writeln!(code, "    ({name:?}, include_bytes!({wasm:?})),").expect("a String takes all");
    }
    code.push_str(
        "];\n/// The built-in profiles: name and TOML text.\npub static BUILTIN_PROFILES: &[(&str, &str)] = &[\n",
    );
    for path in profiles(&root.join("profiles")) {
        let name = path.file_stem().expect("a .toml file has a stem").to_string_lossy().into_owned();
        writeln!(code, "    ({name:?}, include_str!({path:?})),").expect("a String takes all");
    }
    code.push_str("];\n");
    fs::write(out_dir.join("artifacts.rs"), code).expect("OUT_DIR is writable");
}

/// A directory beside the profile directories of the outer build, so that it is
/// reused from build to build: `<target>/embed`.
fn embed_target_dir(out_dir: &Path) -> PathBuf {
    // <target>/<profile>/build/<package>-<hash>/out
    out_dir.ancestors().nth(4).expect("OUT_DIR is four levels below the target directory").join("embed")
}

fn profiles(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .expect("profiles/ exists")
        .map(|entry| entry.expect("profiles/ is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    paths.sort();
    paths
}

/// Builds `packages` for `target` with the `guest` profile and `variables` in the environment; returns the folder with
/// the products.
fn build(root: &Path, target_dir: &Path, target: &str, packages: &[String], variables: &[(String, &str)]) -> PathBuf {
    let mut command = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    command
        .current_dir(root)
        .args(["build", "--quiet", "--profile", "guest", "--target", target, "--target-dir"])
        .arg(target_dir)
        .envs(variables.iter().map(|(name, value)| (name, value)));
    for package in packages {
        command.args(["--package", package]);
    }
    // The outer build's settings are for the host; a linter that wraps rustc must
    // not turn the nested build into a check.
    for (key, _) in env::vars_os() {
        let key = key.to_string_lossy();
        let outer = key.starts_with("CARGO_FEATURE_")
            || key.starts_with("CARGO_CFG_")
            || key.starts_with("CARGO_PKG_")
            || matches!(
                &*key,
                "CARGO_ENCODED_RUSTFLAGS"
                    | "RUSTFLAGS"
                    | "RUSTC_WRAPPER"
                    | "RUSTC_WORKSPACE_WRAPPER"
                    | "CLIPPY_ARGS"
                    | "TARGET"
                    | "HOST"
                    | "OUT_DIR"
                    | "PROFILE"
                    | "OPT_LEVEL"
                    | "DEBUG"
                    | "CARGO_TARGET_DIR"
            );
        if outer {
            command.env_remove(&*key);
        }
    }
    let status = command.status().unwrap_or_else(|error| panic!("cannot run cargo for {target}: {error}"));
    assert!(
        status.success(),
        "building {} for {target} failed; is the target installed? `rustup target add {target}` (`cargo xtask setup` does it)",
        packages.join(", ")
    );
    target_dir.join(target).join("guest")
}
