//! The tasks of this repository: `cargo xtask setup|build|demo|test|check|bench|fuzz|lab`.
//!
//! Each task installs what it needs first, so that one command does everything
//! on a fresh Debian machine with Rust. What the tasks say goes to stderr;
//! stdout carries only what the commands they run print.
#![allow(clippy::print_stderr, reason = "a task runner talks to the person who started it")]

mod bench;
mod check;
mod demo;
mod examples;
mod fuzz;
mod lab;
mod setup;
mod shell;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, demonstrates, tests and measures pyro")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: system packages, Rust targets and components
    Setup,
    /// Build target/release/pyro with everything it embeds
    Build,
    /// Set up, build, prepare debian:12, and run the main job on real input over the CLI and over MCP
    Demo,
    /// Set up, build and run all tests
    Test(test::Options),
    /// Check formatting, lints and documentation
    Check,
    /// Measure, and print medians
    Bench(bench::Options),
    /// Feed the devices of the VMM with inputs that look for what breaks them
    Fuzz(fuzz::Options),
    /// Run a command on a machine with a working KVM: a software CPU with nested SVM
    Lab {
        /// The command; the host's files are there, read-only
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let root = shell::root()?;
    match cli.task {
        Task::Setup => setup::run(&root),
        Task::Build => setup::run(&root).and_then(|()| build(&root)),
        Task::Demo => demo::run(&root),
        Task::Test(options) => test::run(&root, &options),
        Task::Check => check::run(&root),
        Task::Bench(options) => bench::run(&root, &options),
        Task::Fuzz(options) => fuzz::run(&root, &options),
        Task::Lab { command } => {
            setup::run(&root)?;
            let home = bench::prepare(&root)?;
            let code = lab::run(&shell::target_dir(&root), &home, &command)?;
            std::process::exit(code);
        }
    }
}

/// Everything that is built for the host. The same selection for the binary and for the tests, because another one has
/// other features of the same crates and builds them anew. The guests of the tests are components only.
const WHOLE_WORKSPACE: &[&str] = &["--workspace", "--exclude", "pyro-test-guests"];

/// Builds the release binary with the components, the guest agent and the
/// profiles in it.
fn build(root: &std::path::Path) -> anyhow::Result<()> {
    shell::step("build pyro, its components and the guest agent (minutes the first time)");
    shell::cargo(root).args(["build", "--release", "--locked", "--bin", "pyro"]).args(WHOLE_WORKSPACE).run()
}
