//! Lines as a diff sees them.

/// Returns the lines of `text`, each with its `\n`; only the last may be without.
pub fn split_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n')
}

/// Returns whether `bytes` may stand in a text diff: valid UTF-8 without a NUL.
pub fn is_text(bytes: &[u8]) -> bool {
    !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok()
}

/// `line` without its `\n`.
pub(crate) fn without_newline(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

/// `line` without its `\n` and the `\r` before it.
pub(crate) fn without_line_end(line: &[u8]) -> &[u8] {
    let line = without_newline(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}
