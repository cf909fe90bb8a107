//! One cgroup (v2) per command: counts what the whole process tree uses, and ends all of it at once.
//!
//! Cgroups are made ahead of need and removed when the agent is idle, because making one costs more than starting a
//! process. One at a time has its files open for the next command: every descriptor that is open when a command starts is
//! copied for it and closed again by its `execve`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, Dir, FileType, Mode, OFlags, accessat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

/// How many cgroups are kept ready.
const READY: usize = 8;
/// Above this many cgroups that wait for their removal, one that cannot be removed is given up for good, to keep the list
/// bounded; its directory stays until the machine ends.
const RETIRED_MAX: usize = 512;

/// The cgroup below which commands get theirs.
#[derive(Debug)]
pub struct CgroupRoot {
    dir: OwnedFd,
    next: u64,
    spare: Option<ExecCgroup>,
    /// Names.
    ready: Vec<String>,
    /// Names.
    retired: Vec<String>,
}

/// The cgroup of one command.
#[derive(Debug)]
pub struct ExecCgroup {
    name: String,
    dir: OwnedFd,
    events: OwnedFd,
    /// What is counted, absent when the kernel does not.
    cpu: Option<OwnedFd>,
    memory_peak: Option<OwnedFd>,
    memory_events: Option<OwnedFd>,
}

/// What a process tree used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, in microseconds.
    pub cpu_us: Option<u64>,
    /// The most memory held at once, in bytes. Linux counts it since 5.19.
    pub peak_memory_bytes: Option<u64>,
    /// True when the kernel killed a process for want of memory.
    pub oom_killed: bool,
}

impl CgroupRoot {
    /// Makes `path` a parent of command cgroups: creates it when missing and gives its children the memory controller
    /// when the hierarchy has it. Others would only make every cgroup dearer.
    ///
    /// # Errors
    /// When `path` cannot be made, or the kernel has no `cgroup.kill` (Linux before 5.14).
    pub fn open(path: &Path) -> io::Result<Self> {
        match mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let dir = openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        enable_controllers(dir.as_fd(), &["memory"])?;
        let mut root = Self { dir, next: 0, spare: None, ready: Vec::new(), retired: Vec::new() };
        let first = root.take()?;
        // Before Linux 5.14 there is none, and then no command could be ended as a whole.
        accessat(&first.dir, "cgroup.kill", Access::WRITE_OK, AtFlags::empty())?;
        root.spare = Some(first);
        Ok(root)
    }

    /// Returns an empty cgroup, made ahead if there is one.
    ///
    /// # Errors
    /// When a new one is needed and cannot be made.
    pub fn take(&mut self) -> io::Result<ExecCgroup> {
        if let Some(cgroup) = self.spare.take() {
            return Ok(cgroup);
        }
        let name = match self.ready.pop() {
            Some(name) => name,
            None => self.create()?,
        };
        match ExecCgroup::open(self.dir.as_fd(), &name) {
            Ok(cgroup) => Ok(cgroup),
            Err(reason) => {
                self.retired.push(name);
                Err(reason)
            }
        }
    }

    /// Opens a cgroup for the next command if none is. A failure is for [`take`](Self::take) to tell.
    pub fn spare(&mut self) {
        if self.spare.is_none() {
            self.spare = self.take().ok();
        }
    }

    /// Takes back a cgroup whose command has ended, for removal when there is time.
    pub fn retire(&mut self, cgroup: ExecCgroup) {
        self.retired.push(cgroup.name);
    }

    /// True when [`tidy`](Self::tidy) has something to do.
    pub fn wants_tidying(&self) -> bool {
        !self.retired.is_empty() || self.ready.len() < READY
    }

    /// Does one piece of the work that was put off: removes a cgroup or makes one ready. Returns false when the kernel
    /// refused, because a cgroup still holds processes or no more can be made; the caller then waits before the next.
    pub fn tidy(&mut self) -> bool {
        if self.ready.len() < READY {
            return match self.create() {
                Ok(name) => {
                    self.ready.push(name);
                    true
                }
                // Room is made by removing.
                Err(_) => {
                    self.remove_one();
                    false
                }
            };
        }
        self.remove_one()
    }

    fn remove_one(&mut self) -> bool {
        if self.retired.is_empty() {
            return true;
        }
        let name = self.retired.remove(0);
        if remove_tree(self.dir.as_fd(), &name, 0).is_ok() {
            return true;
        }
        // A process that was being killed, or one that a command moved in from elsewhere.
        let _ = kill(self.dir.as_fd(), &format!("{name}/cgroup.kill"));
        if self.retired.len() < RETIRED_MAX {
            self.retired.push(name);
        }
        false
    }

    /// Kills every process of every command.
    pub fn kill_all(&self) {
        let _ = kill(self.dir.as_fd(), "cgroup.kill");
    }

    /// Makes a cgroup and returns its name.
    fn create(&mut self) -> io::Result<String> {
        // Another agent's leftovers may hold the name when a cgroup outlives it, as in tests.
        loop {
            let name = format!("exec-{}", self.next);
            self.next += 1;
            match mkdirat(&self.dir, name.as_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) => return Ok(name),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for CgroupRoot {
    fn drop(&mut self) {
        let spare = self.spare.take().map(|cgroup| cgroup.name);
        for name in spare.into_iter().chain(self.ready.drain(..)).chain(self.retired.drain(..)) {
            let _ = unlinkat(&self.dir, name.as_str(), AtFlags::REMOVEDIR);
        }
    }
}

impl ExecCgroup {
    fn open(parent: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(parent, name, flags, Mode::empty())?;
        let counter = |file| open_file(dir.as_fd(), file).ok();
        Ok(Self {
            events: open_file(dir.as_fd(), "cgroup.events")?,
            cpu: counter("cpu.stat"),
            memory_peak: counter("memory.peak"),
            memory_events: counter("memory.events"),
            name: name.to_owned(),
            dir,
        })
    }

    /// Returns the directory, for starting a process in it.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns the file that becomes ready (`EPOLLPRI`) when [`populated`](Self::populated) changes.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Returns true while a process lives in the cgroup or below it.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn populated(&self) -> io::Result<bool> {
        Ok(read_key(self.events.as_fd(), "populated")?.unwrap_or(0) != 0)
    }

    /// Returns the processes in the cgroup, without those in cgroups that they made below it.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let file = openat(&self.dir, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let text = io::read_to_string(std::fs::File::from(file))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Kills every process in the cgroup and below it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        kill(self.dir(), "cgroup.kill")
    }

    /// Returns what the processes used so far. What the kernel does not count is absent.
    pub fn usage(&self) -> Usage {
        let key = |file: &Option<OwnedFd>, key| read_key(file.as_ref()?.as_fd(), key).ok().flatten();
        Usage {
            cpu_us: key(&self.cpu, "usage_usec"),
            peak_memory_bytes: self.memory_peak.as_ref().and_then(|file| {
                let mut buffer = [0; 32];
                read_start(file.as_fd(), &mut buffer).ok()?.trim().parse().ok()
            }),
            oom_killed: key(&self.memory_events, "oom_kill").unwrap_or(0) > 0,
        }
    }
}

fn open_file(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn kill(dir: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let file = openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"1")?;
    Ok(())
}

/// Lets the children of `dir` use those of `wanted` that `dir` has itself.
///
/// # Errors
/// When the kernel refuses.
pub fn enable_controllers(dir: BorrowedFd<'_>, wanted: &[&str]) -> io::Result<()> {
    let file = openat(dir, "cgroup.controllers", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0; 512];
    let available = read_start(file.as_fd(), &mut buffer)?;
    let line: Vec<String> = available
        .split_ascii_whitespace()
        .filter(|name| wanted.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    if !line.is_empty() {
        let control = openat(dir, "cgroup.subtree_control", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&control, line.join(" ").as_bytes())?;
    }
    Ok(())
}

/// Returns the number after `key ` at the start of a line.
fn read_key(file: BorrowedFd<'_>, key: &str) -> io::Result<Option<u64>> {
    let mut buffer = [0; 1024];
    let text = read_start(file, &mut buffer)?;
    Ok(text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok()))
}

fn read_start<'a>(file: BorrowedFd<'_>, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let count = rustix::io::pread(file, &mut *buffer, 0)?;
    Ok(std::str::from_utf8(buffer.get(..count).unwrap_or_default()).unwrap_or_default())
}

/// Removes cgroup `name` of `parent` with the cgroups that its processes made in it.
fn remove_tree(parent: BorrowedFd<'_>, name: &str, depth: u32) -> Result<(), Errno> {
    /// Deeper trees are left alone rather than followed with an open directory per level.
    const DEPTH_MAX: u32 = 32;
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::BUSY) if depth < DEPTH_MAX => {}
        Err(Errno::NOENT) => return Ok(()),
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&dir)?.filter_map(Result::ok) {
        let name = entry.file_name().to_bytes();
        if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
            let Ok(name) = std::str::from_utf8(name) else {
                continue;
            };
            remove_tree(dir.as_fd(), name, depth + 1)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}
