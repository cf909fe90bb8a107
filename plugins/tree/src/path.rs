//! Paths of a workspace as callers write them.

use thiserror::Error;

/// Where the tree of a workspace lies in the guest.
pub const WORKSPACE: &str = "/workspace";

/// Bytes of one path, as the kernel's `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// Why a path was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum WorkspacePathError {
    #[error("workspace path must not be empty")]
    Empty,
    #[error("workspace path must not contain `..`: {0}")]
    Parent(String),
    #[error("workspace path must be inside {WORKSPACE}: {0}")]
    Outside(String),
    #[error("workspace path is longer than {MAX_PATH} bytes or has a NUL")]
    Malformed,
}

/// Returns the absolute guest path that `path` means: it is trimmed, and a relative one lies below
/// [`WORKSPACE`].
///
/// # Errors
/// An empty path, one with `..`, one outside the workspace.
pub fn workspace_path(path: &str) -> Result<String, WorkspacePathError> {
    let path = path.trim();
    if path.is_empty() {
        return Err(WorkspacePathError::Empty);
    }
    if path.len() > MAX_PATH || path.contains('\0') {
        return Err(WorkspacePathError::Malformed);
    }
    let mut parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(WorkspacePathError::Parent(path.to_owned()));
    }
    if path.starts_with('/') {
        if parts.first().copied() != WORKSPACE.strip_prefix('/') {
            return Err(WorkspacePathError::Outside(path.to_owned()));
        }
        parts.remove(0);
    }
    let mut whole = WORKSPACE.to_owned();
    for part in parts {
        whole.push('/');
        whole.push_str(part);
    }
    Ok(whole)
}

/// The part of an absolute workspace path below the workspace; empty for the workspace itself.
pub fn below_workspace(path: &str) -> &str {
    path.strip_prefix(WORKSPACE).unwrap_or(path).trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_workspace() {
        for (path, whole) in [
            ("a/b", "/workspace/a/b"),
            (" ./a//b/ ", "/workspace/a/b"),
            (".", "/workspace"),
            ("/workspace", "/workspace"),
            ("/workspace/x y", "/workspace/x y"),
        ] {
            assert_eq!(workspace_path(path).as_deref(), Ok(whole));
        }
        for path in ["", " ", "/", "/etc", "/workspaces", "..", "a/../b", "/workspace/..", "a\0"] {
            assert!(workspace_path(path).is_err(), "{path:?}");
        }
        assert_eq!(below_workspace("/workspace/a/b"), "a/b");
        assert_eq!(below_workspace("/workspace"), "");
    }
}
