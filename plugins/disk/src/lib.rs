//! The disk tools: the root disk of a stopped workspace.

mod image;
mod pages;
mod path;
mod tools;

use tools::export::DiskExport;
use tools::list::DiskList;
use tools::read::DiskRead;

pyro_plugin_sdk::export!(DiskExport, DiskList, DiskRead);
