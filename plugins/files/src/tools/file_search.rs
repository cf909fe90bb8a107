//! `workspace_file_search`.

use pyro_plugin_sdk::{Call, Cli, Flag, Hints, Human, JsonSchema, Table, Tool, ToolError};
use pyro_tree::{Tree, TreeLimits, WORKSPACE, below_workspace};
use serde::{Deserialize, Serialize};

use crate::ignored::Selection;
use crate::search::{self, Case, FileSize, Found, Query, Search, SearchError};
use pyro_plugin_guest::{Guest, Kind, invalid, workspace_root};

/// Entries that are listed before a search; a larger tree is read without.
const MAX_LISTED: u32 = 20_000;
/// Files read one by one at most: each is asked for on its own, where an archive has all of them at once...
const FEW: usize = 256;
/// ...and only when so many bytes need not be read for it.
const SPARED: u64 = 32 << 20;
/// The most bytes that the host takes as an archive of a guest.
const MAX_ARCHIVE: u64 = 16 << 30;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// Workspace
    pub workspace_id: String,
    /// Regular expression
    pub pattern: String,
    /// Directory or file in /workspace
    #[serde(default = "workspace_root")]
    pub path: String,
    /// Take pattern as plain text
    #[serde(default)]
    pub literal: bool,
    /// How letters compare; smart ignores case for a lower-case pattern
    #[serde(default)]
    pub case: CaseArgument,
    /// As `*.rs`; `!` leaves out
    #[serde(default)]
    pub globs: Vec<String>,
    /// Lines around a match
    #[serde(default)]
    #[schemars(range(max = 20))]
    pub context: u32,
    /// Matching lines at most
    #[serde(default = "max_results")]
    #[schemars(range(min = 1, max = 2000))]
    pub max_results: u32,
    /// Also hidden files
    #[serde(default)]
    pub hidden: bool,
    /// Also what ignore files name
    #[serde(default)]
    pub no_ignore: bool,
}

#[derive(Debug, Default, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum CaseArgument {
    #[default]
    Sensitive,
    Insensitive,
    Smart,
}

fn max_results() -> u32 {
    100
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    pub workspace_id: String,
    pub path: String,
    pub matches: Vec<Match>,
    pub files_searched: u64,
    pub files_matched: u64,
    /// Files passed over: binary
    pub binary_skipped: u64,
    /// Files passed over: over 8 MiB
    pub large_skipped: u64,
    /// More matches may exist
    pub truncated: bool,
    pub execution_mode: String,
}

/// A matching line.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Match {
    pub path: String,
    /// From 1
    pub line: u64,
    /// From 1, in characters
    pub column: u64,
    pub text: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub before: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub after: Vec<String>,
}

/// Searches text files.
pub struct FileSearch;

impl Tool for FileSearch {
    const NAME: &'static str = "workspace_file_search";
    const DESCRIPTION: &'static str = "Finds lines in text files by ripgrep's rules; honours ignore files.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli {
            path: vec!["workspace", "file", "search"],
            positionals: vec!["workspace_id", "pattern", "path"],
            flags: vec![Flag::plain("glob", "globs").help("Files by name, as *.rs; may be repeated")],
            human: Some(Human {
                table: Some(Table { rows: "matches", columns: vec!["path", "line", "text"] }),
                summary: Some("{files_matched} of {files_searched} files match"),
                ..Human::default()
            }),
            ..Cli::default()
        })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        let mut query = Query {
            pattern: arguments.pattern,
            literal: arguments.literal,
            case: match arguments.case {
                CaseArgument::Sensitive => Case::Sensitive,
                CaseArgument::Insensitive => Case::Insensitive,
                CaseArgument::Smart => Case::Smart,
            },
            context: arguments.context as usize,
            max_results: arguments.max_results as usize,
            selection: Selection { globs: arguments.globs, hidden: arguments.hidden, no_ignore: arguments.no_ignore },
        };
        // Told before anything is asked of the guest.
        Search::new(query.clone()).map_err(failed)?;
        let guest = Guest::open(&arguments.workspace_id, "workspace_file_search")?;
        let path = pyro_plugin_guest::path(&arguments.path)?;
        let is_directory = guest.stat(&path)?.kind == Kind::Directory;
        let directory =
            if is_directory { path.as_str() } else { path.rsplit_once('/').map_or(WORKSPACE, |(parent, _)| parent) };
        // A file that was named is searched whatever its name.
        query.selection.hidden |= !is_directory;
        query.selection.no_ignore |= !is_directory;
        let below = below_workspace(directory);
        let parents = if query.selection.no_ignore { Vec::new() } else { rules_above(&guest, below)? };
        let mut search = Search::new(query).map_err(failed)?;
        for (directory, git, text) in parents {
            search.add_rules(&directory, git, &text);
        }
        let found = found(&guest, &path, directory, &mut search).map_err(failed)?;
        Ok(Output {
            workspace_id: arguments.workspace_id,
            path,
            matches: found
                .matches
                .into_iter()
                .map(|found| Match {
                    path: format!("{WORKSPACE}/{}", found.path),
                    line: found.line,
                    column: found.column as u64,
                    text: found.text,
                    before: found.before,
                    after: found.after,
                })
                .collect(),
            files_searched: found.files_searched as u64,
            files_matched: found.files_matched as u64,
            binary_skipped: found.binary_skipped as u64,
            large_skipped: found.large_skipped as u64,
            truncated: found.truncated,
            execution_mode: guest.execution_mode(),
        })
    }
}

fn failed(error: SearchError) -> ToolError {
    match error {
        SearchError::Guest(error) => error,
        SearchError::Tree(error) => {
            let refused = invalid(error.to_string());
            match error.hint() {
                Some(hint) => refused.with_hint(hint),
                None => refused,
            }
        }
        error => invalid(error.to_string()),
    }
}

/// Searches what is at `path`, which is `directory` or in it.
fn found(guest: &Guest, path: &str, directory: &str, search: &mut Search) -> Result<Found, SearchError> {
    let below = below_workspace(directory);
    let prefix = if below.is_empty() { String::new() } else { format!("{below}/") };
    let (entries, more) = guest.list(path, true, MAX_LISTED).map_err(SearchError::Guest)?;
    let base = format!("{directory}/");
    let mut files: Vec<FileSize> = entries
        .into_iter()
        .filter(|entry| entry.kind == Kind::File)
        .filter_map(|entry| Some((entry.path.strip_prefix(&base)?.to_owned(), entry.size)))
        .collect();
    files.sort();
    let total = files.iter().fold(0, |total: u64, (_, size)| total.saturating_add(*size));
    // A name that is not UTF-8 is listed with replacement characters, and there is no file of that name to be read.
    let by_name = !more && files.iter().all(|(path, _)| !path.contains(char::REPLACEMENT_CHARACTER));
    if by_name && total > SPARED && search.ignore_files(&files).len() <= FEW {
        let mut read = |path: &str, size| match guest.read(&format!("{base}{path}"), 0, size) {
            Ok((content, _)) => Ok(content),
            // It went while others were read.
            Err(error) if error.code == "not_found" => Ok(Vec::new()),
            Err(error) => Err(SearchError::Guest(error)),
        };
        search.read_rules(&prefix, &files, &mut read)?;
        let (count, bytes) = search.wanted(&prefix, &files);
        if count <= FEW && total.saturating_sub(bytes) > SPARED {
            return search.run(&prefix, &files, &mut read);
        }
    }
    if total > MAX_ARCHIVE {
        return Err(SearchError::Guest(too_large(&base, &files)));
    }
    let tree = Tree::index(guest.archive(path).map_err(SearchError::Guest)?, &TreeLimits::default())?;
    let files = search::files_of(&tree);
    let mut read = |path: &str, size| Ok(tree.read(path, 0, size)?);
    search.read_rules(&prefix, &files, &mut read)?;
    search.run(&prefix, &files, &mut read)
}

fn too_large(base: &str, files: &[FileSize]) -> ToolError {
    let (path, size) = files.iter().max_by_key(|(_, size)| *size).cloned().unwrap_or_default();
    let message = format!(
        "the files to search have more than {} GiB together, of which `{base}{path}` has {size} bytes",
        MAX_ARCHIVE >> 30
    );
    ToolError::new("limit_exceeded", message)
        .with_hint("remove the file, or choose another path or a glob that few match")
}

/// The ignore files of the directories above the one that is searched.
fn rules_above(guest: &Guest, below: &str) -> Result<Vec<(String, bool, String)>, ToolError> {
    let mut rules = Vec::new();
    let mut directory = below;
    while !directory.is_empty() {
        directory = directory.rsplit_once('/').map_or("", |(parent, _)| parent);
        for (name, git) in [(".gitignore", true), (".ignore", false)] {
            let path = format!("{WORKSPACE}/{directory}/{name}").replace("//", "/");
            let found = match guest.find(&path) {
                // Above the root that the profile grants: there are none for this search.
                Err(error) if error.code == "denied" => return Ok(rules),
                found => found?,
            };
            if found.is_some_and(|entry| entry.kind == Kind::File) {
                let (text, _) = guest.read(&path, 0, 1 << 20)?;
                rules.push((directory.to_owned(), git, String::from_utf8_lossy(&text).into_owned()));
            }
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_is_too_large_is_named() {
        let files = [("a".to_owned(), 5), ("d/sparse".to_owned(), 3 << 40)];
        let error = too_large("/workspace/", &files);
        assert_eq!(error.code, "limit_exceeded");
        assert!(error.message.ends_with("`/workspace/d/sparse` has 3298534883328 bytes"), "{}", error.message);
        assert!(error.hint.is_some());
    }
}
