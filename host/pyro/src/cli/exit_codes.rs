//! `pyro help exit-codes`, and `pyro exit-codes`: what the exit codes mean.

use crate::printer::Printer;

const TEXT: &str = "\
Exit codes of commands that run something in a guest, as `pyro run` and `pyro workspace exec`:
  the command's own  the command ran to its end
  124                the command was killed because its time was over (--timeout-seconds)
  125                pyro failed, so there is no exit code of the command
  126, 127           from the guest's shell: not executable, not found
  128 + N            signal N ended the command in the guest; 137 is SIGKILL
  130, 143, 129      Ctrl-C, SIGTERM or SIGHUP ended pyro, and the command with it

Exit codes of all other commands:
  0                  done
  1                  failed; standard error says why (`error:`) and what to do (`hint:`)

Of all commands:
  2                  the command line cannot be read; nothing was done
  141                the reader of standard output went away";

/// List the exit codes
#[derive(Debug, clap::Args)]
#[command(long_about = TEXT, help_template = "{about}\n")]
pub struct Args {}

impl Args {
    pub fn run(&self, printer: &Printer) -> u8 {
        printer.line(TEXT);
        0
    }
}
