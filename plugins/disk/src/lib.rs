//! The disk tools: the root disk of a stopped workspace.

mod image;
mod pages;
mod path;
mod tools;

use tools::export::DiskExport;
use tools::list::DiskList;
use tools::read::DiskRead;

pyro_plugin_sdk::export!(DiskExport, DiskList, DiskRead);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_contract_says() {
        let expected = [
            "workspace_disk_export(workspace_id*, output_path*)",
            "workspace_disk_list(workspace_id*, path=\"/workspace\", recursive=false)",
            "workspace_disk_read(workspace_id*, path*, max_bytes=65536)",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
