//! `pyro:vm/files`: files of a running guest.

use pyro_engine::{EngineError, ErrorCode, FileChange, FileEntry, FileKind};
use wasmtime::component::Resource;

use super::super::bindings::pyro::vm::{files, types};
use super::super::blob::Blob;
use super::super::state::CallState;
use super::{ARCHIVE_LIMIT, GUEST_LIMIT, MachineEntry, Reached, denied, error, missing, refusal, sendable};

/// Most bytes that one read returns; the size of the whole file comes with them.
const MAX_READ: u64 = 16 << 20;

/// Most entries that one listing returns.
const MAX_ENTRIES: u32 = 100_000;

/// Most changes of one set.
const MAX_CHANGES: usize = 10_000;

impl CallState {
    /// Checks a request and reaches its machine. The other result is the directory that confines the request: `root`, or
    /// one below it when no more is granted.
    async fn reach_files(
        &mut self,
        machine: &Resource<MachineEntry>,
        root: &str,
        paths: &[&str],
    ) -> wasmtime::Result<Result<(Reached, String), types::Error>> {
        let confined = match &self.grants.files {
            Some(scope) => scope.confine(root, paths).map(str::to_owned).map_err(denied),
            None => Err(missing("files")),
        };
        let root = match confined {
            Ok(root) => root,
            Err(refused) => return Ok(Err(refused)),
        };
        for path in std::iter::once(&root.as_str()).chain(paths) {
            if let Err(problem) = sendable("path", path) {
                return Ok(Err(problem));
            }
        }
        Ok(self.reach(machine).await?.map(|reached| (reached, root)))
    }
}

impl files::Host for CallState {
    async fn stat(
        &mut self,
        machine: Resource<MachineEntry>,
        root: String,
        path: String,
    ) -> wasmtime::Result<Result<files::Entry, types::Error>> {
        let (reached, root) = match self.reach_files(&machine, &root, &[&path]).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        Ok(reached.ask(GUEST_LIMIT, reached.machine.file_stat(&root, &path)).await.map(entry))
    }

    async fn list(
        &mut self,
        machine: Resource<MachineEntry>,
        root: String,
        path: String,
        recursive: bool,
        limit: u32,
    ) -> wasmtime::Result<Result<(Vec<files::Entry>, bool), types::Error>> {
        let (reached, root) = match self.reach_files(&machine, &root, &[&path]).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let listing = reached.machine.file_list(&root, &path, recursive, limit.min(MAX_ENTRIES));
        let listed = reached.ask(GUEST_LIMIT, listing).await;
        Ok(listed.map(|(entries, more)| (entries.into_iter().map(entry).collect(), more)))
    }

    async fn read(
        &mut self,
        machine: Resource<MachineEntry>,
        root: String,
        path: String,
        offset: u64,
        length: u64,
    ) -> wasmtime::Result<Result<(Resource<Blob>, u64), types::Error>> {
        let (reached, root) = match self.reach_files(&machine, &root, &[&path]).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let pause = self.clock.pause();
        let reading = reached.machine.file_read(&root, &path, offset, length.min(MAX_READ));
        let read = reached.ask(GUEST_LIMIT, reading).await;
        drop(pause);
        match read {
            Ok((bytes, size)) => {
                self.seen.read(reached.machine.id(), &path, offset, &bytes, size);
                Ok(Ok((self.push_bytes(bytes)?, size)))
            }
            Err(problem) => Ok(Err(problem)),
        }
    }

    async fn apply(
        &mut self,
        machine: Resource<MachineEntry>,
        root: String,
        changes: Vec<files::Change>,
    ) -> wasmtime::Result<Result<(), types::Error>> {
        let mut set = Vec::with_capacity(changes.len());
        let mut problem = None;
        for change in changes {
            // The handles came with the call, so they are let go of whatever happens.
            let content = match change.content {
                Some(blob) => {
                    let blob = self.table.delete(blob)?;
                    self.released(&blob);
                    Some(blob.content())
                }
                None => None,
            };
            problem = problem.or(sendable("path", &change.path).err());
            let mode = change.mode.map(|mode| mode & 0o7777);
            set.push(FileChange { path: change.path, content, mode, replaces: None });
        }
        if set.len() > MAX_CHANGES {
            let message = format!("{} changes at once, more than {MAX_CHANGES}", set.len());
            problem = Some(refusal(ErrorCode::LimitExceeded, message, "apply them in several sets"));
        }
        if let Some(problem) = problem {
            return Ok(Err(problem));
        }
        let paths: Vec<&str> = set.iter().map(|change| change.path.as_str()).collect();
        let (reached, root) = match self.reach_files(&machine, &root, &paths).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let machine = reached.machine.id();
        for change in &mut set {
            change.replaces = self.seen.expected(machine, &change.path);
        }
        let paths: Vec<String> = set.iter().map(|change| change.path.clone()).collect();
        let pause = self.clock.pause();
        let applied = reached.ask(ARCHIVE_LIMIT, reached.machine.file_apply(&root, set)).await;
        drop(pause);
        if applied.as_ref().map_or_else(|problem| problem.code == "outcome_unknown", |()| true) {
            paths.iter().for_each(|path| self.seen.forget(machine, path));
        }
        Ok(applied)
    }

    async fn archive(
        &mut self,
        machine: Resource<MachineEntry>,
        root: String,
        path: String,
    ) -> wasmtime::Result<Result<Resource<Blob>, types::Error>> {
        let (reached, root) = match self.reach_files(&machine, &root, &[&path]).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let files = tempfile::tempfile().and_then(|file| Ok((file.try_clone()?, file)));
        let (writing, file) = match files {
            Ok(files) => files,
            Err(failed) => return Ok(Err(error(&EngineError::io("make a temporary file", &failed)))),
        };
        let pause = self.clock.pause();
        let archived = reached.ask(ARCHIVE_LIMIT, reached.machine.archive(&root, &path, writing)).await;
        drop(pause);
        match archived {
            Ok(_) => Ok(self.push_file(file)?.map_err(|failed| error(&failed))),
            Err(problem) => Ok(Err(problem)),
        }
    }

    async fn extract(
        &mut self,
        machine: Resource<MachineEntry>,
        root: String,
        path: String,
        tar: Resource<Blob>,
    ) -> wasmtime::Result<Result<(u64, u64), types::Error>> {
        let tar = self.table.get(&tar)?.clone();
        let (reached, root) = match self.reach_files(&machine, &root, &[&path]).await? {
            Ok(reached) => reached,
            Err(problem) => return Ok(Err(problem)),
        };
        let _pause = self.clock.pause();
        let file = match blocking("copy an archive", move || tar.into_file()).await {
            Ok(file) => file,
            Err(failed) => return Ok(Err(error(&failed))),
        };
        Ok(reached.ask(ARCHIVE_LIMIT, reached.machine.extract(&root, &path, file)).await)
    }
}

/// Runs file work off the threads that serve calls.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|failed| EngineError::io(doing, &failed)),
        Err(panic) => Err(EngineError::new(ErrorCode::Internal, format!("{doing}: {panic}"))),
    }
}

fn entry(entry: FileEntry) -> files::Entry {
    files::Entry {
        path: entry.path,
        kind: match entry.kind {
            FileKind::File => files::Kind::File,
            FileKind::Directory => files::Kind::Directory,
            FileKind::Symlink => files::Kind::Symlink,
            FileKind::Other => files::Kind::Other,
        },
        size: entry.size,
        mode: entry.mode,
        mtime_ms: entry.mtime_ms,
        link_target: entry.link_target,
    }
}
