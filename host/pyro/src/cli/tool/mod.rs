//! Commands that are made from the tools of a profile: `pyro run`, `pyro workspace exec`, and whatever a plugin adds.
//!
//! A tool says in its definition how it looks as a command; this module only reads that. It calls the tool through the
//! same component as an MCP client would, and shows the result differently.

mod arguments;
mod attach;
mod call;
mod show;
mod signals;

use std::ffi::OsString;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use pyro::{Pyro, ToolDef, Toolbox};

use crate::failure::{EXIT_RUN_FAILURE, EXIT_USAGE, Failure};
use crate::printer::Printer;

/// The profile whose tools are commands: all that are built in.
const DEFAULT_PROFILE: &str = "workspace-extended";
/// The profile of `pyro run`, the smallest that has it: one component to read instead of all.
const RUN_PROFILE: &str = "vm-run";
/// Where the commands of tools are that do not say how they look.
const ROOT: &str = "tool";
/// Names of the flags that commands of tools have besides their tool's.
const JSON: &str = "json";
const ID_ONLY: &str = "id-only";
const CONTENT_ONLY: &str = "content-only";
const PROFILE: &str = "profile";

/// What can be told from a command line before it is parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    /// The first word that is no flag.
    pub word: Option<String>,
    /// What stands after `--engine`.
    pub engine: Option<String>,
    /// What stands after `--kernel`.
    pub kernel: Option<String>,
    /// What stands after `--profile`.
    profile: Option<String>,
}

impl Sketch {
    /// Reads the arguments after the program's name.
    pub fn of(args: &[OsString]) -> Sketch {
        let mut sketch = Sketch::default();
        let mut args = args.iter().map(|arg| arg.to_string_lossy());
        while let Some(arg) = args.next() {
            if arg == "--" {
                break;
            }
            let (name, value) = arg.split_once('=').map_or((&*arg, None), |(name, value)| (name, Some(value)));
            let place = match name {
                "--engine" => &mut sketch.engine,
                "--kernel" => &mut sketch.kernel,
                "--profile" => &mut sketch.profile,
                _ if arg.starts_with('-') => continue,
                _ => {
                    sketch.word.get_or_insert_with(|| arg.clone().into_owned());
                    continue;
                }
            };
            *place = value.map(str::to_owned).or_else(|| args.next().map(|value| value.into_owned()));
        }
        sketch
    }

    /// Says whether the profile was typed.
    pub fn names_a_profile(&self) -> bool {
        self.profile.is_some()
    }

    /// Returns the profile whose tools are commands on this command line.
    pub fn profile(&self) -> String {
        let from_environment = || std::env::var("PYRO_PROFILE").ok().filter(|name| !name.is_empty());
        self.profile.clone().or_else(from_environment).unwrap_or_else(|| {
            if self.word.as_deref() == Some("run") { RUN_PROFILE } else { DEFAULT_PROFILE }.to_owned()
        })
    }
}

/// The tools of a profile as commands.
pub struct ToolCommands {
    toolbox: Toolbox,
}

/// A command that was typed.
enum Chosen<'a> {
    Tool(&'a ToolDef),
    Attach,
}

impl ToolCommands {
    /// Loads a profile. Runs no component code.
    pub fn load(pyro: &Pyro, profile: &str) -> Result<ToolCommands, Failure> {
        let profile = pyro.profile(profile)?;
        Ok(ToolCommands { toolbox: pyro.toolbox(&profile)? })
    }

    /// Adds a command per tool. One that pyro has itself stays pyro's.
    pub fn add_to(&self, command: Command) -> Command {
        let mut command = with_profile(command);
        let own: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        for tool in self.toolbox.tools() {
            let path = path_of(tool);
            if path.first().is_some_and(|first| !own.contains(first)) {
                command = insert(command, &path, leaf(tool));
            }
        }
        if attach::is_possible(&self.toolbox) {
            let path: Vec<String> = attach::PATH.iter().map(|word| (*word).to_owned()).collect();
            command = insert(command, &path, attach::command().arg(profile_argument()));
        }
        command
    }

    /// Runs the command that was typed. Returns its exit code, and none when it is no tool's.
    pub async fn run(&self, matches: &ArgMatches, printer: &Arc<Printer>) -> Option<Result<u8, Failure>> {
        let (chosen, matches) = self.chosen(matches)?;
        let tool = match chosen {
            Chosen::Attach => return Some(attach::run(&self.toolbox, matches, printer).await),
            Chosen::Tool(tool) => tool,
        };
        let is_exec = tool.cli.as_ref().is_some_and(|form| form.exit_code.is_some());
        if is_exec {
            printer.fail_with(EXIT_RUN_FAILURE);
        }
        let result = match arguments::read(tool, matches) {
            Ok(arguments) => call::call(&self.toolbox, tool, arguments, matches, printer).await,
            // Nothing was done: as any command line that is wrong.
            Err(failure) if failure.exit_code == EXIT_USAGE => return Some(Err(failure)),
            Err(failure) => Err(failure),
        };
        Some(result.map_err(|failure| if is_exec { failure.with_exit_code(EXIT_RUN_FAILURE) } else { failure }))
    }

    fn chosen<'a, 'm>(&'a self, matches: &'m ArgMatches) -> Option<(Chosen<'a>, &'m ArgMatches)> {
        let (mut matches, mut typed) = (matches, Vec::new());
        while let Some((word, below)) = matches.subcommand() {
            typed.push(word);
            matches = below;
        }
        if typed == attach::PATH {
            return Some((Chosen::Attach, matches));
        }
        let tool = self.toolbox.tools().iter().find(|tool| path_of(tool) == typed)?;
        Some((Chosen::Tool(tool), matches))
    }
}

/// Adds the flag that names the profile before any command. `Sketch` has read it already.
pub fn with_profile(command: Command) -> Command {
    command.arg(profile_argument())
}

/// Says whether a command line asks for JSON, which failures are then printed as too.
pub fn wants_json(mut matches: &ArgMatches) -> bool {
    while let Some((_, below)) = matches.subcommand() {
        matches = below;
    }
    flag(matches, JSON)
}

/// Returns a flag of a command that may not have it.
fn flag(matches: &ArgMatches, name: &str) -> bool {
    matches.try_get_one::<bool>(name).ok().flatten().copied().unwrap_or_default()
}

fn path_of(tool: &ToolDef) -> Vec<String> {
    match &tool.cli {
        Some(form) => form.path.clone(),
        None => vec![ROOT.to_owned(), tool.name.replace('_', "-")],
    }
}

fn insert(command: Command, path: &[String], leaf: Command) -> Command {
    let [first, rest @ ..] = path else { return command };
    if rest.is_empty() {
        // A group and a command of one name: the group stays.
        return if command.find_subcommand(first).is_some() {
            command
        } else {
            command.subcommand(leaf.name(first.clone()))
        };
    }
    let command = match command.find_subcommand(first) {
        Some(_) => command,
        None => command.subcommand(
            Command::new(first.clone())
                .about(format!("Commands of `{first}`"))
                .subcommand_required(true)
                .arg_required_else_help(true),
        ),
    };
    command.mut_subcommand(first, |group| {
        let group = insert(group, rest, leaf);
        let names: Vec<&str> = group.get_subcommands().map(Command::get_name).collect();
        let about = names.join(", ");
        group.about(about)
    })
}

/// Returns the command of one tool; its name is set where it is put.
fn leaf(tool: &ToolDef) -> Command {
    let form = tool.cli.clone().unwrap_or_default();
    let first = tool.title.clone().unwrap_or_else(|| first_sentence(&tool.description));
    let mut command = Command::new("tool")
        .about(first)
        .long_about(tool.description.clone())
        .args(arguments::declare(tool))
        .groups(arguments::groups(tool))
        .arg(profile_argument())
        .arg(switch(JSON, "Print the structured result as JSON"));
    if form.id.is_some() {
        command = command.arg(switch(ID_ONLY, "Print only the id").conflicts_with(JSON));
    }
    if form.human.as_ref().is_some_and(|human| human.content_only) {
        command = command.arg(switch(CONTENT_ONLY, "Print only the content").conflicts_with(JSON));
    }
    if !form.examples.is_empty() {
        let lines: String = form.examples.iter().map(|example| format!("\n  {example}")).collect();
        command = command.after_help(format!("Examples:{lines}"));
    }
    command
}

fn profile_argument() -> Arg {
    Arg::new(PROFILE)
        .long(PROFILE)
        .value_name("PROFILE")
        .help("Take the tool from this profile: a built-in name, or the path of a TOML file [env: PYRO_PROFILE]")
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn first_sentence(text: &str) -> String {
    let end = text.find(". ").map_or(text.len(), |at| at + 1);
    text.get(..end).unwrap_or(text).trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(args: &[&str]) -> Sketch {
        Sketch::of(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_first_word_and_the_profile_are_seen_before_parsing() {
        assert_eq!(sketch(&["-v", "--engine", "qemu", "run", "debian:12"]).word.as_deref(), Some("run"));
        assert_eq!(sketch(&["run", "x", "--profile", "p", "--", "--profile", "q"]).profile.as_deref(), Some("p"));
        assert_eq!(
            sketch(&["--profile=./a.toml", "acme"]),
            Sketch { word: Some("acme".to_owned()), profile: Some("./a.toml".to_owned()), ..Sketch::default() }
        );
        assert_eq!(sketch(&["--help"]).word, None);
        assert_eq!(sketch(&["run"]).profile(), RUN_PROFILE);
    }

    #[test]
    fn a_description_begins_with_its_first_sentence() {
        assert_eq!(first_sentence("Runs it. And more."), "Runs it");
        assert_eq!(first_sentence("Reads a.txt"), "Reads a.txt");
    }
}
