//! The port tools, and ports and network policies in other groups' tools.
//!
//! A published port is a listener on the host's loopback that reaches the guest's: it needs no network device. A policy
//! that needs one is not offered.

mod interceptor;
mod ports;
mod tools;

use interceptor::Network;
use tools::list::PortList;
use tools::publish::PortPublish;
use tools::unpublish::PortUnpublish;

pyro_plugin_sdk::export!(PortPublish, PortList, PortUnpublish; interceptor = Network);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_documentation_says() {
        let expected = [
            "port_publish(workspace_id*, guest_port*, host_port)",
            "port_list(workspace_id*)",
            "port_unpublish(workspace_id*, host_port*)",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
