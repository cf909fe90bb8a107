//! Compiled code: kept, checked, and never loaded when it is not what was written.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::{Home, call, text};

fn only_file(directory: &Path) -> PathBuf {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

async fn works(home: &Home) {
    let toolbox = home.toolbox("behaviours", "").unwrap();
    assert_eq!(text(&call(&toolbox, "echo", json!({})).await.unwrap()), "{}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_code_is_compiled_again() {
    let home = Home::new();
    works(&home).await;
    let cwasm = only_file(&home.path("cache/components"));
    let sound = std::fs::read(&cwasm).unwrap();
    assert_eq!(std::fs::metadata(&cwasm).unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(cwasm.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    let mut flipped = sound.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for damaged in [flipped, sound[..middle].to_vec(), Vec::new(), b"native code".to_vec()] {
        std::fs::write(&cwasm, &damaged).unwrap();
        works(&home).await;
        assert_ne!(std::fs::read(&cwasm).unwrap(), damaged, "it was not written again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sound_code_is_used_as_it_is() {
    let home = Home::new();
    works(&home).await;
    let cwasm = only_file(&home.path("cache/components"));
    let before = std::fs::metadata(&cwasm).unwrap();
    works(&home).await;
    let after = std::fs::metadata(&cwasm).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_others_can_write_are_not_believed() {
    let home = Home::new();
    works(&home).await;
    let cwasm = only_file(&home.path("cache/components"));
    let record = only_file(&home.path("state/components"));
    let before = std::fs::metadata(&cwasm).unwrap().ino();
    std::fs::set_permissions(record.parent().unwrap(), std::fs::Permissions::from_mode(0o777)).unwrap();
    works(&home).await;
    assert_ne!(std::fs::metadata(&cwasm).unwrap().ino(), before, "it was loaded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_cannot_be_written_only_costs_time() {
    let home = Home::new();
    std::fs::write(home.path("cache"), "a file in the way").unwrap();
    std::fs::write(home.path("state"), "a file in the way").unwrap();
    let services = home.services_elsewhere();
    let toolbox = pyro_components::Toolbox::load(&home.profile("behaviours", "").unwrap(), services).unwrap();
    assert_eq!(text(&call(&toolbox, "echo", json!({})).await.unwrap()), "{}");
}
