//! Commands of a workspace that go on after the call that started them.
//!
//! `workspace_exec` knows nothing of them: this group adds `background` to it and answers in its place with a handle. The
//! guest agent keeps such a command as it keeps services, with the end of its output.

mod command;
mod interceptor;
mod tools;

use interceptor::Background;
use tools::output::ExecOutput;
use tools::stop::ExecStop;

pyro_plugin_sdk::export!(ExecOutput, ExecStop; interceptor = Background);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_documentation_says() {
        let expected = [
            "workspace_exec_output(workspace_id*, handle*, offset=0, max_bytes=65536, wait_seconds=0)",
            "workspace_exec_stop(workspace_id*, handle*)",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
