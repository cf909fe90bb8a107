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

pyro_plugin_sdk::export!(FileList, FileRead, FileWrite, FileSearch, FileEdit, PatchApply);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_contract_says() {
        let expected = [
            "workspace_file_list(workspace_id*, path=\"/workspace\", recursive=false)",
            "workspace_file_read(workspace_id*, path*, max_bytes=65536, offset=0, start_line, end_line)",
            "workspace_file_write(workspace_id*, path*, text*)",
            "workspace_file_search(workspace_id*, pattern*, path=\"/workspace\", literal=false, case=\"sensitive\", globs=[], context=0, max_results=100, hidden=false, no_ignore=false)",
            "workspace_file_edit(workspace_id*, path*, old_text*, new_text*, replace_all=false)",
            "workspace_patch_apply(workspace_id*, patch*, fuzz=0)",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
