//! `workspace_export`.

use std::io::{Read, Seek};

use pyro_plugin_guest::{Guest, path};
use pyro_plugin_sdk::vm::files::Kind;
use pyro_plugin_sdk::vm::host_files;
use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Tool, ToolError};
use pyro_tree::{EntryKind, Tree, TreeError, TreeLimits};
use serde::{Deserialize, Serialize};

/// Bytes handed to the host at a time.
const PIECE: u64 = 1 << 20;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// File or directory in /workspace
    pub path: String,
    /// New path on the host
    pub output_path: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub workspace_path: String,
    pub output_path: String,
    /// file, directory or symlink
    pub artifact_type: String,
    pub entry_count: u64,
    pub bytes_written: u64,
    pub execution_mode: String,
}

/// Copies a file or directory of a workspace to the host.
pub struct WorkspaceExport;

impl Tool for WorkspaceExport {
    const NAME: &'static str = "workspace_export";
    const DESCRIPTION: &'static str = "Copies a file or directory to a new host path.";
    const HINTS: Hints = Hints { open_world: Some(true), ..Hints::CONTAINED };
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "export"],
            positionals: vec!["workspace_id", "path"],
            flags: vec![Flag::plain("output", "output_path").value_name("PATH")],
            human: Some(Human::summary(
                "{artifact_type} {workspace_path}: {entry_count} entries, {bytes_written} bytes copied to {output_path}",
            )),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, call: &Call) -> Result<Output, ToolError> {
        let guest = Guest::open(&arguments.workspace_id, Self::NAME)?;
        let path = path(&arguments.path)?;
        let kind = guest.stat(&path)?.kind;
        let artifact_type = match kind {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Symlink => "symlink",
            Kind::Other => {
                return Err(ToolError::new("invalid_argument", format!("{path} is a special file")));
            }
        };
        let output = host_files::open_output(&arguments.output_path).map_err(|error| match error.code.as_str() {
            "already_exists" => {
                ToolError::new("already_exists", format!("output_path already exists: {}", arguments.output_path))
            }
            _ => error.into(),
        })?;
        let tree = Tree::index(guest.archive(&path)?, &TreeLimits::default()).map_err(failed)?;
        let copied = copy(&tree, kind == Kind::Directory, &HostOutput { output: &output, call })?;
        output.commit()?;
        Ok(Output {
            workspace_id: arguments.workspace_id,
            workspace_path: path,
            output_path: arguments.output_path,
            artifact_type: artifact_type.to_owned(),
            entry_count: copied.entries,
            bytes_written: copied.bytes,
            execution_mode: guest.execution_mode(),
        })
    }
}

/// Where a tree goes; the host's output, or a test's.
trait Sink {
    fn directory(&self, path: &str, mode: u32) -> Result<(), ToolError>;
    fn file(&self, path: &str, mode: u32) -> Result<(), ToolError>;
    fn write(&self, data: &[u8], done: u64) -> Result<(), ToolError>;
    fn symlink(&self, path: &str, target: &str) -> Result<(), ToolError>;
}

struct HostOutput<'a> {
    output: &'a host_files::Output,
    call: &'a Call,
}

impl Sink for HostOutput<'_> {
    fn directory(&self, path: &str, mode: u32) -> Result<(), ToolError> {
        Ok(self.output.directory(path, mode)?)
    }

    fn file(&self, path: &str, mode: u32) -> Result<(), ToolError> {
        Ok(self.output.file(path, mode)?)
    }

    fn write(&self, data: &[u8], done: u64) -> Result<(), ToolError> {
        self.output.write(data)?;
        self.call.progress(done as f64, None, "exporting");
        Ok(())
    }

    fn symlink(&self, path: &str, target: &str) -> Result<(), ToolError> {
        Ok(self.output.symlink(path, target)?)
    }
}

#[derive(Debug, Default, PartialEq)]
struct Copied {
    entries: u64,
    bytes: u64,
}

/// Copies a tree, or its only member as the root.
fn copy<R: Read + Seek>(tree: &Tree<R>, is_directory: bool, sink: &dyn Sink) -> Result<Copied, ToolError> {
    let mut copied = Copied::default();
    let entries = tree.entries();
    if is_directory {
        sink.directory("", 0o755)?;
    } else if entries.len() != 1 {
        return Err(ToolError::new(
            "invalid_archive",
            format!("the guest sent {} members for one file", entries.len()),
        ));
    }
    for (path, entry) in entries {
        let name = if is_directory { path.as_str() } else { "" };
        // Set-user-ID and the like are the guest's, not the host's.
        let mode = entry.mode & 0o777;
        match &entry.kind {
            EntryKind::Directory => sink.directory(name, mode | 0o700)?,
            EntryKind::Symlink { target } => {
                refuse_escape(path, target)?;
                sink.symlink(name, target)?;
            }
            EntryKind::File { size, .. } => {
                sink.file(name, mode)?;
                let mut at = 0;
                while at < *size {
                    let piece = tree.read(path, at, PIECE).map_err(failed)?;
                    at += piece.len() as u64;
                    copied.bytes += piece.len() as u64;
                    sink.write(&piece, copied.bytes)?;
                }
            }
        }
        copied.entries += 1;
    }
    Ok(copied)
}

/// A symlink that could lead a reader on the host out of the export.
fn refuse_escape(path: &str, target: &str) -> Result<(), ToolError> {
    if target.starts_with('/') || target.split('/').any(|part| part == "..") {
        return Err(ToolError::new("invalid_archive", format!("symlink {path} points to {target}, out of the export"))
            .with_hint("export a part of the tree without it"));
    }
    Ok(())
}

fn failed(error: TreeError) -> ToolError {
    let refused = ToolError::new("invalid_archive", error.to_string());
    match error.hint() {
        Some(hint) => refused.with_hint(hint),
        None => refused,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Cursor;

    use super::*;

    #[derive(Default)]
    struct Log(RefCell<Vec<String>>);

    impl Sink for Log {
        fn directory(&self, path: &str, mode: u32) -> Result<(), ToolError> {
            self.0.borrow_mut().push(format!("dir {path} {mode:o}"));
            Ok(())
        }

        fn file(&self, path: &str, mode: u32) -> Result<(), ToolError> {
            self.0.borrow_mut().push(format!("file {path} {mode:o}"));
            Ok(())
        }

        fn write(&self, data: &[u8], done: u64) -> Result<(), ToolError> {
            self.0.borrow_mut().push(format!("write {} {done}", data.len()));
            Ok(())
        }

        fn symlink(&self, path: &str, target: &str) -> Result<(), ToolError> {
            self.0.borrow_mut().push(format!("link {path} {target}"));
            Ok(())
        }
    }

    fn tree(files: &[(&str, usize)], links: &[(&str, &str)]) -> Tree<Cursor<Vec<u8>>> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, size) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(*size as u64);
            header.set_mode(0o4755);
            builder.append_data(&mut header, path, &vec![b'x'; *size][..]).expect("append");
        }
        for (path, target) in links {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, path, target).expect("append");
        }
        Tree::index(Cursor::new(builder.into_inner().expect("tar")), &TreeLimits::default()).expect("tree")
    }

    #[test]
    fn a_directory_keeps_its_names_and_loses_special_bits() {
        let log = Log::default();
        let copied = copy(&tree(&[("d/a", (1 << 20) + 5)], &[("l", "d/a")]), true, &log).expect("a copy");
        assert_eq!(copied, Copied { entries: 2, bytes: (1 << 20) + 5 });
        assert_eq!(
            log.0.into_inner(),
            ["dir  755", "file d/a 755", "write 1048576 1048576", "write 5 1048581", "link l d/a"]
        );
    }

    #[test]
    fn a_file_becomes_the_root() {
        let log = Log::default();
        copy(&tree(&[("a", 2)], &[]), false, &log).expect("a copy");
        assert_eq!(log.0.into_inner(), ["file  755", "write 2 2"]);
        assert!(copy(&tree(&[("a", 2), ("b", 2)], &[]), false, &Log::default()).is_err());
    }

    #[test]
    fn links_out_of_the_export_are_refused() {
        for target in ["/etc/passwd", "../x", "a/../../x"] {
            assert!(copy(&tree(&[], &[("l", target)]), true, &Log::default()).is_err(), "{target}");
        }
    }
}
