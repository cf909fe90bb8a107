//! A workspace through the interfaces, in a real microVM. Run on request, with `PYRO_TEST_HOME` naming a home with
//! `debian:12` installed, `PYRO_AGENT` the guest agent's file and `PYRO_VMM` a program that is the VM process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pyro_components::{CallObserver, CallOptions, HostServices, OutputStream, Toolbox};
use pyro_engine::workspaces::{RecordKind, Workspaces};
use pyro_engine::{AgentSource, Engine, EngineOptions, Paths};
use serde_json::{Value, json};

use crate::support::{Home, arguments, call, guest, text};

const SECRET: &str = "a value of some length";

fn from_env(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set")))
}

#[derive(Default)]
struct Heard(Mutex<Vec<u8>>);

impl CallObserver for Heard {
    fn output(&self, _: OutputStream, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots a machine"]
async fn a_workspace_lives_and_its_secret_stays_hidden() {
    let home = Home::new();
    home.put("guest.wasm", &guest("works")).put("badly.wasm", &guest("intercepts_badly"));
    let extra = "grants = { exec = {}, workspaces = {}, files = { roots = [\"/workspace\"] }, terminals = {}, \
                 services = {}, ports = {} }\n\
                 [components.badly]\nsource = \"./badly.wasm\"\ngrants = [\"secrets\"]\ntools = []";
    let profile = home.profile("works", extra).unwrap_or_else(|error| panic!("{error}"));

    let mut paths = Paths::below(home.dir.path());
    paths.cache = Paths::below(Path::new(&from_env("PYRO_TEST_HOME"))).cache;
    let agent = AgentSource(std::fs::read(from_env("PYRO_AGENT")).unwrap().leak());
    let mut options = EngineOptions::with_agent(agent).unwrap();
    options.vmm_program = from_env("PYRO_VMM");
    options.boot_limit = Duration::from_secs(120);
    let engine = Engine::open(paths, options).unwrap();
    let services =
        HostServices { engine: engine.clone(), aot_cache_dir: home.path("aot"), aot_state_dir: home.path("aot-state") };
    let toolbox = Toolbox::load(&profile, services).unwrap_or_else(|error| panic!("{error}"));

    let heard = Arc::new(Heard::default());
    let options = CallOptions { observer: Arc::clone(&heard) as Arc<dyn CallObserver>, ..CallOptions::default() };
    let worked = toolbox.call("echo", arguments(json!({ "mode": "attach" })), options).await;
    let records = Workspaces::open(engine).unwrap();
    let made = records.list(RecordKind::Workspace).await.unwrap();
    let worked = match worked {
        Ok(worked) => worked,
        Err(error) => {
            for info in made {
                records.delete(&info.record.id, RecordKind::Workspace).await.unwrap();
            }
            panic!("{error}");
        }
    };
    let id = made[0].record.id.clone();
    let bind = json!({ "mode": "bind", "workspace": id });
    let finished = call(&toolbox, "keep_promise", bind).await;
    // Whatever happened, nothing is left running.
    let _ = records.delete(&id, RecordKind::Workspace).await;

    let seen = text(&worked);
    assert_eq!(
        seen,
        "exec [REDACTED] [REDACTED]A==\nhistory echo [REDACTED]\nfile content of 7\nescape denied\nscope denied\ncopied 1\n\
         terminal true false\nservice [REDACTED]\nrunning 1\nports true\nsnapshots 2"
    );
    let live = String::from_utf8_lossy(&heard.0.lock().unwrap()).into_owned();
    assert!(live.contains("[REDACTED]") && !live.contains(SECRET), "{live}");
    let finished = finished.unwrap_or_else(|error| panic!("{error}")).structured.unwrap();
    assert_eq!(finished["found"], Value::from("bound [REDACTED] invalid_state true"));
}
