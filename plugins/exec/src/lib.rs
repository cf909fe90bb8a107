//! The tool that runs a command in a microVM of its own: `vm_run`.

mod vm_run;

use serde::Deserialize;

pyro_plugin_sdk::export!(vm_run::VmRun);

/// The component's `config`.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Bytes kept of each of stdout and stderr.
    keep_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { keep_bytes: 64 * 1024 }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_contract_says() {
        let expected =
            ["vm_run(environment*, command*, vcpu_count=1, mem_mib=1024, timeout_seconds=30, ttl_seconds=600)"];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
