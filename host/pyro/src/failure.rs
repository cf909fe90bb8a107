//! A failed command: what is printed about it, and the exit code.

use std::io;

use pyro::{Diagnostic, EngineError, OpenError, ToolError};
use pyro_engine::environments::EnvironmentError;
use serde::Serialize;

/// pyro itself could not do it.
pub const EXIT_FAILURE: u8 = 1;
/// The command line is wrong, as clap has it.
pub const EXIT_USAGE: u8 = 2;
/// `pyro run`: the command ran out of time.
pub const EXIT_TIMEOUT: u8 = 124;
/// `pyro run`: pyro itself failed, so that the code is not the command's.
pub const EXIT_RUN_FAILURE: u8 = 125;
/// The reader of standard output went away; as a shell reports SIGPIPE.
pub const EXIT_BROKEN_PIPE: u8 = 141;

/// One or more facts, each with its next step.
#[derive(Debug)]
pub struct Failure {
    pub facts: Vec<Fact>,
    pub exit_code: u8,
}

/// One thing that is wrong.
#[derive(Debug, Serialize)]
pub struct Fact {
    /// As in `docs/errors.md`.
    pub code: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub retryable: bool,
    /// Last lines of the guest's console or of a plugin's standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

impl Failure {
    pub fn new(code: &str, message: impl Into<String>) -> Failure {
        let fact = Fact { code: code.to_owned(), message: message.into(), hint: None, retryable: false, output: None };
        Failure { facts: vec![fact], exit_code: EXIT_FAILURE }
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Failure {
        if let Some(fact) = self.facts.last_mut() {
            fact.hint = Some(hint.into());
        }
        self
    }

    pub fn with_exit_code(mut self, exit_code: u8) -> Failure {
        self.exit_code = exit_code;
        self
    }

    fn one(fact: Fact) -> Failure {
        Failure { facts: vec![fact], exit_code: EXIT_FAILURE }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        Failure::one(Fact {
            code: error.code().as_str().to_owned(),
            message: error.message().to_owned(),
            hint: error.hint().map(str::to_owned),
            retryable: error.retryable(),
            output: error.console_tail().map(str::to_owned),
        })
    }
}

impl From<EnvironmentError> for Failure {
    fn from(error: EnvironmentError) -> Failure {
        EngineError::from(error).into()
    }
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Failure {
        let output = ["console", "console_tail", "stderr"]
            .iter()
            .find_map(|key| error.details.get(*key)?.as_str())
            .filter(|text| !text.trim().is_empty())
            .map(str::to_owned);
        Failure::one(Fact {
            code: error.code,
            message: error.message,
            hint: error.hint,
            retryable: error.retryable,
            output,
        })
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        match error {
            OpenError::Engine(error) => error.into(),
            OpenError::Profile(error) => {
                Failure { facts: error.diagnostics.into_iter().map(fact_of).collect(), exit_code: EXIT_FAILURE }
            }
            OpenError::Directories(error) => {
                let (code, hint) = match error.kind() {
                    io::ErrorKind::InvalidInput => ("invalid_argument", "set PYRO_HOME to a path that is UTF-8"),
                    _ => ("io", "set PYRO_HOME to a directory that pyro may use"),
                };
                Failure::new(code, error.to_string()).with_hint(hint)
            }
        }
    }
}

fn fact_of(diagnostic: Diagnostic) -> Fact {
    let place = match diagnostic.line {
        Some(line) => format!("{}:{line}", diagnostic.file),
        None => diagnostic.file,
    };
    Fact {
        code: diagnostic.code.to_owned(),
        message: format!("{place}: {}", diagnostic.message),
        hint: diagnostic.hint,
        retryable: false,
        output: None,
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::new("io", error.to_string())
    }
}
