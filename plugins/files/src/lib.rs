//! The file tools: listing, reading, writing, searching and patching a workspace.

mod exact_edit;
mod ignored;
mod search;
mod tools;
mod window;

use tools::file_edit::FileEdit;
use tools::file_list::FileList;
use tools::file_read::FileRead;
use tools::file_search::FileSearch;
use tools::file_write::FileWrite;
use tools::patch_apply::PatchApply;

pyro_plugin_sdk::export!(
    FileList, FileRead, FileWrite, FileSearch, FileEdit, PatchApply
);
