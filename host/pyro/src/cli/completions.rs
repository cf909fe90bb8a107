//! `pyro completions`: what a shell needs to complete pyro's command line.

use clap_complete::Shell;

use crate::printer::Printer;

/// The command's word.
pub const NAME: &str = "completions";

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  \
    pyro completions bash > /etc/bash_completion.d/pyro\n  \
    pyro completions zsh > ~/.zfunc/_pyro\n  \
    pyro completions fish > ~/.config/fish/completions/pyro.fish")]
pub struct Args {
    /// The shell
    shell: Shell,
}

impl Args {
    pub fn run(&self, mut all: clap::Command, printer: &Printer) -> u8 {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut all, "pyro", &mut script);
        printer.bytes(&script);
        0
    }
}
