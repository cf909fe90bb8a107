//! The end of a log.

/// Most bytes of one stream in a result.
pub const MAX_BYTES: usize = 256 * 1024;

/// Text for a result.
#[derive(Debug, PartialEq)]
pub struct Tail {
    /// Decoded; bytes that are no UTF-8 became U+FFFD.
    pub text: String,
    /// True when there is more before it.
    pub truncated: bool,
}

/// Returns the last `lines` lines (all when none) of a log, at most [`MAX_BYTES`] of it.
pub fn tail(log: &[u8], lines: Option<u32>) -> Tail {
    let mut start = 0;
    if let Some(lines) = lines {
        let body = log.strip_suffix(b"\n").unwrap_or(log);
        let mut left = u64::from(lines);
        start = if left == 0 { log.len() } else { 0 };
        for (at, byte) in body.iter().enumerate().rev() {
            if *byte == b'\n' {
                left = left.saturating_sub(1);
                if left == 0 {
                    start = start.max(at + 1);
                    break;
                }
            }
        }
    }
    let bound = log.len().saturating_sub(MAX_BYTES);
    if start < bound {
        // From the next whole line on, or the next whole character where there is none.
        let rest = log.get(bound..).unwrap_or_default();
        start = bound
            + match rest.iter().position(|byte| *byte == b'\n') {
                Some(end) if end + 1 < rest.len() => end + 1,
                _ => rest.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count(),
            };
    }
    let text = String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned();
    Tail { text, truncated: start > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(log: &str, lines: Option<u32>) -> (String, bool) {
        let tail = tail(log.as_bytes(), lines);
        (tail.text, tail.truncated)
    }

    #[test]
    fn the_last_lines_are_taken() {
        assert_eq!(of("a\nb\nc\n", Some(2)), ("b\nc\n".into(), true));
        assert_eq!(of("a\nb\nc", Some(2)), ("b\nc".into(), true));
        assert_eq!(of("a\nb\n", Some(2)), ("a\nb\n".into(), false));
        assert_eq!(of("a\n\n\n", Some(2)), ("\n\n".into(), true));
        assert_eq!(of("a\nb\n", Some(0)), (String::new(), true));
        assert_eq!(of("", Some(5)), (String::new(), false));
        assert_eq!(of("a\nb\n", None), ("a\nb\n".into(), false));
    }

    #[test]
    fn a_long_log_is_cut_at_a_line() {
        let log = "0123456789\n".repeat(50_000);
        let (text, truncated) = of(&log, None);
        assert!(truncated && text.len() <= MAX_BYTES && text.starts_with("0123456789\n"));
        let (text, _) = of(&"é".repeat(300_000), Some(1));
        assert!(!text.contains('\u{fffd}') && text.len() <= MAX_BYTES);
    }
}
