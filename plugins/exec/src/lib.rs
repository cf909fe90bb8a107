//! The tools that run commands: `vm_run`.

mod vm_run;

pyro_plugin_sdk::export!(vm_run::VmRun);
