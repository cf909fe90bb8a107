//! What a person sees.

use std::io::Read;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::support::{Home, Run};

#[test]
fn help_teaches() {
    let home = Home::new();
    for (name, args) in [
        ("help", &["--help"][..]),
        ("help-run", &["run", "--help"]),
        ("help-mcp-serve", &["mcp", "serve", "--help"]),
        ("help-exit-codes", &["help", "exit-codes"]),
    ] {
        let run = home.run(args).expect_code(0);
        assert!(run.stderr.is_empty(), "{}", run.stderr);
        insta::assert_snapshot!(name, run.stdout);
    }
    // Every command has a help text with a first line of its own.
    for args in
        [&["env"][..], &["env", "pull"], &["profile", "check"], &["doctor"], &["mcp", "config"], &["completions"]]
    {
        let mut all = args.to_vec();
        all.push("--help");
        let run = home.run(&all).expect_code(0);
        assert!(run.stdout.lines().next().is_some_and(|line| !line.is_empty()), "{args:?}: {}", run.stdout);
    }
}

#[test]
fn the_version_is_on_one_line() {
    let run = Home::new().run(&["--version"]).expect_code(0);
    assert_eq!(run.stdout, format!("pyro {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_refused_before_anything_happens() {
    let home = Home::new();
    for (args, says) in [
        (&["run", "debian:12"][..], "<COMMAND>"),
        (&["run"], "<ENVIRONMENT>"),
        (&["run", "debian:12", "--mem-mib", "99999999999999999999", "--", "true"], "--mem-mib"),
        (&["run", "debian:12", "--mem-mb", "5", "--", "true"], "--mem-mib"),
        (&["env", "lst"], "list"),
        (&["mcp", "config", "--host", "emacs"], "opencode"),
        (&["--engine", "vbox", "doctor"], "qemu"),
        (&["-q", "-v", "doctor"], "--quiet"),
        (&["vmm"], "pyro itself"),
    ] {
        let run = home.run(args).expect_code(2);
        assert!(run.stderr.contains(says), "{args:?}: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{args:?}: {}", run.stdout);
    }
    assert!(!home.path().join("pyro").exists(), "something was made");
}

#[test]
fn the_engine_may_be_named_in_the_environment() {
    let home = Home::new();
    let output = home.command(&["doctor"]).env("PYRO_ENGINE", "vbox").output().unwrap();
    let run = Run::from(output).expect_code(2);
    assert!(run.stderr.contains("vbox"), "{}", run.stderr);
}

#[track_caller]
fn expect_failure(run: &Run, says: &[&str]) {
    assert!(run.stdout.is_empty(), "{}", run.stdout);
    assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
    for text in says {
        assert!(run.stderr.contains(text), "{text:?} is not in {}", run.stderr);
    }
}

#[test]
fn an_unknown_profile_names_the_one_that_was_meant() {
    let home = Home::new();
    for args in [&["profile", "check", "vm-rum"][..], &["mcp", "serve", "--profile", "vm-rum"]] {
        expect_failure(&home.run(args).expect_code(1), &["vm-rum", "hint:", "vm-run"]);
    }
    // Where an exit code could be the command's, pyro's own failure has one that is not.
    let run = home.run(&["run", "debian:12", "--profile", "vm-rum", "--", "true"]).expect_code(125);
    expect_failure(&run, &["vm-rum", "hint:"]);
}

#[test]
fn a_profile_is_refused_wherever_it_stands() {
    let home = Home::new();
    home.write("bad.toml", "schema = 1\nname = \n");
    for (profile, says) in [("vm-rum", "vm-run"), ("bad.toml", "bad.toml:2")] {
        let behind = home.run(&["workspace", "list", "--profile", profile]).expect_code(1);
        expect_failure(&behind, &[says]);
        for args in [
            &["workspace", "list"][..],
            &["workspace", "list", "--help"],
            &["--help"],
            &["help", "workspace"],
            &["completions", "bash"],
            &[],
        ] {
            let run = home.run(&[&["--profile", profile], args].concat()).expect_code(1);
            expect_failure(&run, &[]);
            assert_eq!(run.stderr, behind.stderr, "{args:?}");
        }
        let run = home.run(&["--profile", profile, "run", "debian:12", "--", "true"]).expect_code(125);
        assert_eq!(run.stderr, behind.stderr);
        // What is wrong by itself is wrong with every profile.
        home.run(&["--profile", profile, "--engine", "vbox", "workspace", "list"]).expect_code(2);
    }
}

#[test]
fn mistakes_in_a_profile_are_all_shown_with_their_lines() {
    let home = Home::new();
    home.write("bad.toml", "schema = 1\nname = \"x\"\n[components.exec]\nsorce = \"builtin:exec\"\ngrnts = []\n");
    let run = home.run(&["profile", "check", "bad.toml"]).expect_code(1);
    expect_failure(&run, &["bad.toml:4", "sorce", "bad.toml:5", "grnts"]);
    let run = home.run(&["profile", "check", "bad.toml", "--json"]).expect_code(1);
    let report = run.json();
    assert_eq!(report["ok"], false);
    let found = report["diagnostics"].as_array().unwrap().iter().any(|finding| {
        finding["line"] == 4 && finding["code"] == "unknown_key" && finding["hint"] == "did you mean `source`?"
    });
    assert!(found, "{report}");

    home.write("broken.toml", "schema = 1\nname = \n");
    expect_failure(&home.run(&["profile", "check", "broken.toml"]).expect_code(1), &["broken.toml:2"]);
    expect_failure(&home.run(&["mcp", "serve", "--profile", "broken.toml"]).expect_code(1), &["broken.toml:2"]);
    expect_failure(&home.run(&["profile", "check", "./nowhere.toml"]).expect_code(1), &["nowhere.toml"]);
}

#[test]
fn a_profile_is_checked_and_shown() {
    let home = Home::new();
    let run = home.run(&["profile", "check", "vm-run"]).expect_code(0);
    assert_eq!(run.stdout, "profile `vm-run` is fine: 1 tool\n");
    let run = home.run(&["profile", "check", "vm-run", "--json"]).expect_code(0);
    assert_eq!(run.json()["ok"], true);

    let run = home.run(&["profile", "show", "vm-run"]).expect_code(0);
    for text in ["profile vm-run", "component exec", "sha256:", "tool vm_run", "machines"] {
        assert!(run.stdout.contains(text), "{text:?} is not in {}", run.stdout);
    }
    let shown = home.run(&["profile", "show", "vm-run", "--json"]).expect_code(0).json();
    assert_eq!(shown["tools"][0]["name"], "vm_run", "{shown}");
    assert!(!home.path().join("pyro").exists(), "looking made something");
}

#[test]
fn a_component_without_a_tool_list_is_asked_for_it() {
    let home = Home::new();
    let (_, packed) = pyro::BUILTINS.components.iter().find(|(name, _)| *name == "exec").unwrap();
    // A section of another name is none.
    let mut wasm = packed.to_vec();
    let at = wasm.windows(13).position(|window| window == b"pyro:manifest").unwrap();
    wasm[at] = b'x';
    std::fs::write(home.path().join("exec.wasm"), wasm).unwrap();
    let text = "schema = 1\nname = \"asked\"\n[host]\nread = [\"nowhere\"]\n\
                [components.exec]\nsource = \"exec.wasm\"\ngrants = [\"machines\", \"exec\"]\n";
    home.write("asked.toml", text);
    let run = home.run(&["profile", "show", "asked.toml"]).expect_code(0);
    assert!(run.stdout.contains("tool vm_run (component exec)"), "{}", run.stdout);
    let run = home.run(&["profile", "check", "asked.toml"]).expect_code(0);
    assert_eq!(run.stdout, "profile `asked` is fine: 1 tool\n");
    assert!(run.stderr.contains("nowhere` of [host] is no directory here"), "{}", run.stderr);
}

/// Those of components from files are compiled when a profile is loaded, those of built-in ones by their first call.
#[test]
fn the_schemas_of_the_built_in_components_can_be_compiled() {
    let home = Home::new();
    for (name, wasm) in pyro::BUILTINS.components {
        std::fs::write(home.path().join(format!("{name}.wasm")), wasm).unwrap();
    }
    let (_, text) = pyro::BUILTINS.profiles.iter().find(|(name, _)| *name == "workspace-extended").unwrap();
    let lines = text.lines().map(|line| match line.strip_prefix("source = \"builtin:") {
        Some(name) => format!("source = \"{}.wasm\"\n", name.trim_end_matches('"')),
        None => format!("{line}\n"),
    });
    let text: String = lines.collect();
    assert!(!text.contains("builtin:"), "{text}");
    home.write("files.toml", &text);
    let run = home.run(&["profile", "check", "files.toml"]).expect_code(0);
    assert_eq!(run.stdout, "profile `workspace-extended` is fine: 57 tools\n");
}

#[test]
fn only_a_file_of_a_components_size_is_packed() {
    let home = Home::new();
    let large = home.write("large.wasm", "");
    std::fs::File::options().write(true).open(&large).unwrap().set_len(5 << 30).unwrap();
    let pipe = large.with_file_name("pipe.wasm");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (file, says) in [
        ("large.wasm", "more than 268435456 bytes"),
        ("pipe.wasm", "not a regular file"),
        ("none.wasm", "no file `none.wasm`"),
    ] {
        let started = std::time::Instant::now();
        expect_failure(&home.run(&["plugin", "pack", file]).expect_code(1), &[says]);
        assert!(started.elapsed().as_secs() < 5, "{file}");
    }
}

#[test]
fn a_refused_argument_is_pyros_failure_and_not_the_commands() {
    let home = Home::new();
    for (args, says) in [
        (&["--vcpu-count", "0"][..], "vcpu_count"),
        (&["--mem-mib", "1"], "mem_mib"),
        (&["--timeout-seconds", "0"], "timeout_seconds"),
    ] {
        let mut all = vec!["run", "debian:12"];
        all.extend(args);
        all.extend(["--", "true"]);
        expect_failure(&home.run(&all).expect_code(125), &[says, "hint:"]);
    }
    let run = home.run(&["run", "debian:21", "--", "true"]).expect_code(125);
    expect_failure(&run, &["debian:21", "hint:", "debian:12"]);
    let run = home.run(&["run", "debian:21", "--json", "--", "true"]).expect_code(125);
    assert_eq!(run.json()["error"]["code"], "unknown_environment", "{}", run.stdout);
}

#[test]
fn an_interrupt_ends_a_run() {
    let home = Home::new();
    let pid_file = home.sleeping_program("mmdebstrap");
    for (signal, code) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::TERM, 143)] {
        let _ = std::fs::remove_file(&pid_file);
        let mut child = home.command(&["run", "debian:12", "--", "true"]).spawn().unwrap();
        let builder = crate::support::wait_for_pid(&pid_file);
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{stderr}");
        assert!(stderr.contains("interrupted"), "{stderr}");
        crate::support::wait_for_end(builder);
    }
}

#[test]
fn environments_are_listed() {
    let home = Home::new();
    let list = home.run(&["env", "list", "--json"]).expect_code(0).json();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"debian:12") && names.is_sorted(), "{names:?}");
    assert!(list.as_array().unwrap().iter().all(|item| item["installed"] == false), "{list}");
    let run = home.run(&["env", "list"]).expect_code(0);
    assert_eq!(run.stdout.lines().count(), names.len());
    assert!(run.stdout.contains("not installed"), "{}", run.stdout);

    let report = home.run(&["env", "inspect", "debian:12", "--json"]).expect_code(0).json();
    assert_eq!(report["name"], "debian:12");
    assert!(report["packages"].as_array().unwrap().contains(&"git".into()), "{report}");
    home.run(&["env", "inspect", "debian:12"]).expect_code(0);
    let pruned = home.run(&["env", "prune", "--json"]).expect_code(0).json();
    assert_eq!(pruned["freed_bytes"], 0, "{pruned}");
    for verb in ["pull", "inspect"] {
        expect_failure(&home.run(&["env", verb, "debian:13"]).expect_code(1), &["debian:13", "hint:", "debian:12"]);
    }
}

#[test]
fn an_interrupted_pull_is_undone() {
    let home = Home::new();
    let pid_file = home.sleeping_program("mmdebstrap");
    let mut child = home.command(&["env", "pull", "debian:12-base"]).spawn().unwrap();
    let builder = crate::support::wait_for_pid(&pid_file);
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{stderr}");
    crate::support::wait_for_end(builder);
    let list = home.run(&["env", "list", "--json"]).expect_code(0).json();
    assert!(list.as_array().unwrap().iter().all(|item| item["installed"] == false), "{list}");
}

#[test]
fn the_doctor_has_a_verdict_on_everything_and_a_fix_for_what_is_wrong() {
    let home = Home::new();
    let run = home.run(&["doctor", "--json"]);
    let report = run.json();
    let failed = report["checks"].as_array().unwrap().iter().any(|check| check["verdict"] == "failed");
    assert_eq!(run.code, Some(i32::from(failed)), "{report}");
    assert_eq!(report["ok"], !failed);
    let names: Vec<&str> = report["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    for name in ["platform", "engine", "qemu", "kvm", "mmdebstrap", "state directory", "memory"] {
        assert!(names.contains(&name), "{names:?}");
    }

    // Without anything in PATH there is nothing to run a microVM with.
    let output = home.command(&["doctor", "--json"]).env("PATH", "/nowhere").output().unwrap();
    let report = Run::from(output).expect_code(1).json();
    let qemu = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "qemu").unwrap();
    assert_eq!(qemu["verdict"], "failed");
    assert!(qemu["fix"].as_str().unwrap().contains("apt-get install"), "{qemu}");

    let output = home.command(&["doctor"]).env("PATH", "/nowhere").output().unwrap();
    let run = Run::from(output).expect_code(1);
    assert!(run.stdout.contains("FAILED") && run.stdout.contains("fix:"), "{}", run.stdout);
}

#[test]
fn completions_know_the_commands() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let run = home.run(&["completions", shell]).expect_code(0);
        assert!(run.stdout.contains("doctor") && run.stdout.contains("vcpu-count"), "{shell}");
    }
    let mut bash = std::process::Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    let script = home.run(&["completions", "bash"]).stdout;
    std::io::Write::write_all(&mut bash.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success(), "bash cannot read its completions");
}

#[test]
fn hosts_are_told_absolute_paths() {
    let home = Home::new();
    let profile = home.write("own.toml", include_str!("../../../../profiles/vm-run.toml"));
    for host in ["claude", "codex", "gemini", "opencode", "vscode", "cursor", "zed", "goose"] {
        let run = home.run(&["mcp", "config", "--host", host, "--profile", "own.toml"]).expect_code(0);
        assert!(run.stdout.contains(profile.to_str().unwrap()), "{host}: {}", run.stdout);
        assert!(run.stdout.contains(env!("CARGO_BIN_EXE_pyro")), "{host}: {}", run.stdout);
        assert!(run.stderr.contains("put this") || run.stderr.contains("add this"), "{host}: {}", run.stderr);
    }
    expect_failure(
        &home.run(&["mcp", "config", "--host", "claude", "--profile", "vm-rum"]).expect_code(1),
        &["vm-rum"],
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let home = Home::new();
    let mut child = home.command(&["completions", "zsh"]).spawn().unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let status = child.wait().unwrap();
    assert!(stderr.is_empty(), "{stderr}");
    // The script may have fitted into the pipe before it was closed.
    assert!(matches!(status.code(), Some(0 | 141)), "{status}");
}

#[test]
fn output_that_cannot_be_written_is_pyros_failure() {
    let home = Home::new();
    for (args, code) in [(&["run", "debian:21", "--json", "--", "true"][..], 125), (&["profile", "check", "vm-run"], 1)]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let run = Run::from(home.command(args).stdout(full).output().unwrap()).expect_code(code);
        assert!(run.stderr.contains("cannot write to standard output"), "{}", run.stderr);
    }
}

#[test]
fn a_shell_that_is_not_there_was_never_attached() {
    let home = Home::new();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = || std::fs::File::options().read(true).write(true).open(&name).unwrap();
    let mut command = home.command(&["workspace", "shell", "attach", "nowhere", "nosuch"]);
    let run = Run::from(command.stdin(terminal()).stdout(terminal()).output().unwrap()).expect_code(1);
    expect_failure(&run, &["nowhere"]);
}

#[test]
fn a_log_filter_that_is_none_is_said_once_and_replaced() {
    let home = Home::new();
    let output = home.command(&["env", "list"]).env("PYRO_LOG", "a=b=c").output().unwrap();
    let run = Run::from(output).expect_code(0);
    assert_eq!(run.stderr.matches("warning: PYRO_LOG").count(), 1, "{}", run.stderr);
}
