//! Environments and machines over time.
//!
//! [`Engine`] is the door: it makes sure that an environment is installed, starts a `pyro vmm` process that boots a
//! microVM from it, and hands out a [`Machine`] to run commands in. Files, shells and services are built above it, over
//! the guest agent.
//!
//! Deliberately absent: tools, profiles and every surface. This crate prints nothing and reads no configuration file.

mod choice;
mod control;
mod cpu;
mod engine;
pub mod environments;
mod error;
mod exec;
mod guest;
mod machine;
mod members;
mod paths;
mod prepare;
mod progress;
mod qcow2;
mod run_dir;
pub mod secrets;
mod spawn;
mod spec;
pub mod vmm_process;
pub mod workspaces;

pub use choice::{EnginePick, kvm_verdict, pick_engine};
pub use engine::{AgentSource, BootFiles, Engine, EngineOptions, running_machines};
pub use error::{EngineError, ErrorCode};
pub use exec::{ExecCommand, ExecEvent, ExecExit, ExecInput, ExecRequest, ExecSession};
pub use guest::{
    Content, ContentSum, FileChange, FileEntry, FileKind, LogStream, Readiness, ServiceConfig, ServiceInfo,
    ServiceLogs, ServiceOutput, TerminalInfo, TerminalOutput, TerminalRequest, TerminalState,
};
pub use machine::Machine;
pub use members::{BoundedTar, MAX_MEMBER_HEADERS, for_each_member};
pub use paths::Paths;
pub use progress::{NoProgress, Progress};
pub use spec::{
    BootTimings, EngineChoice, ExecutionMode, Lifetime, MEM_MIB, MachineInfo, MachineReport, MachineSpec, MachineState,
    PublishedPort, Statistics, TTL_SECONDS, VCPU_COUNT, VmmStats,
};
