//! The environments without the command line around them: `env list | inspect NAME | pull NAME [--refresh] | prune
//! [--all]`. `PYRO_AGENT` names the agent's program for the initramfs.
#![expect(clippy::print_stderr, reason = "an example prints")]

use std::{io::Write, time::Instant};

use pyro_engine::{
    AgentSource, EngineError, ErrorCode, Paths, Progress,
    environments::{Environments, PullOptions},
};

struct Lines(Instant);

impl Progress for Lines {
    fn report(&self, message: &str, done: f64, _total: Option<f64>) {
        eprintln!("{:6.1} s {done:5.1} % {message}", self.0.elapsed().as_secs_f64());
    }
}

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error ({}): {}", error.code(), error.message());
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<String, EngineError> {
    let io = |doing: &'static str| move |error: std::io::Error| EngineError::io(doing, &error);
    let agent = match std::env::var_os("PYRO_AGENT") {
        Some(file) => std::fs::read(file).map_err(io("read PYRO_AGENT"))?,
        None => Vec::new(),
    };
    let paths = Paths::from_env().map_err(io("find the directories"))?;
    let environments = Environments::new(&paths, AgentSource(agent.leak()));
    let json =
        |value: serde_json::Result<String>| value.map_err(|e| EngineError::new(ErrorCode::Internal, e.to_string()));
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let began = Instant::now();
    let progress = Lines(began);
    match words.as_slice() {
        ["list"] => json(serde_json::to_string_pretty(&environments.list()?)),
        ["inspect", name] => json(serde_json::to_string_pretty(&environments.inspect(name)?)),
        ["prune"] => json(serde_json::to_string_pretty(&environments.prune(false)?)),
        ["prune", "--all"] => json(serde_json::to_string_pretty(&environments.prune(true)?)),
        ["ensure", name] => Ok(format!("{:#?}\n{:?}", environments.ensure(name, &progress)?, began.elapsed())),
        ["pull", name] | ["pull", name, "--refresh"] => {
            let options = PullOptions { refresh: words.len() == 3 };
            Ok(format!("{:#?}\n{:?}", environments.pull(name, options, &progress)?, began.elapsed()))
        }
        ["clone", name, to] => {
            let installed = environments.ensure(name, &progress)?;
            let began = Instant::now();
            installed.clone_rootfs(std::path::Path::new(to), 0)?;
            Ok(format!("{:?}", began.elapsed()))
        }
        _ => Err(EngineError::new(
            ErrorCode::InvalidArgument,
            "usage: env list | inspect NAME | pull NAME [--refresh] | ensure NAME | clone NAME FILE | prune [--all]",
        )),
    }
}
