//! Makes a machine and runs a command in it: it needs both grants.

use pyro_test_guests::bindings::exports::pyro::plugin::tools::{CallContext, Guest, ToolDef, ToolError, ToolResult};
use pyro_test_guests::bindings::pyro::vm::{exec, machines};
use pyro_test_guests::{error, text, tool};

struct Plugin;

impl Guest for Plugin {
    fn list_tools() -> Result<Vec<ToolDef>, ToolError> {
        Ok(vec![tool("use_machine", None)])
    }

    fn call(_: String, _: String, _: CallContext) -> Result<ToolResult, ToolError> {
        let config = machines::MachineConfig {
            environment: "nowhere:0".to_owned(),
            vcpu_count: 1,
            mem_mib: 1024,
            ttl_seconds: 60,
            meta: Vec::new(),
        };
        let machine = machines::run_ephemeral(&config).map_err(|e| error(&e.code, &e.message))?;
        let command = exec::Command {
            program: exec::Program::Argv(vec!["true".to_owned()]),
            cwd: None,
            env: Vec::new(),
            stdin: exec::Input::None,
            timeout_ms: 1000,
            keep_bytes: 1024,
            meta: Vec::new(),
        };
        let output = exec::run(&machine, &command).map_err(|e| error(&e.code, &e.message))?;
        Ok(text(format!("{:?}", output.exit_code)))
    }
}

pyro_test_guests::bindings::export_platform!(Plugin with_types_in pyro_test_guests::bindings);
