//! `pyro run`: a command in a microVM, from the command line.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::thread;
use std::time::{Duration, Instant};

use pyro_tests::Home;
use rustix::process::Signal;

const CLEAN: Duration = Duration::from_secs(5);

#[test]
fn prints_what_the_command_prints_and_exits_as_it_exits() {
    let home = Home::new();
    let run = home.run(&["run", "debian:12", "--", "git", "--version"]);
    run.expect_code(0);
    assert!(run.text().starts_with("git version 2."), "{}", run.text());

    let run = home.run(&["run", "debian:12", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    run.expect_code(7);
    assert_eq!(run.text(), "out\n");
    assert!(run.stderr.contains("err\n"), "{}", run.stderr);
    home.expect_clean_within(CLEAN);
}

#[test]
fn says_on_request_which_engine_it_took_and_why() {
    let home = Home::new().on_engine("qemu");
    let run = home.run(&["run", "-v", "debian:12", "--", "true"]);
    run.expect_code(0);
    assert!(run.stderr.contains("chose the engine engine=\"microvm_qemu_tcg\" reason=asked for"), "{}", run.stderr);
    home.expect_clean_within(CLEAN);
}

#[test]
fn the_command_runs_in_a_machine_of_its_own() {
    let home = Home::new();
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux has it");
    let run = home.run(&[
        "run",
        "debian:12",
        "--",
        "cat /proc/sys/kernel/random/boot_id; uname -r; ps -e 2>/dev/null | wc -l; id -un",
    ]);
    run.expect_code(0);
    let lines: Vec<&str> = run.text().lines().collect();
    assert_ne!(lines[0], host.trim());
    assert!(lines[1].contains("cloud-amd64"), "{}", lines[1]);
    assert_eq!(lines.last(), Some(&"root"));
}

#[test]
fn several_arguments_are_passed_as_they_are() {
    let home = Home::new();
    let run = home.run(&["run", "debian:12", "--", "printf", "%s|", "a b", "$HOME", "it's", "*"]);
    run.expect_code(0);
    assert_eq!(run.text(), "a b|$HOME|it's|*|");
}

#[test]
fn standard_input_reaches_the_command() {
    let home = Home::new();
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let run = home.run_with_input(&["run", "debian:12", "--", "cat"], Some(&input));
    run.expect_code(0);
    assert!(run.stdout == input, "{} bytes came back of {}", run.stdout.len(), input.len());
}

#[test]
fn a_command_over_its_time_is_killed_and_keeps_its_output() {
    let home = Home::new();
    let run = home.run(&[
        "run",
        "debian:12",
        "--timeout-seconds",
        "5",
        "--",
        "sh",
        "-c",
        "echo before; sleep 60 & sleep 60; echo after",
    ]);
    run.expect_code(124);
    assert_eq!(run.text(), "before\n");
    assert!(run.stderr.contains("5 s"), "{}", run.stderr);
    assert!(run.elapsed < Duration::from_secs(30), "{:?}", run.elapsed);
    home.expect_clean_within(CLEAN);
}

#[test]
fn json_is_the_structured_result() {
    let home = Home::new();
    let run = home.run(&["run", "debian:12", "--json", "--", "echo hello; echo oops >&2; exit 3"]);
    run.expect_code(3);
    let result = run.json();
    assert_eq!(result["stdout"], "hello\n");
    assert_eq!(result["stderr"], "oops\n");
    assert_eq!(result["exit_code"], 3);
    assert_eq!(result["environment"], "debian:12");
    assert_eq!(result["timed_out"], false);
    assert_eq!(result["cleanup"]["deleted"], true);
    let mode = result["execution_mode"].as_str().expect("a mode");
    assert!(mode.starts_with("microvm_"), "{mode}");
}

#[test]
fn a_hundred_megabytes_stream_through() {
    let home = Home::new();
    let run = home.run(&["run", "debian:12", "--timeout-seconds", "120", "--", "head -c 100000000 /dev/zero"]);
    run.expect_code(0);
    assert_eq!(run.stdout.len(), 100_000_000);
}

#[test]
fn output_streams_while_the_command_runs() {
    let home = Home::new();
    let mut running = home.start(&["run", "debian:12", "--", "echo first; sleep 20; echo second"]);
    let mut stdout = BufReader::new(running.child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("readable");
    assert_eq!(line, "first\n");
    assert!(running.child.try_wait().expect("waitable").is_none(), "the command ended before its output was seen");
}

#[test]
fn an_interrupt_ends_the_command_and_the_machine() {
    let home = Home::new();
    let mut running = home.start(&["run", "debian:12", "--", "echo started; sleep 600"]);
    let mut stdout = BufReader::new(running.child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("readable");
    running.signal(Signal::INT);
    let status = running.wait_within(CLEAN);
    assert_eq!(status.code(), Some(130));
    home.expect_clean_within(CLEAN);
}

#[test]
fn a_killed_client_leaves_nothing_behind() {
    let home = Home::new();
    let mut running = home.start(&["run", "debian:12", "--", "echo started; sleep 600"]);
    let mut stdout = BufReader::new(running.child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("readable");
    running.signal(Signal::KILL);
    running.wait_within(CLEAN);
    home.expect_clean_within(CLEAN);
}

/// Kills the process of this home whose command line contains `what` once the
/// command runs, and returns what `pyro run` said.
fn kill_during_run(what: &str) -> (Option<i32>, String) {
    let home = Home::new();
    let mut running = home.start(&["run", "debian:12", "--", "echo started; sleep 600"]);
    let mut stdout = BufReader::new(running.child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("readable");
    let (pid, _) = home
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains(what))
        .unwrap_or_else(|| panic!("no process with {what} in {:?}", home.processes()));
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, Signal::KILL).expect("it is running");
    let status = running.wait_within(CLEAN);
    let mut stderr = String::new();
    running.child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("readable");
    home.expect_clean_within(CLEAN);
    (status.code(), stderr)
}

#[test]
fn a_killed_vm_process_is_a_clear_error() {
    let (code, stderr) = kill_during_run(" vmm ");
    assert_eq!(code, Some(125), "{stderr}");
    assert!(stderr.contains("error:"), "{stderr}");
}

#[test]
fn a_killed_virtual_machine_monitor_is_a_clear_error() {
    let (code, stderr) = kill_during_run("qemu-system");
    assert_eq!(code, Some(125), "{stderr}");
    assert!(stderr.contains("error:"), "{stderr}");
}

#[test]
fn a_guest_panic_is_a_clear_error() {
    let home = Home::new();
    let run = home.run(&[
        "run",
        "debian:12",
        "--",
        "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60",
    ]);
    run.expect_code(125);
    assert!(run.stderr.contains("panic"), "{}", run.stderr);
    assert!(run.elapsed < Duration::from_secs(30), "{:?}", run.elapsed);
    home.expect_clean_within(CLEAN);
}

#[test]
fn a_copy_of_the_binary_works_elsewhere() {
    let home = Home::new();
    let program = home.command(&["--version"]).get_program().to_owned();
    let copy = home.path().join("elsewhere");
    fs::copy(program, &copy).expect("a file");
    let output = std::process::Command::new(&copy)
        .args(["run", "debian:12-base", "--help"])
        .env_clear()
        .env("PYRO_HOME", home.path())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = std::process::Command::new(&copy)
        .args(["run", "debian:12", "--", "echo", "here"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("PYRO_HOME", home.path())
        .current_dir("/")
        .output()
        .expect("it runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "here\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn two_commands_run_at_the_same_time() {
    let home = Home::new();
    let begin = Instant::now();
    thread::scope(|scope| {
        for name in ["one", "two"] {
            let home = &home;
            scope.spawn(move || {
                let run = home.run(&["run", "debian:12", "--", "sh", "-c", &format!("sleep 5; echo {name}")]);
                run.expect_code(0);
                assert_eq!(run.text(), format!("{name}\n"));
            });
        }
    });
    // Two boots and one sleep; two sleeps one after the other would take longer.
    assert!(begin.elapsed() >= Duration::from_secs(5));
    home.expect_clean_within(CLEAN);
}

#[test]
fn the_guest_sees_the_size_that_was_asked_for() {
    let home = Home::new();
    let run = home.run(&[
        "run",
        "debian:12",
        "--vcpu-count",
        "2",
        "--mem-mib",
        "512",
        "--",
        "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo",
    ]);
    run.expect_code(0);
    let lines: Vec<u64> = run.text().lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(lines[0], 2);
    assert!((400_000..=524_288).contains(&lines[1]), "{lines:?}");
}
