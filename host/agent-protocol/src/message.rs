//! What the control frames say.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::files::{FileApplyRequest, FileListRequest, FilePath, FileReadRequest};
use crate::services::{
    ServiceAnnotateRequest, ServiceName, ServiceProbeRequest, ServiceReadRequest, ServiceStartRequest,
    ServiceStopRequest, ServiceWaitRequest,
};
use crate::terminals::{
    TerminalId, TerminalOpenRequest, TerminalReadRequest, TerminalResizeRequest, TerminalSignalRequest,
};

/// The error codes of [`ErrorReply::code`]. New ones may be added; treat an unknown one as [`INTERNAL`](codes::INTERNAL).
pub mod codes {
    /// The request itself is wrong: a NUL byte, an empty program, a frame that does not fit.
    pub const INVALID_ARGUMENT: &str = "invalid_argument";
    /// The working directory does not exist or is not a directory.
    pub const INVALID_CWD: &str = "invalid_cwd";
    /// The program, the interpreter its first line names, the file, the terminal or the service does not exist.
    pub const NOT_FOUND: &str = "not_found";
    /// The program may not be executed.
    pub const PERMISSION_DENIED: &str = "permission_denied";
    /// The program is a file the kernel cannot execute.
    pub const NOT_EXECUTABLE: &str = "not_executable";
    /// The agent does not know the operation.
    pub const UNSUPPORTED: &str = "unsupported";
    /// The agent does not speak the protocol number of `Open`.
    pub const UNSUPPORTED_PROTOCOL: &str = "unsupported_protocol";
    /// Too many operations at once.
    pub const LIMIT_EXCEEDED: &str = "limit_exceeded";
    /// Something of that name is there already.
    pub const ALREADY_EXISTS: &str = "already_exists";
    /// What it is about has ended, or has not ended yet.
    pub const INVALID_STATE: &str = "invalid_state";
    /// A file is not, or no more, what the change was made for.
    pub const CONFLICT: &str = "conflict";
    /// The path leaves its root.
    pub const DENIED: &str = "denied";
    /// The guest's file system is full.
    pub const DISK_FULL: &str = "disk_full";
    /// The guest's file system refused something else.
    pub const IO: &str = "io";
    /// The peer broke the framing or the order of frames.
    pub const PROTOCOL_VIOLATION: &str = "protocol_violation";
    /// The guest system refused something the agent needs, such as a pipe or a process.
    pub const INTERNAL: &str = "internal";
}

/// The first frame of every operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The protocol number the host speaks.
    pub protocol: u32,
    /// What to do.
    pub op: Op,
}

impl Open {
    /// Returns an `Open` with this crate's protocol number.
    pub fn new(op: Op) -> Self {
        Self { protocol: crate::PROTOCOL, op }
    }
}

/// Declares the operations: the enumeration, and the JSON of an [`Open`], which is the operation's name and its arguments
/// under a member of that name. Arguments marked `optional` may be left out.
macro_rules! operations {
    ($($(#[$doc:meta])* $variant:ident($request:ty) = $name:ident $($optional:ident)?;)*) => {
        /// An operation.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Op {
            $($(#[$doc])* $variant($request),)*
            /// An operation this side does not know, by name. Answered with [`codes::UNSUPPORTED`].
            Unsupported(String),
        }

        #[derive(Default, Serialize, Deserialize)]
        pub(crate) struct OpenWire {
            protocol: u32,
            op: String,
            $(#[serde(default, skip_serializing_if = "Option::is_none")] $name: Option<$request>,)*
        }

        impl From<&Open> for OpenWire {
            fn from(open: &Open) -> Self {
                let mut wire = Self { protocol: open.protocol, ..Self::default() };
                match &open.op {
                    $(Op::$variant(request) => {
                        wire.op = stringify!($name).to_owned();
                        wire.$name = Some(request.clone());
                    })*
                    Op::Unsupported(name) => wire.op.clone_from(name),
                }
                wire
            }
        }

        impl OpenWire {
            /// Returns the typed form, or what is missing.
            pub(crate) fn into_open(self) -> Result<Open, &'static str> {
                let protocol = self.protocol;
                $(if self.op == stringify!($name) {
                    let request = operations!(@take self.$name, $name $($optional)?);
                    return Ok(Open { protocol, op: Op::$variant(request) });
                })*
                Ok(Open { protocol, op: Op::Unsupported(self.op) })
            }
        }
    };
    (@take $member:expr, $name:ident optional) => { $member.unwrap_or_default() };
    (@take $member:expr, $name:ident) => {
        $member.ok_or(concat!("operation `", stringify!($name), "` without a member of that name"))?
    };
}

operations! {
    /// Asks for the guest's facts; may set its clock and feed its random generator.
    Hello(HelloRequest) = hello optional;
    /// Runs a command.
    Exec(ExecRequest) = exec;
    /// Ends the guest.
    Shutdown(ShutdownRequest) = shutdown optional;
    /// Describes one entry; a symlink at the end of the path is not followed.
    FileStat(FilePath) = file_stat;
    /// Describes what is in a directory, sorted by path, depth first.
    FileList(FileListRequest) = file_list;
    /// Reads a part of a regular file.
    FileRead(FileReadRequest) = file_read;
    /// Makes a set of changes, all or none.
    FileApply(FileApplyRequest) = file_apply;
    /// Packs what is at the path into a tar.
    FileArchive(FilePath) = file_archive;
    /// Unpacks a tar over the directory at the path, all or nothing.
    FileExtract(FilePath) = file_extract;
    /// Starts a shell on a new pseudo-terminal.
    TerminalOpen(TerminalOpenRequest) = terminal_open;
    /// Describes every terminal.
    TerminalList(NoArguments) = terminal_list optional;
    /// Returns a part of a terminal's output.
    TerminalRead(TerminalReadRequest) = terminal_read;
    /// Types the data frames that follow into a terminal.
    TerminalWrite(TerminalId) = terminal_write;
    /// Changes a terminal's size.
    TerminalResize(TerminalResizeRequest) = terminal_resize;
    /// Signals a terminal's foreground job.
    TerminalSignal(TerminalSignalRequest) = terminal_signal;
    /// Ends a terminal and forgets it.
    TerminalClose(TerminalId) = terminal_close;
    /// Starts a service.
    ServiceStart(ServiceStartRequest) = service_start;
    /// Describes a service.
    ServiceStatus(ServiceName) = service_status;
    /// Describes every service, sorted by name.
    ServiceList(NoArguments) = service_list optional;
    /// Returns what was kept of a service's output.
    ServiceLogs(ServiceName) = service_logs;
    /// Returns a part of what was kept of one output of a service, and the service.
    ServiceRead(ServiceReadRequest) = service_read;
    /// Ends a service.
    ServiceStop(ServiceStopRequest) = service_stop;
    /// Forgets a finished service.
    ServiceRemove(ServiceName) = service_remove;
    /// Adds to what is kept with a service.
    ServiceAnnotate(ServiceAnnotateRequest) = service_annotate;
    /// Waits for a service's end.
    ServiceWait(ServiceWaitRequest) = service_wait;
    /// Tries once whether something is ready.
    ServiceProbe(ServiceProbeRequest) = service_probe;
    /// Connects to a port of the guest's loopback; the connection then carries raw bytes.
    TcpConnect(TcpConnectRequest) = tcp_connect;
}

/// The arguments of an operation that takes none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NoArguments {}

/// The arguments of [`Op::Hello`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HelloRequest {
    /// The host's wall clock, in nanoseconds since 1970. The guest steps its clock when it differs by more than 1 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix_ns: Option<u64>,
    /// Bytes for the guest's random generator, credited as full entropy. At most 512 are used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
}

/// Random bytes that never show in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(pub Vec<u8>);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed([redacted; {} bytes])", self.0.len())
    }
}

/// The guest's facts: the answer to [`Op::Hello`], and what the agent sends to [`READY_PORT`](crate::READY_PORT).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HelloReply {
    /// The oldest protocol number the agent speaks.
    pub protocol_min: u32,
    /// The newest protocol number the agent speaks.
    pub protocol_max: u32,
    /// The agent's version.
    pub agent_version: String,
    /// The guest kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// Milliseconds from the start of the guest kernel's clock until the agent listened.
    pub boot_ms: u64,
    /// When each step of the boot was done, in order.
    pub boot_steps: Vec<BootStep>,
    /// The guest's memory as its kernel counts it, in bytes.
    pub mem_total_bytes: u64,
    /// The number of online virtual CPUs.
    pub cpus: u32,
    /// The guest's host name.
    pub hostname: String,
    /// True when each command has its own cgroup, false when only its process group is killed.
    pub cgroups: bool,
    /// True when this request's `unix_ns` stepped the clock.
    pub clock_stepped: bool,
    /// True when this request's `seed` was credited to the kernel's random generator.
    pub seeded: bool,
}

/// One step of the boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BootStep {
    /// The step's name, such as `root mounted`.
    pub name: String,
    /// Microseconds from the start of the guest kernel's clock until the step was done.
    pub done_us: u64,
}

/// The arguments of [`Op::Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// What to run.
    pub program: Program,
    /// The working directory. `None` is the agent's default, `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Variables set on top of the agent's base environment, in order; the last of one name wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Milliseconds after which the whole process tree is killed. 0 is no limit.
    #[serde(default)]
    pub timeout_ms: u64,
    /// True when the host sends `Stdin` frames and a `StdinEof`; false gives the command an empty stdin.
    #[serde(default)]
    pub stdin: bool,
    /// True when the host would like to send the next `Open` over this connection, once the command has ended.
    #[serde(default, skip_serializing_if = "is_false")]
    pub keep: bool,
}

impl ExecRequest {
    /// Returns a request with no time limit, no stdin, and the agent's default directory and environment.
    pub fn new(program: Program) -> Self {
        Self { program, cwd: None, env: Vec::new(), timeout_ms: 0, stdin: false, keep: false }
    }
}

/// What an exec runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A program and its arguments. A name without a slash is looked up in the command's `PATH`.
    Argv(Vec<String>),
    /// A command line for `/bin/sh -lc`.
    Shell(String),
}

/// The arguments of [`Op::Shutdown`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShutdownRequest {
    /// How the machine ends.
    pub mode: ShutdownMode,
}

/// How the machine ends after a shutdown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// ACPI power off. Needs a VMM that offers it.
    #[default]
    PowerOff,
    /// Restart. On a VMM told not to reboot, this ends the machine without ACPI.
    Reboot,
}

/// The command's main process runs: its program was found and executed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Started {
    /// The process id in the guest.
    pub pid: u32,
}

/// The end of an exec. Every byte the command wrote was sent before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exited {
    /// The exit code, when the main process exited by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal's name (`SIGKILL`), when a signal ended the main process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// True when `timeout_ms` passed and the process tree was killed for it.
    pub timed_out: bool,
    /// Milliseconds from the start of the main process to its end.
    pub duration_ms: u64,
    /// CPU time of the whole process tree, in microseconds. Absent without cgroups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<u64>,
    /// The most memory the process tree held at once, in bytes. Absent when the kernel does not count it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// True when the kernel killed a process of the tree for want of memory.
    pub oom_killed: bool,
    /// True when processes were still running after the main process ended, and were killed.
    pub leftovers_killed: bool,
    /// True when the agent awaits another `Open` over this connection. Otherwise it closes it.
    #[serde(skip_serializing_if = "is_false")]
    pub kept: bool,
}

/// An operation failed. It is the last frame of its connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorReply {
    /// One of [`codes`].
    pub code: String,
    /// What is wrong, with the value, for a person.
    pub message: String,
}

/// The guest is about to end. It is the last frame of its connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GoingDown {
    /// True when every process has ended, all data is written and the root file system is read-only.
    pub clean: bool,
}

/// The arguments of [`Op::TcpConnect`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpConnectRequest {
    /// The port on 127.0.0.1.
    pub port: u16,
}

/// An operation has succeeded; the last frame. Each operation sets what its description names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// The size of the whole file that was read; the bytes of content that were unpacked.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// The entries that were unpacked.
    #[serde(skip_serializing_if = "is_zero")]
    pub entries: u64,
    /// Where the output that was sent begins, counted from the first byte of the terminal or of the service's log.
    #[serde(skip_serializing_if = "is_zero")]
    pub start: u64,
    /// True when there are more entries than were sent, or older output was dropped.
    #[serde(skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// True when what was tried is ready.
    #[serde(skip_serializing_if = "is_false")]
    pub ready: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_false(value: &bool) -> bool {
    !*value
}
