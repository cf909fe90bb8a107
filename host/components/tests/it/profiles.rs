//! Manifests with mistakes, and what is said about them: `tests/ui/profiles/NAME.toml` and `NAME.err` beside it.
//!
//! `BLESS=1` writes the `.err` files anew; review the difference. A `.toml` without mistakes has an empty `.err`.

use std::path::Path;

use pyro_components::{Builtins, ResolvedProfile, pack};

use crate::support::guest;

/// `builtin:exec` in these manifests is the guest `uses_machines`, `builtin:echo` is `behaviours`.
fn builtins() -> Builtins {
    let packed = |name: &str| -> &'static [u8] { Vec::leak(pack(&guest(name)).unwrap()) };
    let components = vec![("exec", packed("uses_machines")), ("echo", packed("behaviours"))];
    Builtins { components: Vec::leak(components), profiles: &[("built-in", "schema = 1\nname = \"built-in\"\n")] }
}

#[test]
fn every_mistake_is_named_with_its_line() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui/profiles");
    let builtins = builtins();
    let bless = std::env::var_os("BLESS").is_some();
    let mut cases = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        cases += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let found = match ResolvedProfile::from_toml(&text, name, &directory, &builtins) {
            Ok(_) => String::new(),
            Err(error) => format!("{error}\n").replace(directory.to_str().unwrap(), "[profiles]"),
        };
        let expected_path = path.with_extension("err");
        if bless {
            std::fs::write(&expected_path, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_else(|error| format!("no .err file: {error}"));
        if expected != found {
            wrong.push(format!("{name}: expected\n{expected}\nfound\n{found}"));
        }
    }
    assert!(cases >= 10, "only {cases} manifests in {}", directory.display());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_profile_is_opened_by_name_or_by_path() {
    let builtins = builtins();
    let error = |reference: &str| ResolvedProfile::open(reference, &builtins).unwrap_err().to_string();
    assert!(error("bulit-in").contains("did you mean `built-in`?"));
    assert!(error("./nowhere.toml").contains("./nowhere.toml: no such file"));
    assert!(error("/").contains("not a regular file"));
    assert!(error("/dev/zero").contains("not a regular file"));
    // The built-in one is found, and is a profile without components.
    assert!(error("built-in").starts_with("built-in: the profile names no component"), "{}", error("built-in"));
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("p.toml");
    std::fs::write(&path, b"name = \"\xff\"").unwrap();
    assert!(error(path.to_str().unwrap()).contains("not UTF-8 at byte 8"));
    std::fs::write(&path, "#".repeat(300_000)).unwrap();
    assert!(error(path.to_str().unwrap()).contains("more than 262144 bytes"));
}

#[test]
fn a_description_says_what_a_profile_amounts_to() {
    let text = "schema = 1\nname = \"p\"\n[components.exec]\nsource = \"builtin:exec\"\n\
                grants = { machines = {}, exec = { argv = [\"rg *\"] } }\n[tool.use_machine]\nfixed = { n = 2 }";
    let profile = ResolvedProfile::from_toml(text, "p.toml", Path::new("."), &builtins()).unwrap();
    let described = serde_json::to_value(profile.describe()).unwrap();
    assert_eq!(described["components"][0]["grants"]["exec"]["argv"][0], "rg *");
    assert_eq!(described["components"][0]["limits"]["memory_mib"], 64);
    assert_eq!(described["tools"][0]["name"], "use_machine");
    assert_eq!(described["tools"][0]["fixed"]["n"], 2);
    assert_eq!(described["tools"][0]["arguments"], serde_json::json!([]));
    assert_eq!(described["tools"][0]["annotations"]["open_world"], false);
}
