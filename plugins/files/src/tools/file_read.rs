//! `workspace_file_read`.

use pyro_plugin_sdk::{Call, Cli, Hints, Human, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

use crate::window::{LineWindow, Window, by_bytes};
use pyro_plugin_guest::{Guest, Kind, invalid};

/// Bytes fetched at a time while lines are counted.
const PIECE: u64 = 1 << 20;
/// Bytes of a file that are gone through for a range of lines.
const MAX_SCANNED: u64 = 64 << 20;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// File in /workspace
    pub path: String,
    /// Bytes returned at most
    #[serde(default = "max_bytes")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_bytes: u32,
    /// First byte
    #[serde(default)]
    pub offset: u64,
    /// First line, from 1; not with offset
    #[schemars(range(min = 1))]
    pub start_line: Option<u64>,
    /// Last line
    #[schemars(range(min = 1))]
    pub end_line: Option<u64>,
}

fn max_bytes() -> u32 {
    65_536
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub path: String,
    /// Of the whole file
    pub size_bytes: u64,
    pub max_bytes: u32,
    pub content: String,
    /// More follows what was asked for
    pub truncated: bool,
    /// Where content begins
    pub offset: u64,
    /// Where to go on, when truncated
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<u64>,
    /// Bytes that are no UTF-8 were replaced
    pub lossy: bool,
    pub execution_mode: String,
}

/// How a file is to be read.
#[derive(Debug, PartialEq)]
enum Range {
    Bytes { offset: u64 },
    Lines { first: u64, last: u64 },
}

fn range(arguments: &Arguments) -> Result<Range, ToolError> {
    match (arguments.start_line, arguments.end_line) {
        (None, None) => Ok(Range::Bytes { offset: arguments.offset }),
        _ if arguments.offset > 0 => Err(invalid("offset and a range of lines cannot be used together")),
        (first, last) => {
            let (first, last) = (first.unwrap_or(1), last.unwrap_or(u64::MAX));
            if last < first {
                return Err(invalid(format!("end_line {last} lies before start_line {first}")));
            }
            Ok(Range::Lines { first, last })
        }
    }
}

/// Reads a part of a regular file.
pub struct FileRead;

impl Tool for FileRead {
    const NAME: &'static str = "workspace_file_read";
    const DESCRIPTION: &'static str = "Reads a text file, or a part by bytes or lines.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "file", "read"],
            positionals: vec!["workspace_id", "path"],
            human: Some(Human {
                text: Some("content"),
                summary: Some("{path}: {size_bytes} bytes, truncated: {truncated}"),
                content_only: true,
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let range = range(&arguments)?;
        let guest = Guest::open(&arguments.workspace_id, "workspace_file_read")?;
        let path = pyro_plugin_guest::path(&arguments.path)?;
        if guest.stat(&path)?.kind != Kind::File {
            return Err(invalid(format!("workspace file read only supports regular files: {path}")));
        }
        let limit = u64::from(arguments.max_bytes);
        let (window, size, cut): (Window, u64, bool) = match range {
            Range::Bytes { offset } => {
                let (bytes, size) = guest.read(&path, offset, limit)?;
                let window = by_bytes(&bytes, offset, size);
                let cut = window.next < size;
                (window, size, cut)
            }
            Range::Lines { first, last } => {
                let mut lines = LineWindow::new(first, last, usize::try_from(limit).unwrap_or(usize::MAX));
                let mut at = 0;
                let size = loop {
                    let (piece, size) = guest.read(&path, at, PIECE)?;
                    at += piece.len() as u64;
                    if piece.is_empty() || !lines.feed(&piece) || at >= size {
                        break size;
                    }
                    if at >= MAX_SCANNED {
                        return Err(invalid(format!(
                            "line {first} lies behind the first {MAX_SCANNED} bytes; use offset"
                        )));
                    }
                };
                let (window, cut) = lines.finish();
                (window, size, cut)
            }
        };
        Ok(Output {
            workspace_id: arguments.workspace_id,
            path,
            size_bytes: size,
            max_bytes: arguments.max_bytes,
            truncated: cut,
            next_offset: cut.then_some(window.next),
            offset: window.offset,
            lossy: window.lossy,
            content: window.text,
            execution_mode: guest.execution_mode(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Range, String> {
        let arguments: Arguments = serde_json::from_str(json).expect("arguments");
        range(&arguments).map_err(|error| error.message)
    }

    #[test]
    fn bytes_or_lines() {
        let with = |rest: &str| parse(&format!(r#"{{"workspace_id":"w","path":"p"{rest}}}"#));
        assert_eq!(with(""), Ok(Range::Bytes { offset: 0 }));
        assert_eq!(with(r#","offset":9"#), Ok(Range::Bytes { offset: 9 }));
        assert_eq!(with(r#","start_line":3"#), Ok(Range::Lines { first: 3, last: u64::MAX }));
        assert_eq!(with(r#","end_line":3"#), Ok(Range::Lines { first: 1, last: 3 }));
        assert!(with(r#","start_line":3,"end_line":2"#).is_err());
        assert!(with(r#","start_line":3,"offset":2"#).is_err());
    }
}
