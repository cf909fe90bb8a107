//! A tool in one struct of arguments, one of results and one function.

use pyro_plugin_sdk::{Call, Cli, Hints, JsonSchema, Tool, ToolError};
use serde::{Deserialize, Serialize};

#[derive(Deserialize, JsonSchema)]
struct Arguments {
    /// The text to measure.
    text: String,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    /// Words in it.
    words: usize,
}

struct CountWords;

impl Tool for CountWords {
    const NAME: &'static str = "count_words";
    const DESCRIPTION: &'static str = "Counts the words of a text.";
    const HINTS: Hints = Hints::READ_ONLY;
    type Arguments = Arguments;
    type Output = Output;

    fn cli() -> Option<Cli> {
        Some(Cli { path: vec!["count-words"], positionals: vec!["text"], ..Cli::default() })
    }

    fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
        Ok(Output { words: arguments.text.split_whitespace().count() })
    }
}

pyro_plugin_sdk::export!(CountWords);
