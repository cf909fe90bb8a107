//! How a tool looks as a command: the JSON of the `cli` key in its `meta`, and in an amendment's.
//!
//! The form says only what cannot be told from the schemas. What no part of it speaks of has its default form, so that
//! a new argument of a tool is a new flag of its command.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Flags that the command line itself gives to commands.
const RESERVED: [&str; 10] =
    ["content-only", "engine", "help", "id-only", "json", "kernel", "profile", "quiet", "verbose", "version"];
/// First words that stand for commands of pyro's own: a tool's command below one of them could not be typed.
pub const OWN_COMMANDS: [&str; 9] =
    ["completions", "doctor", "env", "exit-codes", "help", "mcp", "plugin", "profile", "tool"];
/// Most words of a command.
const MAX_WORDS: usize = 4;

/// A tool's command line form, from the `cli` key of its `meta`.
///
/// Every argument that is neither positional nor trailing nor named in `flags` or `omit` is a flag named after it,
/// `timeout_seconds` as `--timeout-seconds`, and takes what its schema says:
///
/// | schema | flag |
/// | --- | --- |
/// | string, number, integer | one value |
/// | boolean | no value: true |
/// | array of those | a value; may be repeated |
/// | object of strings | `KEY=VALUE`; may be repeated |
/// | anything else | JSON text |
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CliForm {
    /// The words of the command, as `["workspace", "exec"]`; one to four.
    pub path: Vec<String>,
    /// Arguments given by position, in order; those that the schema requires come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub positionals: Vec<String>,
    /// The argument that takes the words after `--`: quoted for a POSIX shell and joined when it is a string, as they
    /// are when it is an array of strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trailing: Option<String>,
    /// Flags with a name or a value of their own. An argument that is named here has these flags and no other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<CliFlag>,
    /// Arguments that the command line does not offer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omit: Vec<String>,
    /// The command reads standard input: attach it to the call ([`crate::CallOptions::stdin`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// The call streams command output ([`crate::CallObserver::output`]), which stands for the result's `stdout` and
    /// `stderr`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub streams: bool,
    /// The result property that becomes the process's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<String>,
    /// The result property that `--id-only` prints; the command has the flag when this is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What a person sees; the result's JSON text when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub human: Option<HumanForm>,
    /// What a person sees instead when an interceptor answered in the tool's place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerForm>,
    /// Command lines for the end of the help.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

/// One flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CliFlag {
    /// Its name without `--`, as `label`.
    pub name: String,
    /// The argument it gives a value, or a part of the value, to.
    pub argument: String,
    /// What stands after it and what that becomes.
    #[serde(default, skip_serializing_if = "FlagValue::is_plain")]
    pub takes: FlagValue,
    /// The placeholder of its value in the help, as `KEY=VALUE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_name: Option<String>,
    /// Its line in the help; the argument's description when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// What stands after a flag and what that becomes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlagValue {
    /// What the argument's schema says, as for a flag without a form of its own.
    #[default]
    Plain,
    /// A path of a text file on the host, `-` for standard input: its content is the argument.
    File,
    /// Nothing: the flag stands for this value.
    Set(Value),
    /// `KEY=VALUE` into an object of strings; `KEY` alone stands for `KEY=KEY`. May be repeated.
    Binding,
    /// An object appended to an array of objects. May be repeated.
    Record(RecordForm),
}

impl FlagValue {
    fn is_plain(&self) -> bool {
        *self == FlagValue::Plain
    }
}

/// `LEFT SEPARATOR RIGHT` as an object of two properties, converted as the array's item schema says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordForm {
    /// One character; the value is split where it stands first.
    pub separator: char,
    /// The property of what stands left of it.
    pub left: String,
    /// The property of what stands right of it.
    pub right: String,
    /// The separator and what is left of it may be missing; then there is only the right property.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_optional: bool,
}

/// What a person sees of a result. All parts that are set are printed, in this order.
///
/// A property is named by its way from the result (or the row), as `workspace_sync.entry_count`. One that is missing is
/// shown as `-`, a list of texts joined with `, `, an object as `KEY=VALUE` joined with `, `, and a number whose name
/// ends in `_at` as a time. In a template a property stands in braces, as `{path}: {size_bytes} bytes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HumanForm {
    /// The text property that goes to standard output as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The text property that goes to standard error as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_text: Option<String>,
    /// A line per row, on standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<CliTable>,
    /// A head and texts per row, on standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<CliBlocks>,
    /// Properties, each on a line of its own with its name, on standard output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    /// A template for the last line, on standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The command has the flag `--content-only`, which leaves everything but `text` away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub content_only: bool,
}

/// What a person sees of an interceptor's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerForm {
    /// The result property that only this answer has.
    pub when: String,
    /// What is shown then.
    pub human: HumanForm,
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CliTable {
    /// The array property whose items are the rows.
    pub rows: String,
    /// Properties of a row; a column's head is its property's name in capitals.
    pub columns: Vec<String>,
}

/// Rows that have more to say than a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CliBlocks {
    /// The array property whose items are the rows.
    pub rows: String,
    /// A template over the row, on a line of its own.
    pub head: String,
    /// Text properties of the row, printed one after the other as they are.
    pub text: Vec<String>,
}

impl CliForm {
    /// Takes away what speaks of an argument that callers do not have.
    pub(crate) fn retain_arguments(&mut self, kept: impl Fn(&String) -> bool) {
        self.positionals.retain(&kept);
        self.trailing = self.trailing.take().filter(&kept);
        self.flags.retain(|flag| kept(&flag.argument));
        self.omit.retain(&kept);
    }

    /// Returns what is wrong with it for a tool of these schemas: a fact and the next step each.
    pub(crate) fn problems(&self, input: &Value, output: Option<&Value>) -> Vec<(String, &'static str)> {
        let mut problems = Vec::new();
        if self.path.is_empty() || self.path.len() > MAX_WORDS || self.path.iter().any(|word| !is_word(word)) {
            let message = format!("has the command {:?}", self.path);
            problems.push((message, "use one to four words of a-z, 0-9 and `-`"));
        }
        if let Some(first) = self.path.first().filter(|first| OWN_COMMANDS.contains(&first.as_str())) {
            let message = format!("has the command `pyro {}`, but `pyro {first}` is pyro's own", self.path.join(" "));
            problems.push((message, "begin it with another word"));
        }
        let arguments = properties(Some(input));
        let results = properties(output);
        for name in self.positionals.iter().chain(&self.trailing).chain(&self.omit) {
            if !arguments.is_some_and(|known| known.contains_key(name)) {
                let message = format!("has a `cli` that names the argument `{name}`");
                problems.push((message, "name arguments of the schema"));
            }
        }
        problems.extend(flag_problems(&self.flags, arguments));
        let human = self.human.clone().unwrap_or_default();
        let rows = human.table.iter().map(|table| &table.rows).chain(human.blocks.iter().map(|blocks| &blocks.rows));
        let shown = human.text.iter().chain(&human.error_text).chain(&human.fields).chain(rows);
        for name in self.exit_code.iter().chain(&self.id).chain(shown) {
            let first = name.split('.').next().unwrap_or_default();
            if !results.is_some_and(|known| known.contains_key(first)) {
                let message = format!("has a `cli` that names the result `{name}`");
                problems.push((message, "name results of the schema"));
            }
        }
        problems
    }
}

/// The `cli` key of an amendment's meta: how the arguments that it adds look as flags, and its answer to a person.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddedFlags {
    #[serde(default)]
    pub(crate) flags: Vec<CliFlag>,
    #[serde(default)]
    pub(crate) answer: Option<AnswerForm>,
}

impl AddedFlags {
    /// Reads the key's text; none when it does not have the form.
    pub(crate) fn read(text: &str) -> Option<AddedFlags> {
        serde_json::from_str(text).ok()
    }

    /// Returns what is wrong with them for the arguments and results that the amendment adds.
    pub(crate) fn problems(
        &self,
        arguments: &Map<String, Value>,
        results: &Map<String, Value>,
    ) -> Vec<(String, &'static str)> {
        let mut problems = flag_problems(&self.flags, Some(arguments));
        if let Some(answer) = self.answer.as_ref().filter(|answer| !results.contains_key(&answer.when)) {
            let message = format!("has a `cli` whose answer has the result `{}`", answer.when);
            problems.push((message, "name a result that the amendment adds"));
        }
        problems
    }
}

/// Returns what is wrong with flags for arguments of these schemas.
fn flag_problems(flags: &[CliFlag], arguments: Option<&Map<String, Value>>) -> Vec<(String, &'static str)> {
    let mut problems = Vec::new();
    for (at, flag) in flags.iter().enumerate() {
        let twice = flags.iter().take(at).any(|other| other.name == flag.name);
        if !is_word(&flag.name) || RESERVED.contains(&flag.name.as_str()) || twice {
            let message = format!("has the flag `--{}`", flag.name);
            problems.push((message, "name each flag once, with a-z, 0-9 and `-`, and not as one that pyro has"));
        }
        let Some(schema) = arguments.and_then(|known| known.get(&flag.argument)) else {
            let message = format!("has a `cli` that names the argument `{}`", flag.argument);
            problems.push((message, "name arguments of the schema"));
            continue;
        };
        if let FlagValue::Record(record) = &flag.takes {
            let fields = properties(schema.get("items"));
            let has = |name: &String| fields.is_some_and(|known| known.contains_key(name));
            if !has(&record.left) || !has(&record.right) {
                let message = format!("has the flag `--{}` for properties that an item has not", flag.name);
                problems.push((message, "name properties of the array's items"));
            }
        }
    }
    problems
}

fn properties(schema: Option<&Value>) -> Option<&Map<String, Value>> {
    schema.and_then(|schema| schema.get("properties")).and_then(Value::as_object)
}

fn is_word(word: &str) -> bool {
    word.len() <= 32
        && word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole() -> Value {
        json!({
            "path": ["workspace", "service", "start"],
            "positionals": ["workspace_id"],
            "trailing": "command",
            "flags": [
                {"name": "label", "argument": "labels", "value_name": "KEY=VALUE", "help": "For finding it"},
                {"name": "text-file", "argument": "text", "takes": "file"},
                {"name": "no-newline", "argument": "append_newline", "takes": {"set": false}},
                {"name": "secret-env", "argument": "secret_env", "takes": "binding"},
                {"name": "publish", "argument": "published_ports", "takes": {"record":
                    {"separator": ":", "left": "host_port", "right": "guest_port", "left_optional": true}}},
            ],
            "omit": ["stdin"],
            "id": "workspace_id",
            "human": {
                "text": "content",
                "table": {"rows": "entries", "columns": ["path", "size_bytes"]},
                "blocks": {"rows": "entries", "head": "{sequence}", "text": ["stdout"]},
                "fields": ["seed.mode"],
                "summary": "{path}",
                "content_only": true,
            },
        })
    }

    fn input() -> Value {
        let ports = json!({"host_port": {"type": "integer"}, "guest_port": {"type": "integer"}});
        json!({"properties": {
            "workspace_id": {}, "command": {}, "labels": {}, "text": {}, "append_newline": {}, "secret_env": {},
            "published_ports": {"type": "array", "items": {"type": "object", "properties": ports}}, "stdin": {},
        }})
    }

    fn output() -> Value {
        json!({"properties": {"workspace_id": {}, "content": {}, "entries": {}, "seed": {}}})
    }

    #[test]
    fn a_form_survives_its_json() {
        let form: CliForm = serde_json::from_value(whole()).unwrap();
        assert_eq!(serde_json::to_value(&form).unwrap(), whole());
        assert_eq!(form.problems(&input(), Some(&output())), []);
        assert_eq!(form.flags[2].takes, FlagValue::Set(json!(false)));
        let least: CliForm = serde_json::from_value(json!({"path": ["run"]})).unwrap();
        assert_eq!(serde_json::to_value(&least).unwrap(), json!({"path": ["run"]}));
    }

    #[test]
    fn what_it_names_must_exist() {
        let mut form: CliForm = serde_json::from_value(whole()).unwrap();
        form.omit.push("gone".to_owned());
        form.flags[0].argument = "label".to_owned();
        form.flags[1].name = "json".to_owned();
        form.flags[3].name = "no-newline".to_owned();
        let FlagValue::Record(record) = &mut form.flags[4].takes else { panic!("a record") };
        record.left = "port".to_owned();
        form.human.as_mut().unwrap().fields = vec!["seeds.mode".to_owned()];
        let problems: Vec<String> =
            form.problems(&input(), Some(&output())).into_iter().map(|(message, _)| message).collect();
        assert_eq!(
            problems,
            [
                "has a `cli` that names the argument `gone`",
                "has a `cli` that names the argument `label`",
                "has the flag `--json`",
                "has the flag `--no-newline`",
                "has the flag `--publish` for properties that an item has not",
                "has a `cli` that names the result `seeds.mode`",
            ]
        );
        assert!(serde_json::from_value::<CliForm>(json!({"path": ["a"], "colour": 1})).is_err());
    }

    #[test]
    fn pyros_own_commands_and_flags_stay_its_own() {
        for own in OWN_COMMANDS {
            let form: CliForm = serde_json::from_value(json!({"path": [own, "grep"]})).unwrap();
            let problems = form.problems(&input(), None);
            let message = format!("has the command `pyro {own} grep`, but `pyro {own}` is pyro's own");
            assert_eq!(problems, [(message, "begin it with another word")]);
        }
        for own in RESERVED {
            let flags = json!([{"name": own, "argument": "labels"}]);
            let form: CliForm = serde_json::from_value(json!({"path": ["grep"], "flags": flags})).unwrap();
            assert_eq!(form.problems(&input(), None).len(), 1, "{own}");
        }
    }

    #[test]
    fn an_amendment_s_flags_are_for_what_it_adds() {
        let added = AddedFlags::read(r#"{"flags":[{"name":"secret-env","argument":"secret_env","takes":"binding"}]}"#);
        let added = added.unwrap();
        let arguments = |name: &str| Map::from_iter([(name.to_owned(), json!({}))]);
        assert_eq!(added.problems(&arguments("secret_env"), &Map::new()), []);
        assert_eq!(added.problems(&arguments("secrets"), &Map::new()).len(), 1);
        let answer = AddedFlags::read(r#"{"answer":{"when":"handle","human":{"text":"handle"}}}"#).unwrap();
        assert_eq!(answer.problems(&Map::new(), &arguments("handle")), []);
        assert_eq!(answer.problems(&Map::new(), &Map::new()).len(), 1);
        assert!(AddedFlags::read(r#"{"path":["a"]}"#).is_none());
    }

    #[test]
    fn an_argument_that_is_gone_takes_its_flags_along() {
        let mut form: CliForm = serde_json::from_value(whole()).unwrap();
        form.retain_arguments(|name| name != "published_ports" && name != "command" && name != "stdin");
        assert!(form.flags.iter().all(|flag| flag.name != "publish"));
        assert_eq!((form.flags.len(), form.trailing, form.omit.len()), (4, None, 0));
    }
}
