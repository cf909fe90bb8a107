//! How a tool looks as a command; `docs/plugins.md` has the meaning of each part.

use serde::Serialize;
use serde_json::Value;

/// A tool's command line form. Arguments that nothing in it names become flags.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cli {
    /// The words of the command.
    pub path: Vec<&'static str>,
    /// Arguments given by position, in order; required ones first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub positionals: Vec<&'static str>,
    /// The argument that takes the words after `--`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trailing: Option<&'static str>,
    /// Flags with a name or a value of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<Flag>,
    /// Arguments that the command line does not offer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub omit: Vec<&'static str>,
    /// The command reads standard input.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// The call streams command output.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub streams: bool,
    /// The result property that becomes the exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<&'static str>,
    /// The result property that `--id-only` prints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'static str>,
    /// What a person sees; the result's JSON text when none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub human: Option<Human>,
    /// Command lines for the end of the help.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<&'static str>,
}

/// A flag with a name or a value of its own.
#[derive(Clone, Debug, Serialize)]
pub struct Flag {
    name: &'static str,
    argument: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    takes: Option<Takes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Takes {
    File,
    Set(Value),
    Binding,
    Record {
        separator: char,
        left: &'static str,
        right: &'static str,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        left_optional: bool,
    },
}

impl Flag {
    /// A flag that takes what the argument's schema says.
    pub fn plain(name: &'static str, argument: &'static str) -> Flag {
        Flag { name, argument, takes: None, value_name: None, help: None }
    }

    /// A flag that takes the path of a host file whose text is the argument.
    pub fn file(name: &'static str, argument: &'static str) -> Flag {
        Flag { takes: Some(Takes::File), value_name: Some("PATH"), ..Flag::plain(name, argument) }
    }

    /// A flag without a value that stands for `value`.
    pub fn set(name: &'static str, argument: &'static str, value: bool) -> Flag {
        Flag { takes: Some(Takes::Set(Value::Bool(value))), ..Flag::plain(name, argument) }
    }

    /// A flag that puts `KEY=VALUE`, or `KEY` for `KEY=KEY`, into an object of strings.
    pub fn binding(name: &'static str, argument: &'static str) -> Flag {
        Flag { takes: Some(Takes::Binding), ..Flag::plain(name, argument) }
    }

    /// A flag that appends an object of the properties `left` and `right` to an array, from `LEFT SEPARATOR RIGHT`.
    pub fn record(
        name: &'static str,
        argument: &'static str,
        left: &'static str,
        separator: char,
        right: &'static str,
    ) -> Flag {
        let takes = Some(Takes::Record { separator, left, right, left_optional: false });
        Flag { takes, ..Flag::plain(name, argument) }
    }

    /// Lets what is left of a record's separator be missing.
    #[must_use]
    pub fn left_optional(mut self) -> Flag {
        if let Some(Takes::Record { left_optional, .. }) = &mut self.takes {
            *left_optional = true;
        }
        self
    }

    /// Names the value in the help.
    #[must_use]
    pub fn value_name(mut self, name: &'static str) -> Flag {
        self.value_name = Some(name);
        self
    }

    /// Says what it does, where the argument's description does not fit.
    #[must_use]
    pub fn help(mut self, help: &'static str) -> Flag {
        self.help = Some(help);
        self
    }
}

/// What a person sees of a result: each part that is set, in this order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Human {
    /// The text that goes to standard output as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<&'static str>,
    /// The text that goes to standard error as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_text: Option<&'static str>,
    /// A line per row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<Table>,
    /// A head and texts per row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Blocks>,
    /// Properties, each on a line of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<&'static str>,
    /// A template for the last line, on standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<&'static str>,
    /// The command has `--content-only`, which prints `text` alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub content_only: bool,
}

impl Human {
    /// Only a summary.
    pub fn summary(template: &'static str) -> Human {
        Human { summary: Some(template), ..Human::default() }
    }

    /// Only properties.
    pub fn fields(fields: &[&'static str]) -> Human {
        Human { fields: fields.to_vec(), ..Human::default() }
    }

    /// Only a table.
    pub fn table(rows: &'static str, columns: &[&'static str]) -> Human {
        Human { table: Some(Table { rows, columns: columns.to_vec() }), ..Human::default() }
    }
}

/// A table.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The array property whose items are the rows.
    pub rows: &'static str,
    /// Properties of a row.
    pub columns: Vec<&'static str>,
}

/// Rows with texts.
#[derive(Clone, Debug, Serialize)]
pub struct Blocks {
    /// The array property whose items are the rows.
    pub rows: &'static str,
    /// A template over the row.
    pub head: &'static str,
    /// Text properties of the row.
    pub text: Vec<&'static str>,
}
