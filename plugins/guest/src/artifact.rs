//! How a path of a tree looks in results.

use pyro_plugin_sdk::JsonSchema;
use pyro_plugin_sdk::vm::files::{Entry, Kind};
use serde::Serialize;

/// A file, directory or symlink.
#[expect(missing_docs, reason = "the names are the contract's, and a comment would become part of the schemas")]
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Artifact {
    pub path: String,
    /// file, directory or symlink
    pub artifact_type: String,
    /// 0 for a directory, the target's length for a symlink
    pub size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

impl Artifact {
    /// Says what the guest says of a path; none for devices, sockets and pipes, which have no place in a result.
    pub fn of(entry: Entry) -> Option<Artifact> {
        let (artifact_type, size_bytes) = match entry.kind {
            Kind::File => ("file", entry.size),
            Kind::Directory => ("directory", 0),
            Kind::Symlink => ("symlink", entry.link_target.as_ref().map_or(entry.size, |target| target.len() as u64)),
            Kind::Other => return None,
        };
        Some(Artifact {
            path: entry.path,
            artifact_type: artifact_type.to_owned(),
            size_bytes,
            link_target: entry.link_target,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, size: u64, link_target: Option<&str>) -> Entry {
        Entry {
            path: "/workspace/x".into(),
            kind,
            size,
            mode: 0o644,
            mtime_ms: 0,
            link_target: link_target.map(str::to_owned),
        }
    }

    #[test]
    fn sizes_follow_the_kind() {
        let size = |entry| Artifact::of(entry).map(|found| (found.artifact_type, found.size_bytes));
        assert_eq!(size(entry(Kind::File, 7, None)), Some(("file".into(), 7)));
        assert_eq!(size(entry(Kind::Directory, 4096, None)), Some(("directory".into(), 0)));
        assert_eq!(size(entry(Kind::Symlink, 0, Some("abc"))), Some(("symlink".into(), 3)));
        assert_eq!(size(entry(Kind::Other, 1, None)), None);
    }
}
