//! Running a program that takes minutes: every line it says is handed over as it comes, the caller's cancellation ends
//! it with all its children, and so does the death of this process.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{self, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use super::error::EnvironmentError;

/// Lines kept for an error message.
const TAIL_LINES: usize = 16;
/// A line longer than this is cut; programs that draw progress bars make endless ones.
const MAX_LINE_BYTES: usize = 4096;
/// How often the caller is asked whether it gave up, and told that time passes.
const TICK: Duration = Duration::from_millis(100);
/// How long a program may take to undo what it did (mmdebstrap removes its temporary directory).
const TERM_GRACE: Duration = Duration::from_secs(10);

/// What happened to a program that ran to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) tail: Vec<String>,
}

impl Finished {
    /// Returns how it ended in words.
    pub(crate) fn how(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "an unknown end".to_owned(),
        }
    }
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("not found")]
    NotFound,
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl RunError {
    /// Makes the environment's error of it.
    pub(crate) fn at(self, program: &str, environment: &str) -> EnvironmentError {
        match self {
            Self::NotFound => {
                EnvironmentError::MissingProgram { program: program.to_owned(), environment: environment.to_owned() }
            }
            Self::Cancelled => EnvironmentError::Cancelled(format!("building `{environment}`")),
            Self::Io(source) => EnvironmentError::io("run", program, source),
        }
    }
}

/// Makes a command that runs in its own process group and gets SIGTERM when the calling thread ends, however it ends:
/// a killed pull leaves no program behind. Standard input is empty.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).process_group(0);
    // What a program prints is read here, and must not depend on the caller's language.
    command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only async-signal-safe calls run: prctl and getppid, no allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            // The parent may have died before the request was in place.
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    command
}

/// Runs a command to its end. Both its outputs go line by line to `on_line`; between lines, `on_tick` is called several
/// times a second. When `cancelled` says so, the whole process group is ended first and `Cancelled` returned.
pub(crate) fn run(
    mut command: Command,
    cancelled: &dyn Fn() -> bool,
    on_line: impl FnMut(&str),
    on_tick: impl FnMut(),
) -> Result<Finished, RunError> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    supervise(command, reader, cancelled, on_line, on_tick)
}

/// Like [`run`], for a command whose standard output is set and is not text: only its standard error is read.
pub(crate) fn run_with_stdout(
    mut command: Command,
    cancelled: &dyn Fn() -> bool,
    on_line: impl FnMut(&str),
    on_tick: impl FnMut(),
) -> Result<Finished, RunError> {
    let (reader, writer) = io::pipe()?;
    command.stderr(writer);
    supervise(command, reader, cancelled, on_line, on_tick)
}

fn supervise(
    mut command: Command,
    reader: io::PipeReader,
    cancelled: &dyn Fn() -> bool,
    mut on_line: impl FnMut(&str),
    mut on_tick: impl FnMut(),
) -> Result<Finished, RunError> {
    if cancelled() {
        return Err(RunError::Cancelled);
    }
    let mut group = match command.spawn() {
        Ok(child) => Group { child, running: true },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RunError::NotFound),
        Err(error) => return Err(error.into()),
    };
    // The command holds the pipe's write ends; as long as they are open the reader sees no end.
    drop(command);

    // Bounded, so that a program that prints faster than progress is reported waits for us.
    let (lines, received) = mpsc::sync_channel(1024);
    std::thread::Builder::new().name("pyro-build-output".to_owned()).spawn(move || read_lines(reader, &lines))?;

    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut last_tick = Instant::now();
    let mut open = true;
    loop {
        if open {
            match received.recv_timeout(TICK) {
                Ok(line) => {
                    on_line(&line);
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        } else {
            std::thread::sleep(Duration::from_millis(5));
        }
        if last_tick.elapsed() >= TICK || !open {
            last_tick = Instant::now();
            if cancelled() {
                group.end();
                return Err(RunError::Cancelled);
            }
            on_tick();
            // A grandchild may hold the pipe open after the program itself ended; what counts is the program.
            if let Some(status) = group.child.try_wait()? {
                group.running = false;
                while let Ok(line) = received.recv_timeout(Duration::from_millis(20)) {
                    on_line(&line);
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(line);
                }
                return Ok(Finished { status, tail: tail.into() });
            }
        }
    }
}

fn read_lines(mut reader: io::PipeReader, lines: &mpsc::SyncSender<String>) {
    let mut buffer = [0u8; 8192];
    let mut line = Vec::new();
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for &byte in buffer.iter().take(count) {
            if matches!(byte, b'\n' | b'\r') {
                if !line.is_empty() && lines.send(text_of(&line)).is_err() {
                    return;
                }
                line.clear();
            } else if line.len() < MAX_LINE_BYTES {
                line.push(byte);
            }
        }
    }
    if !line.is_empty() {
        let _ = lines.send(text_of(&line));
    }
}

fn text_of(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// A child that leads its process group; ended with the whole group when dropped while it runs.
struct Group {
    child: Child,
    running: bool,
}

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // The leader is not reaped yet, so its group cannot be another's.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    fn end(&mut self) {
        if !self.running {
            return;
        }
        self.signal(Signal::TERM);
        let deadline = Instant::now() + TERM_GRACE;
        while Instant::now() < deadline {
            match rustix::process::waitid(
                rustix::process::WaitId::Pid(match i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                    Some(pid) => pid,
                    None => break,
                }),
                rustix::process::WaitIdOptions::EXITED
                    | rustix::process::WaitIdOptions::NOHANG
                    | rustix::process::WaitIdOptions::NOWAIT,
            ) {
                // Gone but not reaped: the group's number is still ours, so what is left of it can be killed.
                Ok(Some(_)) | Err(_) => break,
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
        self.running = false;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn sh(script: &str) -> Command {
        let mut command = command("sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn every_line_of_both_outputs_arrives() {
        let mut lines = Vec::new();
        let done = run(
            sh("echo one; echo two >&2; printf 'a\\rb\\rthree'; exit 3"),
            &|| false,
            |line| lines.push(line.to_owned()),
            || {},
        )
        .unwrap();
        assert_eq!(lines, ["one", "two", "a", "b", "three"]);
        assert_eq!(done.how(), "exit code 3");
        assert_eq!(done.tail.last().unwrap(), "three");
    }

    #[test]
    fn endless_lines_are_cut_and_the_tail_is_bounded() {
        let mut longest = 0;
        let done = run(
            sh("head -c 100000 /dev/zero | tr '\\0' x; echo; seq 1 100"),
            &|| false,
            |line| longest = longest.max(line.len()),
            || {},
        )
        .unwrap();
        assert_eq!(longest, MAX_LINE_BYTES);
        assert_eq!(done.tail.len(), TAIL_LINES);
        assert_eq!(done.tail.last().unwrap(), "100");
    }

    #[test]
    fn a_missing_program_is_told_apart() {
        assert!(matches!(run(command("no-such-program-here"), &|| false, |_| {}, || {}), Err(RunError::NotFound)));
        let error = RunError::NotFound.at("mmdebstrap", "debian:12");
        assert_eq!(error.code().as_str(), "environment_build_failed");
        assert!(error.hint().unwrap().contains("apt-get install mmdebstrap"));
    }

    #[test]
    fn cancelling_ends_grandchildren_too() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let stop = AtomicBool::new(false);
        let result = run(
            // The grandchild ignores the polite signal.
            sh(&format!("sh -c 'trap \"\" TERM; echo $$ > {}; sleep 60; sleep 60' & wait", pid_file.display())),
            &|| stop.load(Ordering::Relaxed),
            |_| {},
            || {
                if std::fs::read_to_string(&pid_file).is_ok_and(|text| text.ends_with('\n')) {
                    stop.store(true, Ordering::Relaxed);
                }
            },
        );
        assert!(matches!(result, Err(RunError::Cancelled)));
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        // Killed, but not yet gone or a zombie that nobody reaped.
        let began = Instant::now();
        while !stat().is_empty() && !stat().contains(") Z ") {
            assert!(began.elapsed() < Duration::from_secs(20), "{}", stat());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_daemon_that_keeps_the_pipe_does_not_keep_us() {
        let start = Instant::now();
        let done = run(sh("sleep 5 & exit 0"), &|| false, |_| {}, || {}).unwrap();
        assert!(done.status.success());
        assert!(start.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn the_program_dies_with_the_thread_that_runs_it() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 60", pid_file.display());
        let pid = std::thread::spawn(move || {
            // Spawned and left alone: only the kernel's parent-death signal can end it.
            let mut child = sh(&script).spawn().unwrap();
            while std::fs::read_to_string(&pid_file).unwrap_or_default().is_empty() {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(child.try_wait().unwrap().is_none());
            child
        })
        .join()
        .map(|mut child| child.wait().unwrap().signal())
        .unwrap();
        assert_eq!(pid, Some(Signal::TERM.as_raw()));
    }
}
