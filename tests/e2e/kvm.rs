//! The same user's view on the KVM engine. It needs a KVM that runs stock kernels, which most machines that build this do
//! not have, so these are run in the lab: `cargo xtask test` does.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use pyro_tests::{Client, Home};
use serde_json::{Value, json};

use crate::workspaces::whole_session;

/// The lab is a software CPU: everything takes several times as long.
const CLEAN: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs a KVM that runs stock kernels: run in the lab"]
fn the_self_test_passes_and_auto_takes_kvm() {
    let home = Home::new();
    let doctor = home.run(&["doctor", "--json"]);
    doctor.expect_code(0);
    let report: Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let detail = |name: &str| {
        let checks = report["checks"].as_array().expect("checks");
        let check = checks.iter().find(|check| check["name"] == name).expect("the check");
        (check["verdict"].clone(), check["detail"].as_str().unwrap_or_default().to_owned())
    };
    assert!(detail("engine").1.starts_with("microvm_kvm"), "{report}");
    assert_eq!(detail("kvm").0, "ok", "{report}");
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run in the lab"]
fn a_command_runs_on_kvm() {
    let home = Home::new();
    let run = home.run(&["run", "--engine", "kvm", "debian:12", "--", "uname", "-a"]);
    run.expect_code(0);
    assert!(run.text().starts_with("Linux ") && run.text().contains("cloud-amd64"), "{}", run.text());
    // What `auto` takes, and with megabytes both ways.
    let input: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
    let run = home.run_with_input(&["run", "debian:12", "--", "cat"], Some(&input));
    run.expect_code(0);
    assert!(run.stdout == input, "{} bytes came back of {}", run.stdout.len(), input.len());
    home.expect_clean_within(CLEAN);
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run in the lab"]
fn a_client_of_the_server_runs_a_command_on_kvm() {
    let home = Home::new();
    let mut client = Client::initialized(&home, &["--profile", "vm-run", "--engine", "kvm"]);
    let arguments = json!({ "environment": "debian:12", "command": "git --version; exit 3" });
    let result = client.call("vm_run", arguments);
    let structured = &result["structuredContent"];
    assert_eq!(structured["execution_mode"], "microvm_kvm", "{result}");
    assert_eq!(structured["exit_code"], 3);
    assert!(structured["stdout"].as_str().is_some_and(|text| text.starts_with("git version")), "{structured}");
    assert!(client.close_within(CLEAN).success());
    home.expect_clean_within(CLEAN);
}

/// What an operator takes from the CPU, no guest sees.
#[test]
#[ignore = "needs a KVM that runs stock kernels: run in the lab"]
fn an_operator_masks_features_of_the_cpu() {
    let home = Home::new().on_engine("kvm");
    let has_bmi1 = || home.run(&["run", "debian:12", "--", "grep -qw bmi1 /proc/cpuinfo"]).code();
    assert_eq!(has_bmi1(), Some(0), "the lab's CPU has it");
    fs::write(home.path().join("kvm.toml"), "[[cpuid_masks]]\nleaf = 7\nebx = 0x8\n").expect("the home is writable");
    assert_eq!(has_bmi1(), Some(1));
    fs::write(home.path().join("kvm.toml"), "mask = 1\n").expect("the home is writable");
    let run = home.run(&["run", "debian:12", "--", "true"]);
    assert!(run.stderr.contains("kvm.toml") && run.code() == Some(125), "{run:?}");
    home.expect_clean_within(CLEAN);
}

#[test]
#[ignore = "needs a KVM that runs stock kernels: run in the lab"]
fn a_whole_session_on_kvm() {
    whole_session(&Home::new().on_engine("kvm"), CLEAN);
}

/// A workspace's disk is a raw image that outlives its machines, unlike the overlay of the tests above.
#[test]
#[ignore = "needs a KVM that runs stock kernels: run in the lab"]
fn a_workspace_keeps_its_disk_from_one_machine_on_kvm_to_the_next() {
    let home = Home::new().on_engine("kvm");
    let workspace = |words: &[&str]| {
        let run = home.run(&[&["workspace"], words].concat());
        run.expect_code(0);
        run.text().to_owned()
    };
    let id = workspace(&["create", "debian:12", "--id-only"]);
    let id = id.trim();
    workspace(&["file", "write", id, "notes.txt", "--text", "kept\n"]);
    workspace(&["exec", id, "--", "head -c 2000000 /dev/urandom > big && sha256sum big > sums && sync"]);
    let status: Value = serde_json::from_str(&workspace(&["status", id, "--json"])).expect("JSON");
    assert_eq!(status["execution_mode"], "microvm_kvm", "{status}");

    // What it costs, and where the kernel accounts it: in a group that is gone with the machine.
    let report: Value = serde_json::from_str(home.run(&["doctor", "--json"]).text()).expect("JSON");
    let costs = &report["machines"][0]["statistics"];
    assert!(costs["kvm"]["drives"][0]["bytes_written"].as_u64() > Some(2_000_000), "{report}");
    assert!(costs["kvm"]["mmio_write_exits"].as_u64() > Some(0) && costs["resident_bytes"].as_u64() > Some(1 << 20));
    let group = PathBuf::from(costs["cgroup"].as_str().expect("root may make a group"));
    let tasks = fs::read_to_string(group.join("cgroup.procs")).expect("the group is there");
    assert!(tasks.lines().count() > 0, "nobody is in {}", group.display());

    workspace(&["stop", id]);
    assert!(!group.exists(), "{} is left", group.display());
    workspace(&["start", id]);
    assert_eq!(workspace(&["file", "read", id, "notes.txt", "--content-only"]), "kept\n");
    assert_eq!(workspace(&["exec", id, "--", "sha256sum -c sums"]), "big: OK\n");
    workspace(&["delete", id]);
    home.expect_clean_within(CLEAN);
}
