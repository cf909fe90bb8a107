//! The service tools: processes of a workspace that outlive a call.
//!
//! The guest agent keeps the process and its logs; the host keeps what this component notes about
//! it (command, readiness, why it was stopped) in the service's `meta`.

mod logs;
mod notes;
mod readiness;
mod shape;
mod start;
mod tools;

use tools::list::ServiceList;
use tools::logs::ServiceLogs;
use tools::restart::ServiceRestart;
use tools::start::ServiceStart;
use tools::status::ServiceStatus;
use tools::stop::ServiceStop;

pyro_plugin_sdk::export!(
    ServiceStart,
    ServiceList,
    ServiceStatus,
    ServiceLogs,
    ServiceStop,
    ServiceRestart
);
