//! The built-in profiles against the contract: which tools, which arguments, and what they cost a model.

use std::collections::BTreeSet;

use pyro::{Paths, Pyro, PyroConfig, ToolDef};
use serde_json::{Value, json};

/// Every tool with its original arguments: `*` required, `=` the default.
const CONTRACT: [&str; 43] = [
    "vm_list_environments()",
    "vm_create(environment*, vcpu_count=1, mem_mib=1024, ttl_seconds=600, network=false)",
    "vm_start(vm_id*)",
    "vm_exec(vm_id*, command*, timeout_seconds=30)",
    "vm_run(environment*, command*, vcpu_count=1, mem_mib=1024, timeout_seconds=30, ttl_seconds=600, network=false)",
    "vm_stop(vm_id*)",
    "vm_delete(vm_id*)",
    "vm_status(vm_id*)",
    "vm_network_info(vm_id*)",
    "vm_reap_expired()",
    "workspace_create(environment*, vcpu_count=1, mem_mib=1024, ttl_seconds=600, network_policy=\"off\", seed_path, \
     secrets, name, labels)",
    "workspace_list()",
    "workspace_update(workspace_id*, name, clear_name=false, labels, clear_labels)",
    "workspace_status(workspace_id*)",
    "workspace_stop(workspace_id*)",
    "workspace_start(workspace_id*)",
    "workspace_reset(workspace_id*, snapshot=\"baseline\")",
    "workspace_delete(workspace_id*)",
    "workspace_logs(workspace_id*)",
    "workspace_exec(workspace_id*, command*, timeout_seconds=30, secret_env)",
    "workspace_sync_push(workspace_id*, source_path*, dest=\"/workspace\")",
    "workspace_export(workspace_id*, path*, output_path*)",
    "workspace_diff(workspace_id*)",
    "workspace_file_list(workspace_id*, path=\"/workspace\", recursive=false)",
    "workspace_file_read(workspace_id*, path*, max_bytes=65536)",
    "workspace_file_write(workspace_id*, path*, text*)",
    "workspace_patch_apply(workspace_id*, patch*)",
    "workspace_disk_export(workspace_id*, output_path*)",
    "workspace_disk_list(workspace_id*, path=\"/workspace\", recursive=false)",
    "workspace_disk_read(workspace_id*, path*, max_bytes=65536)",
    "snapshot_create(workspace_id*, snapshot_name*)",
    "snapshot_list(workspace_id*)",
    "snapshot_delete(workspace_id*, snapshot_name*)",
    "shell_open(workspace_id*, cwd=\"/workspace\", cols=120, rows=30, secret_env)",
    "shell_read(workspace_id*, shell_id*, cursor=0, max_chars=65536, plain=false, wait_for_idle_ms)",
    "shell_write(workspace_id*, shell_id*, input*, append_newline=true)",
    "shell_signal(workspace_id*, shell_id*, signal_name=\"INT\")",
    "shell_close(workspace_id*, shell_id*)",
    "service_start(workspace_id*, service_name*, command*, cwd=\"/workspace\", ready_file, ready_tcp, ready_http, \
     ready_command, ready_timeout_seconds=30, ready_interval_ms=500, secret_env, published_ports)",
    "service_list(workspace_id*)",
    "service_status(workspace_id*, service_name*)",
    "service_logs(workspace_id*, service_name*, tail_lines=200, all=false)",
    "service_stop(workspace_id*, service_name*)",
];

/// The tools of `workspace-core`.
const CORE: [&str; 16] = [
    "vm_run",
    "workspace_create",
    "workspace_list",
    "workspace_update",
    "workspace_status",
    "workspace_sync_push",
    "workspace_exec",
    "workspace_logs",
    "workspace_file_list",
    "workspace_file_read",
    "workspace_file_write",
    "workspace_patch_apply",
    "workspace_diff",
    "workspace_export",
    "workspace_reset",
    "workspace_delete",
];

/// Arguments that other groups add, which `workspace-core` is without.
const NOT_IN_CORE: [&str; 3] = ["network", "network_policy", "secrets"];

/// What the tools take beyond the contract.
const MORE_ARGUMENTS: [&str; 11] = [
    "workspace_exec.cwd",
    "workspace_exec.env",
    "workspace_exec.stdin",
    "workspace_file_read.end_line",
    "workspace_file_read.offset",
    "workspace_file_read.start_line",
    "workspace_logs.after",
    "workspace_logs.limit",
    "workspace_patch_apply.fuzz",
    "workspace_update.ttl_seconds",
    "service_restart.secret_env",
];

/// What `workspace-extended` has beyond `workspace-full`.
const EXTENDED: [&str; 14] = [
    "port_list",
    "port_publish",
    "port_unpublish",
    "secret_list",
    "secret_remove",
    "secret_set",
    "service_restart",
    "shell_list",
    "shell_resize",
    "workspace_exec_output",
    "workspace_exec_stop",
    "workspace_file_edit",
    "workspace_file_search",
    "workspace_summary",
];

fn tools(profile: &str) -> Vec<ToolDef> {
    let home = tempfile::tempdir().unwrap();
    let paths = Paths::below(home.path());
    let config = PyroConfig { paths: Some(paths), program: Some("pyro".into()), ..PyroConfig::default() };
    let pyro = Pyro::open(config).unwrap();
    let profile = pyro.profile(profile).unwrap_or_else(|error| panic!("{profile}: {error}"));
    pyro.toolbox(&profile).unwrap().tools().to_vec()
}

fn names(tools: &[ToolDef]) -> BTreeSet<&str> {
    tools.iter().map(|tool| tool.name.as_str()).collect()
}

/// Name, whether it is required, and its default.
type Argument = (String, bool, Option<Value>);

fn contract(line: &str) -> (&str, Vec<Argument>) {
    let (name, rest) = line.split_once('(').unwrap();
    let arguments = rest.trim_end_matches(')').split(", ").filter(|part| !part.is_empty());
    let arguments = arguments.map(|part| match (part.strip_suffix('*'), part.split_once('=')) {
        (Some(name), _) => (name.to_owned(), true, None),
        (None, Some((name, default))) => (name.to_owned(), false, Some(serde_json::from_str(default).unwrap())),
        (None, None) => (part.to_owned(), false, None),
    });
    (name, arguments.collect())
}

fn offered(tool: &ToolDef) -> Vec<Argument> {
    let required = tool.input_schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let properties = tool.input_schema["properties"].as_object().unwrap();
    let arguments = properties.iter().map(|(name, schema)| {
        // Nothing, an empty list and an empty object are the same to the tools.
        let default = schema.get("default").filter(|default| **default != json!([]) && **default != json!({}));
        (name.clone(), required.iter().any(|known| known == name), default.cloned())
    });
    arguments.collect()
}

#[test]
fn workspace_full_has_the_43_tools_with_their_original_arguments() {
    let tools = tools("workspace-full");
    let expected: BTreeSet<&str> = CONTRACT.iter().map(|line| contract(line).0).collect();
    assert_eq!(names(&tools), expected);
    assert_eq!(tools.len(), 43);
    for line in CONTRACT {
        let (name, original) = contract(line);
        let tool = tools.iter().find(|tool| tool.name == name).unwrap();
        let mut more = offered(tool);
        for argument in &original {
            let at = more.iter().position(|offered| offered == argument);
            let at = at.unwrap_or_else(|| panic!("{name} takes {more:?}, not {argument:?}"));
            more.remove(at);
        }
        for (argument, required, _) in more {
            let whole = format!("{name}.{argument}");
            assert!(MORE_ARGUMENTS.contains(&whole.as_str()) && !required, "{whole} is not of the contract");
        }
    }
}

#[test]
fn workspace_core_has_its_16_tools_and_no_argument_of_other_groups() {
    let tools = tools("workspace-core");
    assert_eq!(names(&tools), CORE.into_iter().collect());
    for tool in &tools {
        let line = CONTRACT.iter().find(|line| contract(line).0 == tool.name).unwrap();
        let offered = offered(tool);
        for argument in contract(line).1 {
            let left_out = NOT_IN_CORE.contains(&argument.0.as_str()) || argument.0 == "secret_env";
            assert_eq!(offered.contains(&argument), !left_out, "{}.{}", tool.name, argument.0);
        }
    }
}

#[test]
fn workspace_core_does_not_speak_of_what_it_does_not_have() {
    for tool in tools("workspace-core") {
        let text = json!([tool.title, tool.description, tool.input_schema, tool.output_schema]).to_string();
        // The contract's own: the tree that `workspace_reset` restores.
        let text = if tool.name == "workspace_reset" { text.replace("snapshot", "") } else { text };
        for word in ["secret", "network", "shell", "service", "snapshot", "disk"] {
            assert!(!text.to_lowercase().contains(word), "{} says `{word}`: {text}", tool.name);
        }
    }
}

#[test]
fn workspace_extended_is_workspace_full_and_more() {
    let (full, extended) = (tools("workspace-full"), tools("workspace-extended"));
    let (full, extended) = (names(&full), names(&extended));
    assert!(full.is_subset(&extended));
    assert_eq!(extended.difference(&full).copied().collect::<Vec<_>>(), EXTENDED);
}

#[test]
fn vm_run_has_one_tool() {
    assert_eq!(names(&tools("vm-run")), BTreeSet::from(["vm_run"]));
}

/// The flags of the command line as they have always been, by command.
#[test]
fn commands_have_the_flags_of_the_contract() {
    let tools = tools("workspace-full");
    let flags = |command: &str| -> BTreeSet<String> {
        let tool = tools.iter().find(|tool| tool.cli.as_ref().is_some_and(|cli| cli.path.join(" ") == command));
        let tool = tool.unwrap_or_else(|| panic!("no command `{command}`"));
        let cli = tool.cli.as_ref().unwrap();
        let named = |name: &String| {
            cli.positionals.contains(name)
                || cli.omit.contains(name)
                || cli.trailing.as_ref() == Some(name)
                || cli.flags.iter().any(|flag| flag.argument == *name)
        };
        let plain = tool.input_schema["properties"].as_object().unwrap().keys().filter(|name| !named(name));
        let flags = cli.flags.iter().map(|flag| flag.name.clone()).chain(plain.map(|name| name.replace('_', "-")));
        let content_only =
            cli.human.as_ref().is_some_and(|human| human.content_only).then(|| "content-only".to_owned());
        flags.chain(content_only).chain(cli.id.as_ref().map(|_| "id-only".to_owned())).collect()
    };
    for (command, expected) in [
        ("run", "vcpu-count mem-mib timeout-seconds ttl-seconds network"),
        (
            "workspace create",
            "vcpu-count mem-mib ttl-seconds network-policy seed-path name label secret secret-file id-only",
        ),
        ("workspace list", ""),
        ("workspace update", "name clear-name label clear-label"),
        ("workspace status", ""),
        ("workspace start", ""),
        ("workspace stop", ""),
        ("workspace delete", ""),
        ("workspace logs", ""),
        ("workspace reset", "snapshot"),
        ("workspace exec", "timeout-seconds secret-env"),
        ("workspace sync push", "dest"),
        ("workspace export", "output"),
        ("workspace diff", ""),
        ("workspace patch apply", "patch patch-file"),
        ("workspace file list", "recursive"),
        ("workspace file read", "max-bytes content-only"),
        ("workspace file write", "text text-file"),
        ("workspace disk export", "output"),
        ("workspace disk list", "recursive"),
        ("workspace disk read", "max-bytes content-only"),
        ("workspace snapshot create", ""),
        ("workspace snapshot list", ""),
        ("workspace snapshot delete", ""),
        ("workspace shell open", "cwd cols rows secret-env id-only"),
        ("workspace shell read", "cursor max-chars plain wait-for-idle-ms"),
        ("workspace shell write", "input no-newline"),
        ("workspace shell signal", "signal"),
        ("workspace shell close", ""),
        (
            "workspace service start",
            "cwd ready-file ready-tcp ready-http ready-command ready-timeout-seconds ready-interval-ms secret-env publish",
        ),
        ("workspace service list", ""),
        ("workspace service status", ""),
        ("workspace service logs", "tail-lines all"),
        ("workspace service stop", ""),
    ] {
        let flags = flags(command);
        for flag in expected.split_whitespace() {
            assert!(flags.contains(flag), "`pyro {command}` has {flags:?}, not --{flag}");
        }
    }
}

/// What a model reads of a tool: hosts hand on the name, the description and the arguments' schema.
fn cost(tool: &ToolDef) -> usize {
    let seen = json!({ "name": tool.name, "description": tool.description, "inputSchema": tool.input_schema });
    tiktoken_rs::o200k_base_singleton().encode_ordinary(&seen.to_string()).len()
}

#[test]
fn tools_cost_a_model_few_tokens() {
    let mut table = String::new();
    for profile in ["vm-run", "workspace-core", "workspace-full", "workspace-extended"] {
        let tools = tools(profile);
        let costs: Vec<(usize, &str)> = tools.iter().map(|tool| (cost(tool), tool.name.as_str())).collect();
        let all: usize = costs.iter().map(|(cost, _)| cost).sum();
        let mean = all / tools.len();
        table.push_str(&format!("{profile}: {} tools, {all} tokens (o200k), {mean} a tool\n", tools.len()));
        for (cost, name) in &costs {
            table.push_str(&format!("{cost:>6} {name}\n"));
        }
        assert!(profile != "workspace-core" || all <= 2_000, "{table}");
        assert!(profile == "vm-run" || all <= 120 * tools.len(), "{table}");
    }
    insta::assert_snapshot!("tokens", table);
}

#[test]
fn tool_lists_are_reviewed() {
    for profile in ["vm-run", "workspace-core", "workspace-full", "workspace-extended"] {
        let tools = tools(profile);
        let seen: Vec<Value> = tools
            .iter()
            .map(|tool| {
                json!({
                    "name": tool.name,
                    "description": tool.description,
                    "input_schema": tool.input_schema,
                    "annotations": tool.annotations,
                })
            })
            .collect();
        insta::assert_json_snapshot!(format!("tools-{profile}"), seen);
    }
}
