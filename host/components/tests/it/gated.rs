//! Gated interfaces: refused without their grants, kept within their scopes.

use std::os::unix::fs::{MetadataExt, symlink};

use pyro_components::{ToolError, Toolbox};
use serde_json::json;

use crate::support::{Home, call, text};

const GRANTS: [&str; 11] = [
    "machines",
    "exec",
    "workspaces",
    "files",
    "host-files",
    "terminals",
    "services",
    "ports",
    "environments",
    "machine-lifecycle",
    "secrets",
];

/// All grants as a TOML table, `scoped` in the place of one.
fn table(scoped: &str) -> String {
    let name = scoped.split(' ').next().unwrap();
    let entries: Vec<String> =
        GRANTS.iter().map(|grant| if *grant == name { scoped.to_owned() } else { format!("{grant} = {{}}") }).collect();
    format!("grants = {{ {} }}", entries.join(", "))
}

fn toolbox(home: &Home, grants: &str, given: &str, extra: &str) -> Toolbox {
    home.toolbox("gated", &format!("{grants}\nconfig = {{ text = {given:?} }}\n{extra}"))
        .unwrap_or_else(|error| panic!("{error}"))
}

async fn fails(toolbox: &Toolbox, tool: &str) -> ToolError {
    call(toolbox, tool, json!({})).await.unwrap_err()
}

#[test]
fn every_interface_is_refused_without_its_grant() {
    for missing in GRANTS {
        let home = Home::new();
        let granted: Vec<String> =
            GRANTS.iter().filter(|grant| **grant != missing).map(|grant| format!("{grant:?}")).collect();
        let error = match home.toolbox("gated", &format!("grants = [{}]", granted.join(", "))) {
            Ok(_) => panic!("it was loaded without `{missing}`"),
            Err(error) => error.to_string(),
        };
        let interfaces = match missing {
            "secrets" => "imports `pyro:secrets/store@0.1.0` and `pyro:secrets/bindings@0.1.0` without grants",
            _ => "without a grant",
        };
        let swapped = "imports `pyro:secrets/bindings@0.1.0` and `pyro:secrets/store@0.1.0` without grants";
        assert!(error.contains(interfaces) || error.contains(swapped), "{missing}: {error}");
        assert!(missing == "secrets" || error.contains(&format!("pyro:vm/{missing}@0.1.0")), "{missing}: {error}");
        let all: Vec<String> = GRANTS.iter().map(|grant| format!("{grant:?}")).collect();
        assert!(error.contains(&format!("grants = [{}]", all.join(", "))), "{missing}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_of_an_interface_need_no_grant() {
    let home = Home::new();
    let toolbox = home.toolbox("exports_host_files", "grants = [\"host-files\"]").unwrap_or_else(|e| panic!("{e}"));
    let error = fails(&toolbox, "count").await;
    assert_eq!(error.code, "denied", "{error}");
    assert!(error.message.contains("the profile has no `[host] read`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_before_something_is_asked_for() {
    let home = Home::new();
    let toolbox = toolbox(&home, &table("exec = {}"), "", "");
    assert!(!home.path("state/state.db").exists());
    assert!(text(&call(&toolbox, "list_environments", json!({})).await.unwrap()).contains("debian:12"));
    assert!(!home.path("state/state.db").exists(), "a listing opened the database");
    let error = fails(&toolbox, "everything").await;
    assert_eq!(error.code, "not_found", "{error}");
    assert!(home.path("state/state.db").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_of_environments_are_kept() {
    for (grant, tool) in
        [("machines", "make_ephemeral"), ("workspaces", "make_workspace"), ("machine-lifecycle", "make_machine")]
    {
        let home = Home::new();
        let grants = table(&format!("{grant} = {{ environments = [\"debian:*\"] }}"));
        let toolbox = toolbox(&home, &grants, "nowhere:0", "");
        let error = fails(&toolbox, tool).await;
        assert_eq!(error.code, "denied", "{tool}: {error}");
        assert!(error.message.contains(&format!("`nowhere:0` is outside the grant `{grant}`")), "{tool}: {error}");
        let open = toolbox_with(&home, "nowhere:0");
        let error = fails(&open, tool).await;
        assert_eq!(error.code, "unknown_environment", "{tool}: {error}");
    }
}

fn toolbox_with(home: &Home, given: &str) -> Toolbox {
    toolbox(home, &table("exec = {}"), given, "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_are_none_are_not_found() {
    for id in ["000000000000", "", "../../etc", "a\0b", &"0".repeat(100_000)] {
        let home = Home::new();
        let toolbox = toolbox_with(&home, &id.replace('\0', "\\u0000"));
        for tool in ["open_workspace", "open_machine"] {
            assert_eq!(fails(&toolbox, tool).await.code, "not_found", "{tool}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_checked_before_it_is_kept() {
    let home = Home::new();
    let file = home.path("allowed/token");
    std::fs::create_dir(home.path("allowed")).unwrap();
    std::fs::write(&file, "a value of some length").unwrap();
    std::fs::write(home.path("allowed/empty"), "").unwrap();
    let scope = table("secrets = { names = [\"TOKEN\", \"not a name\"] }");
    let allowed = home.path("allowed");
    for (given, code, words) in [
        ("OTHER=value".to_owned(), "denied", "secret `OTHER` is outside the grant `secrets`"),
        ("not a name=value".to_owned(), "invalid_argument", "does not match"),
        ("TOKEN=".to_owned(), "invalid_argument", "has 0 bytes"),
        ("TOKEN=@/etc/hostname".to_owned(), "denied", "outside the profile's `[host] read`"),
        (format!("TOKEN=@{}/empty", allowed.display()), "invalid_argument", "has 0 bytes"),
        // Everything is right but the workspace.
        (format!("TOKEN=@{}/token", allowed.display()), "not_found", "workspace"),
        ("TOKEN=value".to_owned(), "not_found", "workspace"),
    ] {
        let toolbox = toolbox(&home, &scope, &given, &format!("[host]\nread = [{allowed:?}]"));
        let error = fails(&toolbox, "set_secret").await;
        assert_eq!(error.code, code, "{given}: {error}");
        assert!(error.message.contains(words), "{given}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_of_the_host_goes_in_and_comes_out() {
    let home = Home::new();
    let (from, out) = (home.path("from"), home.path("out"));
    std::fs::create_dir_all(from.join("sub")).unwrap();
    std::fs::create_dir(&out).unwrap();
    std::fs::write(from.join("sub/a"), vec![b'a'; 3 << 20]).unwrap();
    symlink("sub/a", from.join("b")).unwrap();
    let host = format!("[host]\nread = [{from:?}]\nwrite = [{out:?}]");
    let grants = table("exec = {}");
    let given = |to: &str| format!("{} {}", from.display(), home.path(to).display());
    let toolbox_for = |given: &str| toolbox(&home, &grants, given, &host);

    let packed = call(&toolbox_for(&given("out/new/place")), "pack_host", json!({})).await.unwrap();
    assert_eq!(text(&packed), format!("3 {}", 3 << 20));
    let place = out.join("new/place");
    assert_eq!(std::fs::read(place.join("note")).unwrap(), b"packed by a plugin");
    assert_eq!(std::fs::read_link(place.join("link")).unwrap().to_str().unwrap(), "note");
    assert_eq!(std::fs::metadata(place.join("sub/tree.tar")).unwrap().mode() & 0o777, 0o640);
    let mut names = Vec::new();
    for entry in tar::Archive::new(std::fs::File::open(place.join("sub/tree.tar")).unwrap()).entries().unwrap() {
        names.push(entry.unwrap().path().unwrap().display().to_string());
    }
    assert_eq!(names, ["b", "sub/", "sub/a"]);
    let left: Vec<_> = std::fs::read_dir(out.join("new")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["place"], "the stage is left");

    for (to, code) in [
        ("out/new/place", "already_exists"),
        ("out/new/place/note/below", "not_found"),
        ("out", "already_exists"),
        ("elsewhere", "denied"),
        ("out/../elsewhere", "denied"),
    ] {
        let error = fails(&toolbox_for(&given(to)), "pack_host").await;
        assert_eq!(error.code, code, "{to}: {error}");
    }
    symlink(home.path("from"), out.join("way-out")).unwrap();
    let error = fails(&toolbox_for(&given("out/way-out/x")), "pack_host").await;
    assert_eq!(error.code, "denied", "{error}");
    assert!(!from.join("x").exists());

    let flooded = fails(&toolbox_for(from.to_str().unwrap()), "seed_flood").await;
    assert_eq!(flooded.code, "limit_exceeded", "{flooded}");
    let read = call(&toolbox_for(from.to_str().unwrap()), "read_archive", json!({})).await.unwrap();
    assert_eq!(text(&read), format!("directory 3 entries, {} bytes, read whole: true", 3 << 20));
}
