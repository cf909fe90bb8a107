//! Names in headers: git's quoting, and what a patch may name.

use thiserror::Error;

/// Why a name in a patch was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathError {
    /// The quotes do not close, or an escape is unknown.
    #[error("malformed quoted name {0}")]
    Quoting(String),
    /// Not UTF-8.
    #[error("name is not valid UTF-8: {0}")]
    NotUtf8(String),
    /// Absolute, empty, or with an empty, `.` or `..` component.
    #[error("`{0}` is not a relative path inside the tree")]
    Outside(String),
}

/// Returns `name` as it stands after `--- `: quoted when it holds a character that would end the
/// name, and with the tab that git adds behind a name with a space.
pub(crate) fn quote_label(name: &str) -> String {
    let special = |c: char| c.is_control() || c == '"' || c == '\\';
    if !name.contains(special) {
        return if name.contains(' ') { format!("{name}\t") } else { name.to_owned() };
    }
    let mut out = String::from("\"");
    for c in name.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    out.push_str(&format!("\\{byte:03o}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Reads one name from the start of `text`; returns it and what follows it.
///
/// A quoted name ends at its closing quote; another one at `end`, else with the text.
pub(crate) fn read_name(text: &[u8], end: Option<u8>) -> Result<(String, &[u8]), PathError> {
    let shown = || String::from_utf8_lossy(text).into_owned();
    let (bytes, rest) = match text.strip_prefix(b"\"") {
        Some(quoted) => unquote(quoted).ok_or_else(|| PathError::Quoting(shown()))?,
        None => {
            let cut = end.and_then(|end| text.iter().position(|&byte| byte == end)).unwrap_or(text.len());
            let (name, rest) = text.split_at(cut);
            (name.to_vec(), rest)
        }
    };
    let name = String::from_utf8(bytes).map_err(|_| PathError::NotUtf8(shown()))?;
    Ok((name, rest))
}

/// Text after an opening quote -> the bytes up to the closing one, and the rest.
fn unquote(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'"' => return Some((out, rest)),
            b'\\' => {
                let (&escape, after) = rest.split_first()?;
                rest = after;
                out.push(match escape {
                    b'"' | b'\\' => escape,
                    b'a' => 7,
                    b'b' => 8,
                    b't' => b'\t',
                    b'n' => b'\n',
                    b'v' => 11,
                    b'f' => 12,
                    b'r' => b'\r',
                    b'0'..=b'3' => {
                        let mut value = escape - b'0';
                        for _ in 0..2 {
                            let (&digit, after) = rest.split_first()?;
                            rest = after;
                            if !(b'0'..=b'7').contains(&digit) {
                                return None;
                            }
                            value = value.wrapping_mul(8).wrapping_add(digit - b'0');
                        }
                        value
                    }
                    _ => return None,
                });
            }
            byte => out.push(byte),
        }
    }
}

/// Returns `name` relative to the tree: `root` before it is taken off, `./` too.
pub(crate) fn relative(name: &str, root: Option<&str>) -> Result<String, PathError> {
    let outside = || PathError::Outside(name.to_owned());
    let mut path = name;
    if let Some(inner) = root.and_then(|root| path.strip_prefix(root)) {
        path = inner.strip_prefix('/').ok_or_else(outside)?;
    }
    while let Some(inner) = path.strip_prefix("./") {
        path = inner;
    }
    let clean =
        !path.is_empty() && !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if clean { Ok(path.to_owned()) } else { Err(outside()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_names_go_round() {
        for name in ["a/x\ty", "a/\"q\"\\", "a/\u{1b}[0m", "a/\u{85}", "a/ü\r"] {
            let label = quote_label(name);
            assert_eq!(read_name(label.as_bytes(), Some(b'\t')).unwrap().0, name, "{label}");
        }
    }

    #[test]
    fn octal_escapes_are_bytes() {
        assert_eq!(read_name(b"\"a/\\303\\244\" x", None).unwrap(), ("a/ä".to_owned(), &b" x"[..]));
        assert!(matches!(read_name(b"\"\\377\"", None), Err(PathError::NotUtf8(_))));
        for bad in [&b"\"open"[..], b"\"\\9\"", b"\"\\01\"", b"\"\\"] {
            assert!(matches!(read_name(bad, None), Err(PathError::Quoting(_))), "{bad:?}");
        }
    }

    #[test]
    fn names_stay_inside_the_tree() {
        assert_eq!(relative("./a/b", None).unwrap(), "a/b");
        assert_eq!(relative("/workspace/a", Some("/workspace")).unwrap(), "a");
        for bad in ["", "/etc/passwd", "..", "a/../b", "a//b", "a/", "/workspace", "/workspaces/x", "a\0"] {
            assert!(relative(bad, Some("/workspace")).is_err(), "{bad}");
        }
    }
}
