//! The `pyro` program.

mod cli;
mod failure;
mod printer;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A microVM's own process: nothing of the command line or the component host may be set up for it.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "vmm") {
        return cli::vmm::main(args);
    }
    cli::main()
}
