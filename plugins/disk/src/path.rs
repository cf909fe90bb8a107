//! Paths on a disk.

/// What a relative path is relative to.
pub const WORKSPACE: &str = "/workspace";

/// The longest path, as the kernel's `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// Returns the absolute path that `path` means: a relative one lies below `/workspace`, and `..`
/// goes up as far as the root. `None` when it is empty, too long or has a NUL.
pub fn resolve(path: &str) -> Option<String> {
    let path = path.trim();
    if path.is_empty() || path.len() > MAX_PATH || path.contains('\0') {
        return None;
    }
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{WORKSPACE}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::resolve;

    #[test]
    fn paths_are_absolute_and_collapsed() {
        for (path, whole) in [
            ("a/b", "/workspace/a/b"),
            (" . ", "/workspace"),
            ("..", "/"),
            ("../../../etc//x/", "/etc/x"),
            ("/etc/../var/./log", "/var/log"),
            ("/", "/"),
            ("/with space", "/with space"),
        ] {
            assert_eq!(resolve(path).as_deref(), Some(whole), "{path}");
        }
        for path in ["", "  ", "a\0b", &"x".repeat(5000)] {
            assert_eq!(resolve(path), None);
        }
    }
}
