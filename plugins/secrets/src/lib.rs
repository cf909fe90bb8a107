//! The secret tools, and secrets in the tools that create workspaces and start processes.
//!
//! Other groups know nothing of secrets: this one adds `secrets` to `workspace_create` and `secret_env` to what starts a
//! process, and hands names and bindings to the host, which keeps the values and takes them out of every stream.

mod input;
mod interceptor;
mod shape;
mod tools;

use interceptor::Secrets;
use tools::list::SecretList;
use tools::remove::SecretRemove;
use tools::set::SecretSet;

pyro_plugin_sdk::export!(SecretList, SecretSet, SecretRemove; interceptor = Secrets);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_documentation_says() {
        let expected = [
            "secret_list(workspace_id*)",
            "secret_set(workspace_id*, name*, value, file_path)",
            "secret_remove(workspace_id*, name*)",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
