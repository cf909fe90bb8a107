use std::os::unix::fs::symlink;

use super::*;
use crate::NoProgress;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cache");
    (dir, Store { root })
}

/// Other tests start processes, and between fork and exec those hold this one's locks too.
fn eventually(mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn install(store: &Store, text: &str) -> Build<String> {
    let slot = store.slot("kind", "key");
    let lock = slot.lock("key", &NoProgress).unwrap();
    let staging = store.stage().unwrap();
    fs::write(staging.entry().join("file"), text).unwrap();
    slot.install(&lock, staging, "recipe".to_owned(), &[], text.to_owned()).unwrap()
}

#[test]
fn the_newest_build_is_the_current_one_and_unused_ones_go() {
    let (_dir, store) = store();
    let first = install(&store, "one");
    let second = install(&store, "two");
    let slot = store.slot("kind", "key");
    assert_eq!(slot.current::<String>().unwrap().unwrap().manifest.details, "two");
    assert!(first.dir.exists());
    let first_dir = first.dir.clone();
    drop(first);
    let third = install(&store, "three");
    eventually(|| slot.remove_unused(false).1 <= 1 && !first_dir.exists());
    assert!(second.dir.exists() && third.dir.exists());
    assert_eq!(fs::read_to_string(third.file("file")).unwrap(), "three");
}

#[test]
fn a_reader_never_sees_a_build_vanish() {
    let (_dir, store) = store();
    drop(install(&store, "0"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = 0u32;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let build = store.slot("kind", "key").current::<String>().unwrap().unwrap();
                        assert_eq!(fs::read_to_string(build.file("file")).unwrap(), build.manifest.details);
                        seen += 1;
                    }
                    seen
                })
            })
            .collect();
        for number in 1..40 {
            drop(install(&store, &number.to_string()));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u32>() > 0);
    });
}

#[test]
fn what_is_switched_halfway_is_swept() {
    let (_dir, store) = store();
    let build = install(&store, "one");
    let slot = store.slot("kind", "key");
    // A process died after renaming its build into place, and another one before renaming its link.
    fs::create_dir(slot.dir.join("1-orphan")).unwrap();
    fs::write(slot.dir.join("1-orphan/file"), vec![1; 10_000]).unwrap();
    symlink("x", slot.dir.join(".1-x")).unwrap();
    let (freed, used) = slot.remove_unused(false);
    assert!(freed >= 10_000 && used == 0, "{freed} {used}");
    let left: Vec<_> = fs::read_dir(&slot.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(build.dir.exists());
}

#[test]
fn a_staging_directory_lives_as_long_as_its_builder() {
    let (_dir, store) = store();
    let live = store.stage().unwrap();
    fs::create_dir_all(store.staging().join("dead/entry")).unwrap();
    fs::write(store.staging().join("dead/lock"), "").unwrap();
    fs::write(store.staging().join("dead/entry/x"), vec![1; 10_000]).unwrap();
    fs::create_dir_all(store.staging().join("dead-without-a-lock")).unwrap();
    assert!(store.sweep().unwrap() >= 10_000);
    assert!(live.entry().exists());
    assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 1);
    drop(live);
    assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
}

#[test]
fn a_link_to_somewhere_else_is_not_followed_when_sweeping() {
    let (dir, store) = store();
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::create_dir_all(store.staging().join("dead")).unwrap();
    symlink(&precious, store.staging().join("dead").join(OUTSIDE)).unwrap();
    let ours = dir.path().join("pyro-env-1");
    fs::create_dir(&ours).unwrap();
    fs::create_dir_all(store.staging().join("dead2")).unwrap();
    symlink(&ours, store.staging().join("dead2").join(OUTSIDE)).unwrap();
    store.sweep().unwrap();
    assert!(precious.exists() && !ours.exists());
}

#[test]
fn manifests_that_lead_outside_are_refused() {
    let (_dir, store) = store();
    let build = install(&store, "one");
    let path = build.file(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"file\"", "\"../../../etc/passwd\"")).unwrap();
    assert!(store.slot("kind", "key").current::<String>().unwrap().is_none());
    fs::write(&path, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    assert!(store.slot("kind", "key").current::<String>().unwrap().is_none());
    fs::write(&path, text).unwrap();
    assert!(store.slot("kind", "key").current::<String>().unwrap().is_some());
}

#[test]
fn waiting_for_a_lock_can_be_cancelled() {
    struct GiveUp;
    impl Progress for GiveUp {
        fn report(&self, _: &str, _: f64, _: Option<f64>) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let (_dir, store) = store();
    let slot = store.slot("kind", "key");
    let _held = slot.lock("key", &NoProgress).unwrap();
    assert_eq!(slot.lock("key", &GiveUp).unwrap_err().code().as_str(), "cancelled");
}
