//! `pyro vmm --run-dir DIR`: the process of one microVM. pyro starts it itself; nobody types it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Serves the machine of a run directory until it ends. Parsed by hand: a machine must not wait for clap.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    match args.as_slice() {
        [flag, run_dir] if flag == "--run-dir" => pyro_engine::vmm_process::main(&PathBuf::from(run_dir)),
        _ => {
            crate::printer::Printer::new(crate::printer::Verbosity::Normal)
                .note("error: `pyro vmm` is started by pyro itself, as `pyro vmm --run-dir DIR`");
            ExitCode::from(2)
        }
    }
}
