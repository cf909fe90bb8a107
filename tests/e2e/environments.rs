//! `pyro env`.

use pyro_tests::Home;

#[test]
fn the_list_has_the_catalogue_and_says_what_is_installed() {
    let home = Home::new();
    let list = home.run(&["env", "list", "--json"]);
    list.expect_code(0);
    let list = list.json();
    let names: Vec<(&str, bool)> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| (item["name"].as_str().expect("a name"), item["installed"].as_bool().expect("a flag")))
        .collect();
    assert!(names.contains(&("debian:12", true)), "{names:?}");
    for name in ["debian:12-base", "debian:12-build"] {
        assert!(names.iter().any(|(listed, _)| *listed == name), "{names:?}");
    }
    assert!(names.is_sorted(), "{names:?}");
}

#[test]
fn a_pull_of_what_is_there_changes_nothing() {
    let home = Home::new();
    let before = home.run(&["env", "inspect", "debian:12", "--json"]).json();
    home.run(&["env", "pull", "debian:12"]).expect_code(0);
    assert_eq!(home.run(&["env", "inspect", "debian:12", "--json"]).json(), before);
}

#[test]
fn an_unknown_environment_is_named_with_the_known_ones() {
    let home = Home::empty();
    for args in [["env", "pull", "debian:13"], ["env", "inspect", "debian:13"]] {
        let run = home.run(&args);
        run.expect_code(1);
        assert!(run.stdout.is_empty());
        assert!(run.stderr.contains("debian:13"), "{}", run.stderr);
        assert!(run.stderr.contains("debian:12-base"), "{}", run.stderr);
        assert!(run.stderr.contains("did you mean"), "{}", run.stderr);
    }
}
