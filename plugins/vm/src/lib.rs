//! The vm tools: microVMs that are made, started and ended call by call.

mod shape;
mod tools;

use tools::create::VmCreate;
use tools::delete::VmDelete;
use tools::exec::VmExec;
use tools::list_environments::VmListEnvironments;
use tools::network_info::VmNetworkInfo;
use tools::reap_expired::VmReapExpired;
use tools::start::VmStart;
use tools::status::VmStatus;
use tools::stop::VmStop;

pyro_plugin_sdk::export!(
    VmListEnvironments,
    VmCreate,
    VmStart,
    VmExec,
    VmStop,
    VmDelete,
    VmStatus,
    VmNetworkInfo,
    VmReapExpired,
);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_contract_says() {
        let expected = [
            "vm_list_environments()",
            "vm_create(environment*, vcpu_count=1, mem_mib=1024, ttl_seconds=600)",
            "vm_start(vm_id*)",
            "vm_exec(vm_id*, command*, timeout_seconds=30)",
            "vm_stop(vm_id*)",
            "vm_delete(vm_id*)",
            "vm_status(vm_id*)",
            "vm_network_info(vm_id*)",
            "vm_reap_expired()",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
