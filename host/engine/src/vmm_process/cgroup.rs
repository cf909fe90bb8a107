//! A machine's own control group (version 2), where this process may make one.
//!
//! It is a child of the group the process was started in, never a sibling: whatever limits the caller also limits the
//! machine. Whether there is anything to set in it depends on what that group hands down; what is always there is the
//! accounting of CPU time. Without permission the machine runs all the same, in the caller's group.
//!
//! No limit of memory is set: a machine's disk may be in a file system that lives in memory and would count, so the limit
//! would end machines for writing to their disks.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where groups are.
const ROOT: &str = "/sys/fs/cgroup";
/// Begins the name of every group made here.
const PREFIX: &str = "pyro-";
/// File of the run directory that names the group, for whoever finds the directory of a killed process.
const RECORD: &str = "cgroup";
/// Threads and processes of one machine: its vCPUs, a few for each device, a child; and then some.
const MAX_TASKS: &str = "128";

/// The group this process is in. Left and removed when dropped.
#[derive(Debug)]
pub(crate) struct OwnCgroup {
    path: PathBuf,
    parent: PathBuf,
}

impl OwnCgroup {
    /// Makes the group of machine `id` and moves this process into it, before it has threads or children. The current
    /// directory is the run directory.
    pub(crate) fn enter(id: &str) -> io::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let parent = parent_of(&own).ok_or_else(|| io::Error::other("this process is in no group of version 2"))?;
        let path = parent.join(format!("{PREFIX}{id}"));
        // First, so that no moment is without it.
        fs::write(RECORD, path.as_os_str().as_encoded_bytes())?;
        fs::create_dir(&path)?;
        let group = Self { path, parent };
        // A machine is of no use in part. The parent need not hand these down.
        for (file, value) in [("pids.max", MAX_TASKS), ("memory.oom.group", "1")] {
            let file = group.path.join(file);
            if file.exists() {
                fs::write(file, value)?;
            }
        }
        // "0" is the process that writes.
        fs::write(group.path.join("cgroup.procs"), "0")?;
        Ok(group)
    }

    /// Returns where the group is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let left = fs::write(self.parent.join("cgroup.procs"), "0").and_then(|()| fs::remove_dir(&self.path));
        if let Err(error) = left {
            tracing::warn!(group = %self.path.display(), %error, "the machine's control group cannot be removed");
        }
    }
}

/// Removes the group of a machine whose process was killed, if its run directory names one. A group in which anything
/// runs stays: the kernel removes only empty ones.
pub(crate) fn remove_leftover(run_dir: &Path, id: &str) {
    let Ok(text) = fs::read_to_string(run_dir.join(RECORD)) else { return };
    let path = Path::new(&text);
    // The directory is the user's own, but what it says is still only believed if it can be true.
    let ours = path.starts_with(ROOT)
        && path.file_name().is_some_and(|name| *name == *format!("{PREFIX}{id}"))
        && !path.components().any(|part| part == std::path::Component::ParentDir);
    if ours {
        let _ = fs::remove_dir(path);
    }
}

/// Returns the directory of the group that `/proc/self/cgroup` names.
fn parent_of(own: &str) -> Option<PathBuf> {
    let name = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let outside = name.split('/').any(|part| part == "..");
    let path = Path::new(ROOT).join(name);
    (!outside && path.join("cgroup.procs").exists()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_other_kinds_and_places_are_not_taken() {
        assert_eq!(parent_of("12:pids:/user\n"), None);
        assert_eq!(parent_of("0::/../elsewhere\n"), None);
        assert_eq!(parent_of("0::/no/such/group\n"), None);
        assert_eq!(parent_of(""), None);
    }

    #[test]
    fn only_the_group_of_that_machine_is_removed() {
        let run = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let victim = other.path().join("pyro-0123456789ab");
        fs::create_dir(&victim).unwrap();
        for said in [victim.display().to_string(), format!("{ROOT}/../..{}", victim.display())] {
            fs::write(run.path().join(RECORD), said).unwrap();
            remove_leftover(run.path(), "0123456789ab");
            assert!(victim.exists());
        }
        remove_leftover(other.path(), "0123456789ab");
    }
}
