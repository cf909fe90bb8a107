//! The shell tools: interactive terminals in a workspace.

mod cursor;
mod plain;
mod shape;
mod tools;

use tools::close::ShellClose;
use tools::list::ShellList;
use tools::open::ShellOpen;
use tools::read::ShellRead;
use tools::resize::ShellResize;
use tools::signal::ShellSignal;
use tools::write::ShellWrite;

pyro_plugin_sdk::export!(
    ShellOpen,
    ShellList,
    ShellRead,
    ShellWrite,
    ShellResize,
    ShellSignal,
    ShellClose
);
