//! The service tools: processes of a workspace that outlive a call.
//!
//! The guest agent keeps the process and its logs; the host keeps what this component notes about
//! it (command, readiness, why it was stopped) in the service's `meta`.

mod counts;
mod logs;
mod notes;
mod readiness;
mod shape;
mod start;
mod tools;

use counts::Counts;
use tools::list::ServiceList;
use tools::logs::ServiceLogs;
use tools::restart::ServiceRestart;
use tools::start::ServiceStart;
use tools::status::ServiceStatus;
use tools::stop::ServiceStop;

pyro_plugin_sdk::export!(ServiceStart, ServiceList, ServiceStatus, ServiceLogs, ServiceStop, ServiceRestart; interceptor = Counts);

#[cfg(test)]
mod tests {
    #[test]
    fn the_tools_take_what_the_contract_says() {
        let expected = [
            "service_start(workspace_id*, service_name*, command*, cwd=\"/workspace\", ready_file, ready_tcp, ready_http, ready_command, ready_timeout_seconds=30, ready_interval_ms=500)",
            "service_list(workspace_id*)",
            "service_status(workspace_id*, service_name*)",
            "service_logs(workspace_id*, service_name*, tail_lines=200, all=false)",
            "service_stop(workspace_id*, service_name*)",
            "service_restart(workspace_id*, service_name*)",
        ];
        assert_eq!(pyro_plugin_guest::signatures(&super::pyro_manifest()), expected);
    }
}
