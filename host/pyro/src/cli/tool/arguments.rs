//! A tool's arguments as clap's, and what was typed as the tool's arguments.
//!
//! Only the shape of a value is decided here. Whether it is allowed is the schema's business, which the toolbox checks for
//! every caller alike.

use std::collections::BTreeSet;
use std::io::Read;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches};
use pyro::{CliFlag, CliForm, FlagValue, RecordForm, ToolDef};
use serde_json::{Map, Value};

use super::{CONTENT_ONLY, ID_ONLY, JSON, PROFILE};
use crate::failure::{EXIT_USAGE, Failure};

/// Most bytes of a file that becomes an argument; no tool takes more text.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Names that an argument's own flag cannot have.
const TAKEN: [&str; 10] =
    [JSON, ID_ONLY, CONTENT_ONLY, PROFILE, "help", "quiet", "verbose", "engine", "kernel", "version"];

/// What a schema lets a value be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    List(Box<Kind>),
    /// An object of strings.
    Pairs,
    Json,
}

/// One flag of a command.
struct FlagOf<'a> {
    id: String,
    name: String,
    argument: &'a str,
    schema: &'a Value,
    takes: FlagValue,
    value_name: Option<String>,
    help: String,
}

/// Returns the arguments of a tool's command.
pub fn declare(tool: &ToolDef) -> Vec<Arg> {
    let form = form_of(tool);
    let mut declared = Vec::new();
    for name in &form.positionals {
        let Some(schema) = property(tool, name) else { continue };
        let mut arg = Arg::new(name.clone())
            .value_name(name.to_uppercase())
            .help(description(schema))
            .required(is_required(tool, name));
        arg = match kind_of(tool, schema) {
            Kind::List(item) => valued(arg, &item, schema).num_args(1..).action(ArgAction::Append),
            kind => valued(arg, &kind, schema),
        };
        declared.push(arg);
    }
    if let Some(name) = &form.trailing
        && let Some(schema) = property(tool, name)
    {
        let shell = if matches!(kind_of(tool, schema), Kind::List(_)) {
            ""
        } else {
            "\nOne word is a line for the guest's shell; several are a program and its arguments"
        };
        declared.push(
            Arg::new(name.clone())
                .value_name(name.to_uppercase())
                .help(format!("{}{shell}", description(schema)))
                .num_args(1..)
                .last(true)
                .required(is_required(tool, name)),
        );
    }
    for flag in flags(tool, &form) {
        let mut arg = Arg::new(flag.id.clone()).long(flag.name.clone()).help(flag.help.clone());
        let kind = kind_of(tool, flag.schema);
        let name = flag.value_name.clone();
        arg = match (&flag.takes, &kind) {
            (FlagValue::Set(_), _) | (FlagValue::Plain, Kind::Boolean) => arg.action(ArgAction::SetTrue),
            (FlagValue::File, _) => arg.value_name("PATH"),
            (FlagValue::Binding, _) | (FlagValue::Plain, Kind::Pairs) => {
                arg.value_name("KEY=VALUE").action(ArgAction::Append)
            }
            (FlagValue::Record(_), _) => arg.action(ArgAction::Append),
            (FlagValue::Plain, Kind::List(item)) => {
                let items = flag.schema.get("items").unwrap_or(&Value::Null);
                valued(arg, item, items).action(ArgAction::Append)
            }
            (FlagValue::Plain, kind) => valued(arg, kind, flag.schema),
        };
        if let Some(name) = name {
            arg = arg.value_name(name);
        }
        let alone = form.flags.iter().filter(|other| other.argument == flag.argument).count() < 2;
        declared.push(arg.required(alone && is_required(tool, flag.argument)));
    }
    declared
}

/// Returns the groups of flags that give the same argument its value.
pub fn groups(tool: &ToolDef) -> Vec<ArgGroup> {
    let form = form_of(tool);
    let flags = flags(tool, &form);
    let arguments: BTreeSet<&str> = flags.iter().map(|flag| flag.argument).collect();
    let mut groups = Vec::new();
    for argument in arguments {
        let members: Vec<&FlagOf<'_>> = flags.iter().filter(|flag| flag.argument == argument).collect();
        let [first, _, ..] = members.as_slice() else { continue };
        let adds_up = matches!(kind_of(tool, first.schema), Kind::List(_) | Kind::Pairs);
        groups.push(
            ArgGroup::new(format!("one of {argument}"))
                .args(members.iter().map(|flag| flag.id.clone()))
                .multiple(adds_up)
                .required(is_required(tool, argument)),
        );
    }
    groups
}

/// Returns the tool's arguments. What was not typed is left to the profile and the tool.
pub fn read(tool: &ToolDef, matches: &ArgMatches) -> Result<Map<String, Value>, Failure> {
    let form = form_of(tool);
    let mut arguments = Map::new();
    for name in &form.positionals {
        let Some(schema) = property(tool, name) else { continue };
        let typed = values(matches, name);
        if typed.is_empty() {
            continue;
        }
        let value = match kind_of(tool, schema) {
            Kind::List(item) => {
                Value::Array(typed.iter().map(|text| converted(name, &item, text)).collect::<Result<_, _>>()?)
            }
            kind => converted(name, &kind, typed.first().map(String::as_str).unwrap_or_default())?,
        };
        arguments.insert(name.clone(), value);
    }
    if let Some(name) = &form.trailing
        && let Some(schema) = property(tool, name)
    {
        let words = values(matches, name);
        if !words.is_empty() {
            let value = match kind_of(tool, schema) {
                Kind::List(_) => words.into(),
                _ => command_line(&words).into(),
            };
            arguments.insert(name.clone(), value);
        }
    }
    for flag in flags(tool, &form) {
        read_flag(tool, &flag, matches, &mut arguments)?;
    }
    Ok(arguments)
}

fn read_flag(
    tool: &ToolDef,
    flag: &FlagOf<'_>,
    matches: &ArgMatches,
    arguments: &mut Map<String, Value>,
) -> Result<(), Failure> {
    let kind = kind_of(tool, flag.schema);
    let argument = flag.argument.to_owned();
    if matches!(flag.takes, FlagValue::Set(_)) || (flag.takes == FlagValue::Plain && kind == Kind::Boolean) {
        if super::flag(matches, &flag.id) {
            let value = if let FlagValue::Set(value) = &flag.takes { value.clone() } else { Value::Bool(true) };
            arguments.insert(argument, value);
        }
        return Ok(());
    }
    for text in values(matches, &flag.id) {
        match (&flag.takes, &kind) {
            (FlagValue::File, kind) => {
                let content = read_file(&text)?;
                arguments.insert(argument.clone(), converted(&flag.name, kind, &content)?);
            }
            (FlagValue::Binding, _) => {
                let (key, value) = text.split_once('=').unwrap_or((&text, &text));
                add_pair(arguments, &argument, key, value);
            }
            (FlagValue::Record(record), _) => {
                let items = flag.schema.get("items").unwrap_or(&Value::Null);
                add(arguments, &argument, record_of(tool, flag, record, items, &text)?);
            }
            (_, Kind::Pairs) => {
                let Some((key, value)) = text.split_once('=') else {
                    return Err(wrong(&flag.name, &text, "KEY=VALUE"));
                };
                add_pair(arguments, &argument, key, value);
            }
            (_, Kind::List(item)) => add(arguments, &argument, converted(&flag.name, item, &text)?),
            (_, kind) => {
                arguments.insert(argument.clone(), converted(&flag.name, kind, &text)?);
            }
        }
    }
    Ok(())
}

fn add(arguments: &mut Map<String, Value>, name: &str, item: Value) {
    if let Value::Array(items) = arguments.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
        items.push(item);
    }
}

fn add_pair(arguments: &mut Map<String, Value>, name: &str, key: &str, value: &str) {
    if let Value::Object(pairs) = arguments.entry(name).or_insert_with(|| Value::Object(Map::new())) {
        pairs.insert(key.to_owned(), value.into());
    }
}

fn record_of(
    tool: &ToolDef,
    flag: &FlagOf<'_>,
    record: &RecordForm,
    items: &Value,
    text: &str,
) -> Result<Value, Failure> {
    let items = resolved(tool, items);
    let property = |name: &str, text: &str| {
        let schema = items.get("properties").and_then(|known| known.get(name)).unwrap_or(&Value::Null);
        converted(&flag.name, &kind_of(tool, schema), text)
    };
    let mut object = Map::new();
    match text.split_once(record.separator) {
        Some((left, right)) => {
            object.insert(record.left.clone(), property(&record.left, left)?);
            object.insert(record.right.clone(), property(&record.right, right)?);
        }
        None if record.left_optional => {
            object.insert(record.right.clone(), property(&record.right, text)?);
        }
        None => {
            let form = format!("{}{}{}", record.left.to_uppercase(), record.separator, record.right.to_uppercase());
            // What was typed may be the secret alone.
            let shown = if pyro_components::holds_secret(items) { "..." } else { text };
            return Err(wrong(&flag.name, shown, &form));
        }
    }
    Ok(Value::Object(object))
}

fn form_of(tool: &ToolDef) -> CliForm {
    tool.cli.clone().unwrap_or_default()
}

/// Returns all flags, in the order of the schema's properties.
fn flags<'a>(tool: &'a ToolDef, form: &CliForm) -> Vec<FlagOf<'a>> {
    let mut flags = Vec::new();
    let properties = tool.input_schema.get("properties").and_then(Value::as_object);
    for (argument, schema) in properties.into_iter().flatten() {
        if form.positionals.contains(argument)
            || form.trailing.as_ref() == Some(argument)
            || form.omit.contains(argument)
            // What can only be false needs no flag.
            || schema.get("enum") == Some(&serde_json::json!([false]))
        {
            continue;
        }
        let own: Vec<&CliFlag> = form.flags.iter().filter(|flag| flag.argument == *argument).collect();
        if own.is_empty() {
            let name = argument.replace('_', "-");
            let name = if TAKEN.contains(&name.as_str()) { format!("arg-{name}") } else { name };
            let (takes, value_name, help) = (FlagValue::Plain, None, described(schema));
            flags.push(FlagOf { id: format!("--{name}"), name, argument, schema, takes, value_name, help });
        }
        for flag in own {
            flags.push(FlagOf {
                id: format!("--{}", flag.name),
                name: flag.name.clone(),
                argument,
                schema,
                takes: flag.takes.clone(),
                value_name: flag.value_name.clone(),
                help: flag.help.clone().unwrap_or_else(|| described(schema)),
            });
        }
    }
    flags
}

fn property<'a>(tool: &'a ToolDef, name: &str) -> Option<&'a Value> {
    tool.input_schema.get("properties")?.get(name)
}

fn is_required(tool: &ToolDef, name: &str) -> bool {
    let required = tool.input_schema.get("required").and_then(Value::as_array);
    required.is_some_and(|required| required.iter().any(|item| item == name))
}

fn description(schema: &Value) -> String {
    schema.get("description").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Returns a flag's line in the help: the description and the default.
fn described(schema: &Value) -> String {
    let text = description(schema);
    match schema.get("default") {
        // Where a description says it already, as those for models do.
        Some(_) if text.contains("default") => text,
        None | Some(Value::Null | Value::Bool(false)) => text,
        Some(Value::String(default)) => format!("{text} [default: {default}]"),
        Some(default) => format!("{text} [default: {default}]"),
    }
}

/// Follows a schema to the part of it that says what a value that is not null is.
fn resolved<'a>(tool: &'a ToolDef, schema: &'a Value) -> &'a Value {
    let mut schema = schema;
    // References of a linted schema do not run in circles; a bound costs nothing.
    for _ in 0..8 {
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let found = target
                .strip_prefix("#/$defs/")
                .and_then(|name| tool.input_schema.get("$defs").and_then(|definitions| definitions.get(name)));
            match found {
                Some(found) => schema = found,
                None => return schema,
            }
            continue;
        }
        let choices = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array);
        let mut real = choices.into_iter().flatten().filter(|choice| choice.get("type") != Some(&Value::from("null")));
        match (real.next(), real.next()) {
            (Some(only), None) => schema = only,
            _ => return schema,
        }
    }
    schema
}

fn kind_of(tool: &ToolDef, schema: &Value) -> Kind {
    let schema = resolved(tool, schema);
    let name = match schema.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => {
            let mut real = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            match (real.next(), real.next()) {
                (Some(only), None) => only,
                _ => return Kind::Json,
            }
        }
        _ if schema.get("enum").is_some() => "string",
        _ => return Kind::Json,
    };
    match name {
        "string" => Kind::Text,
        "integer" => Kind::Integer,
        "number" => Kind::Number,
        "boolean" => Kind::Boolean,
        "array" => match kind_of(tool, schema.get("items").unwrap_or(&Value::Null)) {
            Kind::List(_) | Kind::Pairs => Kind::Json,
            item => Kind::List(Box::new(item)),
        },
        "object" => {
            let values = schema.get("additionalProperties");
            let strings = values.is_some_and(|values| values.is_object() && kind_of(tool, values) == Kind::Text);
            if strings && schema.get("properties").is_none() { Kind::Pairs } else { Kind::Json }
        }
        _ => Kind::Json,
    }
}

/// Gives an argument of one value its placeholder and, where that can be told, its check.
fn valued(arg: Arg, kind: &Kind, schema: &Value) -> Arg {
    let choices: Vec<String> = schema
        .get("enum")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let placeholder = match kind {
        Kind::Integer | Kind::Number => "N",
        Kind::Text => "TEXT",
        _ => "JSON",
    };
    // A positional argument has its own.
    let arg = if arg.get_value_names().is_some() { arg } else { arg.value_name(placeholder) };
    match kind {
        Kind::Text if !choices.is_empty() => arg.value_parser(PossibleValuesParser::new(choices)),
        Kind::Integer => arg.allow_negative_numbers(true).value_parser(checked::<i64>),
        Kind::Number => arg.allow_negative_numbers(true).value_parser(checked::<f64>),
        // A patch begins with hyphens.
        Kind::Text if arg.get_long().is_some() => arg.allow_hyphen_values(true),
        _ => arg,
    }
}

/// Checks a number and keeps its text, so that all values are read alike.
fn checked<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<String, String> {
    text.parse::<T>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn values(matches: &ArgMatches, id: &str) -> Vec<String> {
    matches.try_get_many::<String>(id).ok().flatten().map(|values| values.cloned().collect()).unwrap_or_default()
}

fn converted(name: &str, kind: &Kind, text: &str) -> Result<Value, Failure> {
    let expected = match kind {
        Kind::Text => return Ok(text.into()),
        Kind::Integer => match text.parse::<i64>() {
            Ok(number) => return Ok(number.into()),
            Err(_) => "a whole number",
        },
        Kind::Number => match text.parse::<f64>() {
            Ok(number) => return Ok(number.into()),
            Err(_) => "a number",
        },
        _ => match serde_json::from_str(text) {
            Ok(value) => return Ok(value),
            Err(_) => "JSON",
        },
    };
    Err(wrong(name, text, expected))
}

fn wrong(name: &str, text: &str, expected: &str) -> Failure {
    let shown: String = text.chars().take(80).collect();
    Failure::new("invalid_argument", format!("`{name}` is `{shown}`, which is not {expected}"))
        .with_hint(format!("write it as {expected}"))
        .with_exit_code(EXIT_USAGE)
}

fn read_file(path: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = if path == "-" {
        std::io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::new("io", format!("cannot read `{path}`: {error}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::new("limit_exceeded", format!("`{path}` has more than {MAX_FILE_BYTES} bytes"))
            .with_hint("copy it into the workspace with `pyro workspace sync push`"));
    }
    String::from_utf8(bytes).map_err(|_| {
        Failure::new("invalid_argument", format!("`{path}` is not UTF-8 text"))
            .with_hint("copy it into the workspace with `pyro workspace sync push`")
    })
}

/// Returns the words as one line for a POSIX shell. A single word is a line already.
fn command_line(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use clap::Command;
    use pyro::Annotations;
    use serde_json::json;

    use super::*;

    fn tool(form: Value, input: Value) -> ToolDef {
        ToolDef {
            name: "t".to_owned(),
            title: None,
            description: String::new(),
            input_schema: input.as_object().cloned().unwrap().into(),
            output_schema: None,
            annotations: Annotations::default(),
            cli: Some(serde_json::from_value(form).unwrap()),
            component: "c".to_owned(),
        }
    }

    fn parse(tool: &ToolDef, typed: &[&str]) -> Result<Value, String> {
        let command = Command::new("t").args(declare(tool)).groups(groups(tool)).no_binary_name(true);
        let matches = command.try_get_matches_from(typed).map_err(|error| error.to_string())?;
        read(tool, &matches).map(Value::Object).map_err(|failure| failure.facts[0].message.clone())
    }

    fn whole() -> ToolDef {
        let port = json!({"type": "object", "properties": {
            "host_port": {"type": ["integer", "null"]}, "guest_port": {"type": "integer"}}});
        tool(
            json!({
                "path": ["x"], "positionals": ["id"], "trailing": "command", "omit": ["hidden"],
                "flags": [
                    {"name": "label", "argument": "labels"},
                    {"name": "text", "argument": "text"},
                    {"name": "text-file", "argument": "text", "takes": "file"},
                    {"name": "no-newline", "argument": "newline", "takes": {"set": false}},
                    {"name": "secret-env", "argument": "env", "takes": "binding"},
                    {"name": "publish", "argument": "ports", "takes": {"record":
                        {"separator": ":", "left": "host_port", "right": "guest_port", "left_optional": true}}},
                ],
            }),
            json!({
                "type": "object", "required": ["id", "text"],
                "properties": {
                    "id": {"type": "string"},
                    "command": {"type": "string"},
                    "hidden": {"type": "string"},
                    "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                    "deep": {"type": "boolean"},
                    "mode": {"type": "string", "enum": ["a", "b"]},
                    "names": {"type": "array", "items": {"type": "string"}},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "text": {"type": "string"},
                    "newline": {"type": "boolean"},
                    "env": {"type": "object", "additionalProperties": {"type": "string"}},
                    "ports": {"type": "array", "items": {"$ref": "#/$defs/port"}},
                    "rest": {"type": "object", "properties": {"a": {}}},
                    "json": {"type": "string"},
                },
                "$defs": {"port": port},
            }),
        )
    }

    #[test]
    fn every_kind_of_argument_is_read() {
        let typed = [
            "w1",
            "--count",
            "3",
            "--deep",
            "--mode",
            "b",
            "--names",
            "x",
            "--names",
            "y",
            "--label",
            "k=v=w",
            "--label",
            "e=",
            "--text",
            "hi",
            "--no-newline",
            "--secret-env",
            "TOKEN",
            "--secret-env",
            "A=B",
            "--publish",
            "8080:80",
            "--publish",
            "443",
            "--rest",
            "{\"a\": [1]}",
            "--arg-json",
            "j",
            "--",
            "echo",
            "a b",
        ];
        assert_eq!(
            parse(&whole(), &typed).unwrap(),
            json!({
                "id": "w1", "command": "echo 'a b'", "count": 3, "deep": true, "mode": "b", "names": ["x", "y"],
                "labels": {"k": "v=w", "e": ""}, "text": "hi", "newline": false, "env": {"TOKEN": "TOKEN", "A": "B"},
                "ports": [{"host_port": 8080, "guest_port": 80}, {"guest_port": 443}],
                "rest": {"a": [1]}, "json": "j",
            })
        );
    }

    #[test]
    fn a_file_is_an_argument() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from a file\n").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(parse(&whole(), &["w", "--text-file", path]).unwrap()["text"], "from a file\n");
        std::fs::write(file.path(), b"\xff").unwrap();
        assert!(parse(&whole(), &["w", "--text-file", path]).unwrap_err().contains("UTF-8"));
        assert!(parse(&whole(), &["w", "--text-file", "/nowhere/x"]).unwrap_err().contains("/nowhere/x"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (typed, says) in [
            (&["w"][..], "--text"),
            (&["--text", "x"], "<ID>"),
            (&["w", "--text", "x", "--text-file", "y"], "cannot be used with"),
            (&["w", "--text", "x", "--count", "many"], "many"),
            (&["w", "--text", "x", "--count", "99999999999999999999"], "--count"),
            (&["w", "--text", "x", "--mode", "c"], "possible values"),
            (&["w", "--text", "x", "--label", "novalue"], "KEY=VALUE"),
            (&["w", "--text", "x", "--publish", "a:b"], "whole number"),
            (&["w", "--text", "x", "--rest", "{"], "JSON"),
            (&["w", "--text", "x", "--hidden", "h"], "--hidden"),
        ] {
            let error = parse(&whole(), typed).unwrap_err();
            assert!(error.contains(says), "{typed:?}: {error}");
        }
    }

    #[test]
    fn several_words_reach_the_program_as_they_are() {
        let line = |words: &[&str]| command_line(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(line(&["echo $HOME | wc"]), "echo $HOME | wc");
        assert_eq!(line(&["git", "--version"]), "git --version");
        let words = ["printf", "%s|", "a b", "$HOME", "it's", "*", "", "x\ny", "-n", "~", "é", "A=b c"];
        let output = std::process::Command::new("sh").args(["-c", &line(&words)]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a b|$HOME|it's|*||x\ny|-n|~|é|A=b c|");
    }
}
