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

pyro_plugin_sdk::export!(ShellOpen, ShellList, ShellRead, ShellWrite, ShellResize, ShellSignal, ShellClose);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_contract_says() {
        let expected = [
            "shell_open(workspace_id*, cwd=\"/workspace\", cols=120, rows=30)",
            "shell_list(workspace_id*)",
            "shell_read(workspace_id*, shell_id*, cursor=0, max_chars=65536, plain=false, wait_for_idle_ms)",
            "shell_write(workspace_id*, shell_id*, input*, append_newline=true)",
            "shell_resize(workspace_id*, shell_id*, cols*, rows*)",
            "shell_signal(workspace_id*, shell_id*, signal_name=\"INT\")",
            "shell_close(workspace_id*, shell_id*)",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
