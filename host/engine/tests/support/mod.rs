//! An engine over installed environments, with state and run directories of its own; see `machine.rs` for how tests are
//! run.
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pyro_engine::{
    AgentSource, BootFiles, Engine, EngineError, EngineOptions, ExecCommand, ExecEvent, ExecRequest, Machine,
    MachineSpec, NoProgress, Paths,
    environments::Environments,
    workspaces::{NewRecord, RecordKind, Seed, Workspaces},
};
use tempfile::TempDir;

pub fn workspaces_in(home: &Path) -> Workspaces {
    Workspaces::open(engine_in(home, |_| {})).unwrap()
}

/// Options with the guest agent's file, and the example as the VM process.
fn options() -> EngineOptions {
    let agent = std::env::var_os("PYRO_AGENT").expect("PYRO_AGENT names the guest agent's file");
    let mut options = EngineOptions::with_agent(AgentSource(fs::read(agent).unwrap().leak())).unwrap();
    options.vmm_program = example("machine");
    options.max_machines = None;
    // Hosts that run tests are busy.
    options.boot_limit = Duration::from_secs(120);
    options
}

/// Directories of the home that has the environments.
fn shared() -> Paths {
    let home = std::env::var_os("PYRO_TEST_HOME").expect("PYRO_TEST_HOME names a home with debian:12 installed");
    Paths::below(Path::new(&home))
}

fn engine_in(home: &Path, change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let (own, mut options) = (Paths::below(home), options());
    change(&mut options);
    Engine::open(Paths { state: own.state, run: own.run, ..shared() }, options).unwrap()
}

/// Returns an engine that has nothing of its own but the files of `debian:12`, which it boots as they are.
pub fn engine_with_files(home: &Path, change: impl FnOnce(&mut EngineOptions)) -> (Engine, BootFiles) {
    let mut options = options();
    let installed = Environments::new(&shared(), options.agent).ensure("debian:12", &NoProgress).unwrap();
    change(&mut options);
    (Engine::open(Paths::below(home), options).unwrap(), BootFiles::from(&installed))
}

/// State and machines of one test.
pub struct Home {
    pub dir: TempDir,
}

pub fn example(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.is_file(), "build it first: cargo build -p pyro-engine --examples");
    program
}

impl Home {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn engine(&self, change: impl FnOnce(&mut EngineOptions)) -> Engine {
        engine_in(self.dir.path(), change)
    }

    /// As another process would see the records.
    pub fn workspaces(&self) -> Workspaces {
        workspaces_in(self.dir.path())
    }

    /// Returns the files of the state directory, but for the database's own.
    pub fn record_files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let dir = self.dir.path().join("state/records");
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(fs::read_dir(&path).unwrap().map(|file| file.unwrap().path()));
            }
            files.push(path);
        }
        let mut names: Vec<String> =
            files.iter().map(|path| path.strip_prefix(&dir).unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// Returns the directories of machines, alive or not.
    pub fn machine_dirs(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("run")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name != ".lock").collect()
    }

    /// Returns the processes of this home's machines.
    pub fn processes(&self) -> Vec<u32> {
        let run = self.dir.path().join("run");
        processes(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&run)))
    }

    /// Waits until no process of a machine is left.
    pub async fn assert_no_processes(&self) {
        let begun = Instant::now();
        while !self.processes().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(15), "left behind: {:?}", self.processes());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until no machine is left.
    pub async fn assert_no_machines(&self) {
        let begun = Instant::now();
        while !(self.machine_dirs().is_empty() && self.processes().is_empty()) {
            let left = (self.machine_dirs(), self.processes());
            assert!(begun.elapsed() < Duration::from_secs(15), "left behind: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A test that failed leaves its machines; they are its own, and so it ends them.
        for pid in self.processes() {
            kill(pid);
        }
    }
}

/// Kills a process, which may have ended already.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

fn processes(wanted: impl Fn(u32) -> bool) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| wanted(*pid))
        .collect()
}

pub fn new(kind: RecordKind) -> NewRecord {
    NewRecord {
        kind,
        spec: MachineSpec { mem_mib: 256, ttl: Duration::from_secs(600), ..MachineSpec::default() },
        name: None,
        labels: Vec::new(),
        seed: None,
        secrets: Vec::new(),
    }
}

/// Makes a seed of files with names and contents.
pub fn seed(files: &[(&str, &str)]) -> (fs::File, Seed) {
    let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
    let mut bytes = 0;
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        bytes += text.len() as u64;
    }
    let mode = "directory".to_owned();
    (tar.into_inner().unwrap(), Seed { mode, source: None, entry_count: files.len() as u64, bytes })
}

/// Runs a command line and returns what it printed; fails when it fails.
pub async fn run(machine: &Machine, line: &str) -> Result<String, EngineError> {
    let mut session = machine
        .exec(ExecRequest {
            command: ExecCommand::Shell(line.to_owned()),
            cwd: None,
            env: Vec::new(),
            timeout: Duration::from_secs(60),
            stdin: false,
        })
        .await?;
    let mut stdout = Vec::new();
    loop {
        match session.next().await? {
            ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ExecEvent::Exited(exit) => {
                let stdout = String::from_utf8(stdout).unwrap();
                assert_eq!(exit.exit_code, Some(0), "`{line}` failed: {stdout}");
                return Ok(stdout);
            }
            _ => {}
        }
    }
}
