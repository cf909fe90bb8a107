//! From an [`ExecRequest`] to what the kernel takes: argument list, variables, working directory, candidate paths.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyro_agent_protocol::{ErrorReply, ExecRequest, Program, codes};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use crate::spawn::SpawnError;

/// The variables every command starts with.
const BASE: &[(&str, &str)] = &[
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", "/bin/sh"),
    ("LANG", "C.UTF-8"),
    // No terminal is attached; programs that look here must not send control sequences.
    ("TERM", "dumb"),
];

/// A request, ready to be started.
#[derive(Debug)]
pub struct Prepared {
    /// The paths to try in turn.
    pub candidates: Vec<CString>,
    /// The arguments, the program's name first.
    pub argv: Vec<CString>,
    /// The variables, as `NAME=value`.
    pub envp: Vec<CString>,
    /// The working directory.
    pub cwd: OwnedFd,
    /// The program's name, for messages.
    pub program: String,
}

/// Checks `request` and opens its working directory.
///
/// # Errors
/// What to answer: nothing was started.
pub fn prepare(request: &ExecRequest, default_cwd: &str) -> Result<Prepared, ErrorReply> {
    let words: Vec<&str> = match &request.program {
        Program::Argv(argv) => argv.iter().map(String::as_str).collect(),
        Program::Shell(line) => vec!["/bin/sh", "-lc", line],
    };
    let program = match words.first() {
        Some(program) if !program.is_empty() => (*program).to_owned(),
        _ => return Err(error(codes::INVALID_ARGUMENT, "the command is empty")),
    };
    let argv = words
        .iter()
        .enumerate()
        .map(|(index, word)| c_string(word, &format!("argument {index}")))
        .collect::<Result<Vec<_>, _>>()?;

    let cwd = request.cwd.as_deref().unwrap_or(default_cwd);
    let mut variables: Vec<(&str, &str)> = BASE.to_vec();
    set(&mut variables, "PWD", cwd);
    for (name, value) in &request.env {
        if name.is_empty() || name.contains('=') {
            return Err(error(codes::INVALID_ARGUMENT, format!("invalid variable name {name:?}")));
        }
        set(&mut variables, name, value);
    }
    let path = variables.iter().find(|(name, _)| *name == "PATH").map_or("", |(_, value)| *value);
    let envp = variables
        .iter()
        .map(|(name, value)| c_string(&format!("{name}={value}"), &format!("variable {name:?}")))
        .collect::<Result<Vec<_>, _>>()?;
    let cwd = open_cwd(cwd, request.cwd.is_none())?;
    let candidates = candidates(&program, path, cwd.as_fd())?;
    Ok(Prepared { candidates, argv, envp, cwd, program })
}

/// Returns what to answer when `program` could not be started.
pub fn spawn_error(program: &str, why: &SpawnError) -> ErrorReply {
    match why {
        SpawnError::Exec(errno) => exec_error(program, *errno),
        SpawnError::System(what, reason) => {
            error(codes::INTERNAL, format!("cannot start `{program}`: {what}: {reason}"))
        }
    }
}

/// Returns what to answer when no candidate could be executed.
fn exec_error(program: &str, errno: Errno) -> ErrorReply {
    let (code, reason) = match errno {
        Errno::NOENT if program.contains('/') => {
            (codes::NOT_FOUND, "no such file, or the interpreter it names is missing")
        }
        Errno::NOENT => (codes::NOT_FOUND, "not found in PATH"),
        Errno::NOTDIR => (codes::NOT_FOUND, "a part of its path is not a directory"),
        Errno::ACCESS | Errno::PERM => {
            (codes::PERMISSION_DENIED, "not executable, or a part of its path is not accessible")
        }
        Errno::NOEXEC => {
            (codes::NOT_EXECUTABLE, "not a program the kernel knows; a script needs a first line such as #!/bin/sh")
        }
        Errno::TOOBIG => (codes::INVALID_ARGUMENT, "arguments and variables are too long"),
        Errno::NAMETOOLONG => (codes::INVALID_ARGUMENT, "its name is too long"),
        Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE => {
            (codes::INTERNAL, "the guest has no memory or processes left")
        }
        _ => (codes::NOT_EXECUTABLE, "the kernel refused it"),
    };
    error(code, format!("cannot execute `{program}`: {reason} (errno {})", errno.raw_os_error()))
}

/// Returns an error reply.
pub fn error(code: &str, message: impl Into<String>) -> ErrorReply {
    ErrorReply { code: code.to_owned(), message: message.into() }
}

fn set<'a>(variables: &mut Vec<(&'a str, &'a str)>, name: &'a str, value: &'a str) {
    match variables.iter_mut().find(|(known, _)| *known == name) {
        Some(found) => found.1 = value,
        None => variables.push((name, value)),
    }
}

/// The paths that `execvp` would try, without those that hold no file: a look costs a small part of a failing `execve`.
fn candidates(program: &str, path: &str, cwd: BorrowedFd<'_>) -> Result<Vec<CString>, ErrorReply> {
    if program.contains('/') {
        return Ok(vec![c_string(program, "argument 0")?]);
    }
    let mut found = Vec::new();
    for dir in path.split(':') {
        let candidate = match dir {
            "" => program.to_owned(),
            dir => format!("{dir}/{program}"),
        };
        let candidate = c_string(&candidate, "PATH")?;
        let is_file = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        // Any failure but "there is none" is left for `execve` to report.
        match statat(cwd, candidate.as_c_str(), AtFlags::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Ok(stat) if !is_file(stat) => {}
            Ok(_) | Err(_) => found.push(candidate),
        }
    }
    if found.is_empty() {
        return Err(exec_error(program, Errno::NOENT));
    }
    Ok(found)
}

fn open_cwd(path: &str, is_default: bool) -> Result<OwnedFd, ErrorReply> {
    if path.contains('\0') {
        return Err(error(codes::INVALID_ARGUMENT, "the working directory contains a NUL byte"));
    }
    if !path.starts_with('/') {
        return Err(error(codes::INVALID_CWD, format!("working directory {path:?} is not absolute")));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, path, flags, Mode::empty()) {
        Ok(dir) => Ok(dir),
        // A command may have removed the default directory; commands that did not name it still run.
        Err(_) if is_default && path != "/" => open_cwd("/", true),
        Err(errno) => {
            let reason = match errno {
                Errno::NOENT => "does not exist".to_owned(),
                Errno::NOTDIR => "is not a directory".to_owned(),
                other => format!("cannot be opened (errno {})", other.raw_os_error()),
            };
            Err(error(codes::INVALID_CWD, format!("working directory {path:?} {reason}")))
        }
    }
}

fn c_string(text: &str, what: &str) -> Result<CString, ErrorReply> {
    CString::new(text).map_err(|_| error(codes::INVALID_ARGUMENT, format!("{what} contains a NUL byte")))
}
