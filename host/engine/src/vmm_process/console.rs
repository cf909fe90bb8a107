//! The guest's console: kept for the moment when something goes wrong, bounded because the guest writes it.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Bytes kept in memory: some hundred lines, more than a panic prints.
const RING: usize = 64 * 1024;
/// Bytes written to `console.log`, so that a guest cannot fill the host's disk.
const FILE_LIMIT: u64 = 1024 * 1024;
/// Lines and bytes that go with an error.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 4096;
/// Lines before the one that says that the guest gave up: they often say why.
const LINES_BEFORE_MARK: usize = 4;

/// What says that a guest has given up: the kernel's word and the agent's.
const MARKS: [&[u8]; 2] = [b"Kernel panic", b"pyro-agent: fatal"];

/// Receives the console.
#[derive(Debug)]
pub(crate) struct Console {
    ring: VecDeque<u8>,
    file: Option<File>,
    written: u64,
    gave_up: bool,
    /// The last bytes seen, shorter than any mark, so that one is found across two writes.
    seam: Vec<u8>,
}

impl Console {
    /// Makes a console that also writes `console.log` in the run directory, when that is possible.
    pub(crate) fn new(dir: &Path) -> Self {
        let path = dir.join("console.log");
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
        if let Err(e) = &file {
            tracing::warn!(path = %path.display(), error = %e, "the console is not logged");
        }
        Self { ring: VecDeque::new(), file: file.ok(), written: 0, gave_up: false, seam: Vec::new() }
    }

    /// Takes bytes of the guest.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if !self.gave_up {
            self.seam.extend_from_slice(bytes);
            self.gave_up = MARKS.iter().any(|mark| self.seam.windows(mark.len()).any(|window| window == *mark));
            let keep = MARKS.iter().map(|mark| mark.len() - 1).max().unwrap_or(0);
            let from = self.seam.len().saturating_sub(keep);
            self.seam.drain(..from);
        }
        self.ring.extend(bytes);
        let excess = self.ring.len().saturating_sub(RING);
        self.ring.drain(..excess);
        self.log(bytes);
    }

    /// Returns whether the kernel or the agent said that it gave up.
    pub(crate) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// Returns the last lines as plain text: no control characters, no escape sequences. After the guest gave up, the
    /// lines from there on: what comes at the very end of a panic is the least telling of it.
    pub(crate) fn tail(&self) -> String {
        let bytes: Vec<u8> = self.ring.iter().copied().collect();
        let lines = plain_lines(&bytes);
        let is_mark = |line: &String| MARKS.iter().any(|mark| line.as_bytes().windows(mark.len()).any(|w| w == *mark));
        match lines.iter().rposition(is_mark) {
            Some(at) if self.gave_up => {
                let lines = lines.get(at.saturating_sub(LINES_BEFORE_MARK)..).unwrap_or_default();
                bounded(lines.get(..lines.len().min(TAIL_LINES)).unwrap_or_default())
            }
            _ => last(&lines),
        }
    }

    fn log(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let room = usize::try_from(FILE_LIMIT - self.written.min(FILE_LIMIT)).unwrap_or(0);
        let (fits, rest) = bytes.split_at(bytes.len().min(room));
        let mut result = file.write_all(fits);
        self.written += fits.len() as u64;
        if result.is_ok() && !rest.is_empty() {
            result = file.write_all(b"\n[the console's log ends here: 1 MiB]\n");
            self.file = None;
        }
        if result.is_err() {
            self.file = None;
        }
    }
}

/// Returns the last lines of some bytes as plain text.
pub(crate) fn plain_tail(bytes: &[u8]) -> String {
    last(&plain_lines(bytes))
}

fn plain_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                // A control sequence ends with a letter; any other escape is two characters long.
                if chars.next() == Some('[') {
                    while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
                }
            }
            '\n' | '\t' => plain.push(c),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn last(lines: &[String]) -> String {
    bounded(lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default())
}

/// Joins lines and keeps the end of them when they are too long.
fn bounded(lines: &[String]) -> String {
    let mut text = lines.join("\n");
    let mut from = text.len().saturating_sub(TAIL_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.drain(..from);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (tempfile::TempDir, Console) {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::new(dir.path());
        (dir, console)
    }

    #[test]
    fn a_mark_is_found_wherever_the_writes_are_cut() {
        let text = b"[    1.0] Kernel panic - not syncing";
        for cut in 0..text.len() {
            let (_dir, mut console) = console();
            console.push(&text[..cut]);
            console.push(&text[cut..]);
            assert!(console.gave_up(), "cut at {cut}");
        }
        let (_dir, mut console) = console();
        for &byte in b"x pyro-agent: fatal: no root" {
            console.push(&[byte]);
        }
        assert!(console.gave_up());
    }

    #[test]
    fn ordinary_output_is_no_panic() {
        let (_dir, mut console) = console();
        console.push(b"Kernel pan");
        console.push(b"cake\npyro-agent: ready\n");
        assert!(!console.gave_up());
    }

    #[test]
    fn a_flood_is_bounded() {
        let (dir, mut console) = console();
        for _ in 0..300 {
            console.push(&[b'x'; 10_000]);
        }
        console.push(b"\nlast words\n");
        assert_eq!(console.ring.len(), RING);
        assert!(console.tail().ends_with("last words"));
        assert!(console.tail().len() <= TAIL_BYTES);
        let logged = std::fs::metadata(dir.path().join("console.log")).unwrap().len();
        assert!(logged < FILE_LIMIT + 100, "{logged}");
    }

    #[test]
    fn the_tail_of_a_panic_begins_with_it() {
        let (_dir, mut console) = console();
        for n in 0..50 {
            console.push(format!("before {n}\n").as_bytes());
        }
        console.push(b"Kernel panic - not syncing: sysrq\n");
        for n in 0..50 {
            console.push(format!("frame {n}\n").as_bytes());
        }
        let tail = console.tail();
        let lines: Vec<&str> = tail.lines().collect();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(
            lines[..6],
            ["before 46", "before 47", "before 48", "before 49", "Kernel panic - not syncing: sysrq", "frame 0"]
        );
    }

    #[test]
    fn the_tail_is_plain_text() {
        assert_eq!(plain_tail(b"\x1b[1;31mred\x1b[0m\r\nbell\x07 \xff\n\n"), "red\nbell \u{fffd}");
        assert_eq!(plain_tail(b"\x1b["), "");
        assert_eq!(plain_tail(b"\x1b"), "");
        let many: String = (0..100).map(|n| format!("line {n}\n")).collect();
        assert_eq!(plain_tail(many.as_bytes()).lines().next(), Some("line 80"));
        let wide = "ä".repeat(5000);
        assert!(plain_tail(wide.as_bytes()).len() <= TAIL_BYTES);
    }
}
