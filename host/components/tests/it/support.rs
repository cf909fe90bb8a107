//! Guests, profiles and toolboxes for the tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use pyro_components::{
    Builtins, CallOptions, HostServices, LoadError, ResolvedProfile, ToolError, ToolOutcome, Toolbox,
};
use pyro_engine::{AgentSource, Engine, EngineOptions, Paths};
use serde_json::{Map, Value};

/// Returns the folder of the components of `tests/guests`: `$PYRO_TEST_GUESTS`, or built now.
pub fn guests() -> &'static Path {
    static GUESTS: OnceLock<PathBuf> = OnceLock::new();
    GUESTS.get_or_init(|| match std::env::var_os("PYRO_TEST_GUESTS") {
        Some(directory) => PathBuf::from(directory),
        None => build(),
    })
}

/// Builds the guests. Cargo's own lock makes a second test program wait.
fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guests");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--profile", "guest", "--target", "wasm32-wasip2"])
        .args(["--package", "pyro-test-guests", "--examples", "--target-dir"])
        .arg(&target)
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the guests cannot be built: rustup target add wasm32-wasip2");
    target.join("wasm32-wasip2/guest/examples")
}

/// Returns one guest's bytes.
pub fn guest(name: &str) -> Vec<u8> {
    let path = guests().join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns a component with a `pyro:manifest` section that lists these tools.
pub fn stating(guest_name: &str, tools: Value) -> Vec<u8> {
    fn size(mut value: usize, into: &mut Vec<u8>) {
        while value > 0x7f {
            into.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        into.push(value as u8);
    }
    let name = "pyro:manifest";
    let mut section = vec![name.len() as u8];
    section.extend(name.bytes());
    section.extend(serde_json::json!({ "manifest": 1, "tools": tools }).to_string().bytes());
    let mut bytes = guest(guest_name);
    bytes.push(0);
    size(section.len(), &mut bytes);
    bytes.extend(section);
    bytes
}

/// A directory with profiles, components and the state of one pyro.
pub struct Home {
    pub dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Home {
        Home { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a component there.
    pub fn put(&self, name: &str, bytes: &[u8]) -> &Home {
        std::fs::write(self.path(name), bytes).unwrap();
        self
    }

    /// Reads a profile of one component, `guest.wasm`, with `extra` after its `source`.
    pub fn profile(&self, guest_name: &str, extra: &str) -> Result<ResolvedProfile, LoadError> {
        if !self.path("guest.wasm").exists() {
            self.put("guest.wasm", &guest(guest_name));
        }
        let text = format!("schema = 1\nname = \"test\"\n[components.guest]\nsource = \"./guest.wasm\"\n{extra}\n");
        ResolvedProfile::from_toml(&text, "test.toml", self.dir.path(), &Builtins::default())
    }

    pub fn services(&self) -> HostServices {
        let paths = Paths::below(self.dir.path());
        let options = EngineOptions::with_agent(AgentSource(b"not an agent")).unwrap();
        HostServices {
            engine: Engine::open(paths, options).unwrap(),
            aot_cache_dir: self.path("cache/components"),
            aot_state_dir: self.path("state/components"),
        }
    }

    /// Services whose cache is where [`Home::services`] has it, and whose engine is in another directory.
    pub fn services_elsewhere(&self) -> HostServices {
        let paths = Paths::below(&self.path("elsewhere"));
        let options = EngineOptions::with_agent(AgentSource(b"not an agent")).unwrap();
        HostServices {
            engine: Engine::open(paths, options).unwrap(),
            aot_cache_dir: self.path("cache/components"),
            aot_state_dir: self.path("state/components"),
        }
    }

    pub fn toolbox(&self, guest_name: &str, extra: &str) -> Result<Toolbox, LoadError> {
        Toolbox::load(&self.profile(guest_name, extra)?, self.services())
    }
}

pub fn arguments(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(arguments) => arguments,
        other => panic!("{other} is not an object"),
    }
}

pub async fn call(toolbox: &Toolbox, tool: &str, value: Value) -> Result<ToolOutcome, ToolError> {
    toolbox.call(tool, arguments(value), CallOptions::default()).await
}

/// The text of a result's only block.
pub fn text(outcome: &ToolOutcome) -> &str {
    match outcome.content.as_slice() {
        [only] => match &only.body {
            pyro_components::ContentBody::Text(text) => text,
            pyro_components::ContentBody::Bytes(_) => panic!("bytes"),
        },
        other => panic!("{} blocks", other.len()),
    }
}
