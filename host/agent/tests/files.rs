//! Files through the agent: what is asked for, what is refused, and that nothing is changed when it is.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use pyro_agent_protocol::*;
use support::{Agent, Answer, eventually};

struct Tree {
    agent: Agent,
    /// Holds `root`, and beside it what nobody may reach.
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Self { agent: Agent::without_cgroups(), dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn text(&self, path: &str) -> String {
        self.root().join(path).to_str().unwrap().trim_end_matches('/').to_owned()
    }

    fn path(&self, path: &str) -> FilePath {
        FilePath { root: self.text(""), path: self.text(path) }
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn list(&self, path: &str, recursive: bool, limit: u32) -> Answer {
        let FilePath { root, path } = self.path(path);
        self.agent.ask(Op::FileList(FileListRequest { root, path, recursive, limit }))
    }

    fn read(&self, path: &str, offset: u64, length: u64) -> Answer {
        let FilePath { root, path } = self.path(path);
        self.agent.ask(Op::FileRead(FileReadRequest { root, path, offset, length }))
    }

    fn apply(&self, changes: &[(&str, Option<&str>, Option<u32>)]) -> Answer {
        let mut host = self.agent.open(Op::FileApply(FileApplyRequest { root: self.text("") }));
        for (path, content, mode) in changes {
            let content_bytes = content.map(|content| content.len() as u64);
            host.send(&HostFrame::Change(FileChangeHead {
                path: self.text(path),
                content_bytes,
                mode: *mode,
                replaces: None,
            }));
            if let Some(content) = content {
                host.send(&HostFrame::Data(content.as_bytes().to_vec()));
            }
        }
        host.send_data(b"");
        host.answer()
    }

    fn archive(&self, path: &str) -> Answer {
        self.agent.ask(Op::FileArchive(self.path(path)))
    }

    fn extract(&self, path: &str, tar: &[u8]) -> Answer {
        self.agent.feed(Op::FileExtract(self.path(path)), tar)
    }

    /// Everything below the directory, as text; nothing hidden is left out.
    fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        snapshot(self.dir.path())
    }

    /// Whether everything is as it was. What goes while it is looked at is not.
    fn is_again(&self, before: &BTreeMap<PathBuf, String>) -> bool {
        try_snapshot(self.dir.path()).is_ok_and(|now| now == *before)
    }
}

fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    try_snapshot(dir).unwrap()
}

fn try_snapshot(dir: &Path) -> std::io::Result<BTreeMap<PathBuf, String>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.path().symlink_metadata()?;
        let mode = meta.permissions().mode() & 0o7777;
        let what = if meta.is_dir() {
            all.extend(try_snapshot(&entry.path())?);
            format!("directory {mode:o}")
        } else if meta.is_symlink() {
            format!("-> {}", fs::read_link(entry.path())?.display())
        } else {
            format!("{mode:o} {:?}", fs::read(entry.path())?)
        };
        all.insert(entry.path(), what);
    }
    Ok(all)
}

/// A name, a type, and content or target.
type TarEntry<'a> = (&'a str, u8, &'a str);

fn tar_of(entries: &[TarEntry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o640);
        header.set_mtime(1_000_000);
        header.set_entry_type(tar::EntryType::new(*kind));
        let content = if matches!(kind, b'1' | b'2') {
            header.set_link_name_literal(content).unwrap();
            ""
        } else {
            content
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(content.as_bytes());
        out.resize(out.len().div_ceil(512) * 512, 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn an_entry_is_described_without_following_it() {
    let tree = Tree::new();
    tree.write("dir/file", "12345");
    fs::set_permissions(tree.root().join("dir/file"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("/nowhere", tree.root().join("link")).unwrap();
    let stat = |path: &str| tree.agent.ask(Op::FileStat(tree.path(path)));

    let file = stat("dir/file").entries.remove(0);
    assert_eq!((file.kind, file.size, file.mode), (FileKind::File, 5, 0o750));
    assert_eq!(file.path, tree.text("dir/file"));
    assert!(file.mtime_ms > 1_600_000_000_000);
    let link = stat("link").entries.remove(0);
    assert_eq!((link.kind, link.link_target.as_deref(), link.size), (FileKind::Symlink, Some("/nowhere"), 8));
    assert_eq!(stat("").entries.remove(0).kind, FileKind::Directory);
    assert_eq!(stat("none").code(), codes::NOT_FOUND);
    assert_eq!(stat("dir/file/below").code(), codes::NOT_FOUND);
}

#[test]
fn paths_stay_below_their_root() {
    let tree = Tree::new();
    let outside = tree.dir.path().join("outside");
    symlink(&outside, tree.root().join("absolute")).unwrap();
    symlink("../outside", tree.root().join("relative")).unwrap();
    symlink("../../root/../outside", tree.root().join("climbing")).unwrap();
    symlink("relative", tree.root().join("chained")).unwrap();
    symlink("loop", tree.root().join("loop")).unwrap();
    symlink("/proc/self/root", tree.root().join("magic")).unwrap();
    let before = tree.snapshot();

    for link in ["absolute", "relative", "climbing", "chained"] {
        let through = format!("{link}/secret");
        assert_eq!(tree.read(&through, 0, 10).code(), codes::DENIED, "{link}");
        assert_eq!(tree.apply(&[(&through, Some("x"), None)]).code(), codes::DENIED, "{link}");
        assert_eq!(tree.apply(&[(&format!("{link}/new/file"), Some("x"), None)]).code(), codes::DENIED, "{link}");
        assert_eq!(tree.apply(&[(&through, None, None)]).code(), codes::DENIED, "{link}");
        assert_eq!(tree.list(&format!("{link}/."), true, 9).entries.first().map(|e| e.kind), Some(FileKind::Symlink));
        assert_eq!(tree.extract(link, &tar_of(&[("secret", b'0', "x")])).code(), codes::DENIED, "{link}");
        assert_eq!(tree.agent.ask(Op::FileStat(tree.path(&through))).code(), codes::DENIED, "{link}");
    }
    assert_eq!(tree.read("magic/etc/passwd", 0, 10).code(), codes::DENIED);
    assert_eq!(tree.read("loop", 0, 1).code(), codes::IO);
    for path in ["/etc/passwd", outside.to_str().unwrap(), &format!("{}x", tree.text("")), "/"] {
        let request = FilePath { root: tree.text(""), path: path.to_owned() };
        assert_eq!(tree.agent.ask(Op::FileStat(request)).code(), codes::DENIED, "{path}");
    }
    for path in [format!("{}/../outside", tree.text("")), "relative".into(), String::new(), "/a\0b".into()] {
        let request = FilePath { root: tree.text(""), path };
        assert_eq!(tree.agent.ask(Op::FileStat(request)).code(), codes::INVALID_ARGUMENT);
    }
    // A root below the one that was granted is no way out either.
    for link in ["absolute", "relative"] {
        let root = tree.text(link);
        let request = FilePath { path: format!("{root}/secret"), root };
        assert_eq!(tree.agent.ask(Op::FileStat(request.clone())).code(), codes::DENIED, "{link}");
        assert_eq!(tree.agent.ask(Op::FileArchive(request.clone())).code(), codes::DENIED, "{link}");
        assert_eq!(tree.agent.feed(Op::FileExtract(request), &tar_of(&[])).code(), codes::DENIED, "{link}");
    }
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn symlinks_inside_the_root_are_followed_on_the_way() {
    let tree = Tree::new();
    tree.write("real/dir/file", "here");
    symlink(tree.root().join("real"), tree.root().join("absolute")).unwrap();
    symlink("absolute/dir", tree.root().join("relative")).unwrap();
    symlink("../relative/file", tree.root().join("real/up")).unwrap();
    assert_eq!(tree.read("relative/file", 0, 10).data, b"here");
    assert_eq!(tree.read("absolute/up", 0, 10).data, b"here");
    tree.apply(&[("relative/new", Some("new"), None)]).done();
    assert_eq!(fs::read_to_string(tree.root().join("real/dir/new")).unwrap(), "new");
}

/// A program of the guest swaps a directory for a symlink all the time.
#[test]
fn a_path_that_changes_under_way_does_not_lead_out() {
    let tree = Tree::new();
    tree.write("a/secret", "inside");
    symlink(tree.dir.path().join("outside"), tree.root().join("b")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (a, b) = (tree.root().join("a"), tree.root().join("b"));
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags).unwrap();
            }
        });
        for round in 0..200 {
            let answer = tree.read("a/secret", 0, 10);
            match &answer.error {
                None => assert_eq!(answer.data, b"inside"),
                Some(error) => assert_eq!(error.code, codes::DENIED, "{error:?}"),
            }
            let _ = tree.apply(&[(&format!("a/new{round}"), Some("x"), None)]);
            let _ = tree.extract("a", &tar_of(&[("unpacked", b'0', "x"), ("sub/file", b'0', "x")]));
            let archived = tree.archive("a");
            assert!(!String::from_utf8_lossy(&archived.data).contains("secret\0secret"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let outside = snapshot(&tree.dir.path().join("outside"));
    assert_eq!(outside.len(), 1, "{outside:?}");
    assert_eq!(fs::read_to_string(tree.dir.path().join("outside/secret")).unwrap(), "secret");
}

#[test]
fn a_list_is_in_order_and_ends_at_its_limit() {
    let tree = Tree::new();
    for path in ["b/2", "b/10", "a.txt", "a/z/deep", "c"] {
        tree.write(path, "");
    }
    symlink("b", tree.root().join("d")).unwrap();
    let names = |answer: &Answer| -> Vec<String> {
        let root = tree.text("") + "/";
        answer.entries.iter().map(|entry| entry.path.strip_prefix(&root).unwrap().to_owned()).collect()
    };
    let all = tree.list("", true, 100);
    assert_eq!(names(&all), ["a", "a/z", "a/z/deep", "a.txt", "b", "b/10", "b/2", "c", "d"]);
    assert!(!all.done().truncated);
    assert_eq!(names(&tree.list("", false, 100)), ["a", "a.txt", "b", "c", "d"]);
    for limit in 0..9 {
        let some = tree.list("", true, limit);
        assert_eq!(names(&some), names(&all)[..limit as usize]);
        assert!(some.done().truncated, "{limit}");
    }
    assert!(!tree.list("", true, 9).done().truncated);
    assert_eq!(names(&tree.list("c", true, 9)), ["c"]);
    assert_eq!(tree.list("none", true, 9).code(), codes::NOT_FOUND);
}

#[test]
fn a_long_list_comes_in_parts() {
    let tree = Tree::new();
    for number in 0..3000 {
        fs::write(tree.root().join(format!("{number:04}-{}\u{1}", "x".repeat(200))), "").unwrap();
    }
    let all = tree.list("", true, 5000);
    assert_eq!(all.entries.len(), 3000);
    assert!(all.entries.is_sorted_by(|a, b| a.path < b.path));
    assert!(tree.list("", true, 2999).done().truncated);
}

#[test]
fn a_part_of_a_file_comes_with_the_whole_size() {
    let tree = Tree::new();
    let content: String = (0..100_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    tree.write("file", &content);
    let part = tree.read("file", 70_000, 10);
    assert_eq!((part.data.as_slice(), part.done().bytes), (&content.as_bytes()[70_000..70_010], 100_000));
    assert_eq!(tree.read("file", 0, u64::MAX).data, content.as_bytes());
    assert_eq!(tree.read("file", 99_999, 100).data.len(), 1);
    for offset in [100_000, u64::MAX] {
        let past = tree.read("file", offset, 10);
        assert_eq!((past.data.len(), past.done().bytes), (0, 100_000));
    }
    assert_eq!(tree.read("", 0, 1).code(), codes::INVALID_ARGUMENT);
    let pipe = tree.root().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert_eq!(tree.read("pipe", 0, 1).code(), codes::INVALID_ARGUMENT);
}

#[test]
fn changes_are_made_together() {
    let tree = Tree::new();
    tree.write("old", "old");
    tree.write("gone", "gone");
    fs::set_permissions(tree.root().join("old"), fs::Permissions::from_mode(0o751)).unwrap();
    let changes = [
        ("old", Some("new"), None),
        ("gone", None, None),
        ("deep/er/file", Some(""), Some(0o600)),
        ("plain", Some("plain"), None),
    ];
    tree.apply(&changes).done();
    let all = snapshot(&tree.root());
    let of = |path: &str| all[&tree.root().join(path)].clone();
    assert_eq!(of("old"), format!("751 {:?}", b"new"));
    assert_eq!(of("plain"), format!("644 {:?}", b"plain"));
    assert_eq!(of("deep/er/file"), "600 []");
    assert_eq!(all.len(), 5, "{all:?}");
}

#[test]
fn a_change_that_fails_undoes_the_others() {
    let tree = Tree::new();
    tree.write("one", "1");
    tree.write("two", "2");
    tree.write("dir/inner", "");
    symlink("one", tree.root().join("link")).unwrap();
    let before = tree.snapshot();
    let good = [("one", Some("changed"), Some(0o700)), ("two", None, None), ("new/dir/file", Some("x"), None)];
    for (bad, code) in [
        (("none", None, None), codes::NOT_FOUND),
        (("dir", Some("x"), None), codes::INVALID_ARGUMENT),
        (("dir", None, None), codes::INVALID_ARGUMENT),
        (("link", Some("x"), None), codes::INVALID_ARGUMENT),
        (("", Some("x"), None), codes::INVALID_ARGUMENT),
        (("one/below", Some("x"), None), codes::NOT_FOUND),
        (("mode", Some("x"), Some(0o100_644)), codes::INVALID_ARGUMENT),
        // The same file twice: the second finds it changed.
        (("two", None, None), codes::CONFLICT),
    ] {
        let answer = tree.apply(&[good[0], good[1], good[2], bad]);
        assert_eq!(answer.code(), code, "{bad:?}");
        assert_eq!(tree.snapshot(), before, "{bad:?}");
    }
}

#[test]
fn a_change_replaces_what_it_was_made_for_or_nothing() {
    let tree = Tree::new();
    tree.write("file", "old");
    tree.write("other", "other");
    let sum = |content: &str| {
        let mut sum = ContentSum::default();
        sum.add(content.as_bytes());
        Some(sum)
    };
    let apply = |path: &str, content: Option<&str>, replaces| {
        let mut host = tree.agent.open(Op::FileApply(FileApplyRequest { root: tree.text("") }));
        let also = FileChangeHead { path: tree.text("other"), content_bytes: Some(0), ..FileChangeHead::default() };
        host.send(&HostFrame::Change(also));
        let content_bytes = content.map(|content| content.len() as u64);
        let head = FileChangeHead { path: tree.text(path), content_bytes, mode: None, replaces };
        host.send(&HostFrame::Change(head));
        host.send_data(content.unwrap_or_default().as_bytes());
        host.answer()
    };
    let before = tree.snapshot();
    for replaces in [sum("olds"), sum("ol"), sum("new"), sum("")] {
        assert_eq!(apply("file", Some("new"), replaces).code(), codes::CONFLICT);
        assert_eq!(apply("file", None, replaces).code(), codes::CONFLICT);
    }
    assert_eq!(apply("gone", Some("new"), sum("")).code(), codes::CONFLICT);
    assert_eq!(apply("gone", None, sum("x")).code(), codes::CONFLICT);
    assert_eq!(tree.snapshot(), before);
    apply("file", Some("new"), sum("old")).done();
    assert_eq!(tree.read("file", 0, 10).data, b"new");
    apply("file", None, sum("new")).done();
    assert_eq!(tree.read("file", 0, 10).code(), codes::NOT_FOUND);
}

#[test]
fn a_host_that_leaves_changes_nothing() {
    let tree = Tree::new();
    tree.write("one", "1");
    let before = tree.snapshot();
    let mut host = tree.agent.open(Op::FileApply(FileApplyRequest { root: tree.text("") }));
    let change = FileChangeHead { path: tree.text("deep/one"), content_bytes: Some(100), mode: None, replaces: None };
    host.send(&HostFrame::Change(change));
    host.send(&HostFrame::Data(vec![1; 50]));
    eventually("the content is staged", || tree.root().join("deep").exists());
    drop(host);
    eventually("it is removed", || tree.is_again(&before));

    let tar = tar_of(&[("a", b'0', "x"), ("b", b'0', "y")]);
    let mut host = tree.agent.open(Op::FileExtract(tree.path("new/er")));
    host.send(&HostFrame::Data(tar[..700].to_vec()));
    eventually("an entry is staged", || tree.root().join("new/er").exists());
    drop(host);
    eventually("it is removed", || tree.is_again(&before));
}

#[test]
fn content_that_does_not_fit_its_length_is_refused() {
    let tree = Tree::new();
    let before = tree.snapshot();
    for (length, sent) in [(3, 4), (4, 3)] {
        let mut host = tree.agent.open(Op::FileApply(FileApplyRequest { root: tree.text("") }));
        let change = FileChangeHead { path: tree.text("x"), content_bytes: Some(length), mode: None, replaces: None };
        host.send(&HostFrame::Change(change));
        host.send_data(&vec![b'x'; sent]);
        assert_eq!(host.answer().code(), codes::PROTOCOL_VIOLATION);
        assert_eq!(tree.snapshot(), before);
    }
}

#[test]
fn a_tree_survives_its_archive() {
    let tree = Tree::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(130));
    tree.write("from/a/file", "content");
    tree.write(&format!("from/{long}"), &"block".repeat(50_000));
    tree.write("from/empty", "");
    fs::create_dir(tree.root().join("from/a/none")).unwrap();
    fs::set_permissions(tree.root().join("from/a/none"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(tree.root().join("from/empty"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("../../outside/secret", tree.root().join("from/link")).unwrap();
    symlink("x".repeat(300), tree.root().join("from/a/long link")).unwrap();
    let archive = tree.archive("from");
    assert_eq!(archive.done().entries, 8);

    // What others make of it.
    let mut read = tar::Archive::new(archive.data.as_slice());
    let names: Vec<String> =
        read.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(names[..4], ["a/", "a/file", "a/long link", "a/none/"]);
    assert_eq!(names.len(), 8);

    let done = tree.extract("to", &archive.data);
    assert_eq!((done.done().entries, done.done().bytes), (8, 250_007));
    let strip = |all: BTreeMap<PathBuf, String>, base: &str| -> Vec<(PathBuf, String)> {
        all.into_iter().map(|(path, what)| (path.strip_prefix(tree.root().join(base)).unwrap().into(), what)).collect()
    };
    assert_eq!(strip(snapshot(&tree.root().join("to")), "to"), strip(snapshot(&tree.root().join("from")), "from"));
    let mtime = |path: &str| fs::metadata(tree.root().join(path)).unwrap().modified().unwrap();
    let difference = mtime("from/a/file").duration_since(mtime("to/a/file")).unwrap();
    assert!(difference.as_millis() < 1000, "{difference:?}");

    // Again, over itself.
    let before = snapshot(&tree.root().join("to"));
    tree.extract("to", &archive.data).done();
    assert_eq!(snapshot(&tree.root().join("to")), before);

    let single = tree.archive("from/a/file").data;
    let mut read = tar::Archive::new(single.as_slice());
    let entry = read.entries().unwrap().next().unwrap().unwrap();
    assert_eq!((entry.path().unwrap().to_str(), entry.size()), (Some("file"), 7));
    let link = tree.archive("from/link").data;
    let mut read = tar::Archive::new(link.as_slice());
    let entry = read.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.link_name().unwrap().unwrap().to_str(), Some("../../outside/secret"));
}

#[test]
fn archives_of_others_are_unpacked() {
    let tree = Tree::new();
    let mut gnu = tar::Builder::new(Vec::new());
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(150));
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o755);
    header.set_cksum();
    gnu.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_cksum();
    gnu.append_link(&mut header, "link", "t".repeat(200)).unwrap();
    let gnu = gnu.into_inner().unwrap();
    tree.extract("gnu", &gnu).done();
    assert_eq!(fs::read(tree.root().join("gnu").join(&long)).unwrap(), b"abc");
    assert_eq!(fs::read_link(tree.root().join("gnu/link")).unwrap().as_os_str().len(), 200);

    let made = tree.dir.path().join("made.tar");
    tree.write("by tar/x/y", "y");
    let status = std::process::Command::new("tar")
        .args(["--posix", "-cf", made.to_str().unwrap(), "-C", &tree.text("by tar"), "."])
        .status()
        .unwrap();
    assert!(status.success());
    let done = tree.extract("posix", &fs::read(made).unwrap());
    assert_eq!(done.done().entries, 2);
    assert_eq!(fs::read(tree.root().join("posix/x/y")).unwrap(), b"y");
    // A second entry of a name replaces the first.
    tree.extract("twice", &tar_of(&[("a", b'0', "1"), ("a", b'2', "to"), ("a", b'0', "2")])).done();
    assert_eq!(fs::read(tree.root().join("twice/a")).unwrap(), b"2");
}

#[test]
fn unpacking_adds_and_replaces_and_never_deletes() {
    let tree = Tree::new();
    tree.write("to/kept", "kept");
    tree.write("to/dir/kept", "kept");
    tree.write("to/dir/old", "old");
    symlink("../../outside/secret", tree.root().join("to/link")).unwrap();
    let tar = tar_of(&[("dir/", b'5', ""), ("dir/old", b'0', "new"), ("dir/n/x", b'0', "x"), ("link", b'0', "file")]);
    assert_eq!(tree.extract("to", &tar).done().entries, 4);
    let text = |path: &str| fs::read_to_string(tree.root().join(path)).unwrap();
    assert_eq!(
        (text("to/kept"), text("to/dir/kept"), text("to/dir/old")),
        ("kept".into(), "kept".into(), "new".into())
    );
    assert_eq!((text("to/dir/n/x"), text("to/link")), ("x".into(), "file".into()));
    assert_eq!(fs::read_to_string(tree.dir.path().join("outside/secret")).unwrap(), "secret");
    assert_eq!(snapshot(&tree.root().join("to")).len(), 7);
}

#[test]
fn a_bad_archive_changes_nothing() {
    let tree = Tree::new();
    tree.write("to/dir/file", "file");
    tree.write("to/plain", "plain");
    symlink("../../outside", tree.root().join("to/out")).unwrap();
    symlink("dir", tree.root().join("to/in")).unwrap();
    let before = tree.snapshot();
    let good = ("new", b'0', "new");
    let cases: &[(&[TarEntry<'_>], &str)] = &[
        (&[good, ("/etc/evil", b'0', "x")], codes::INVALID_ARGUMENT),
        (&[good, ("../evil", b'0', "x")], codes::INVALID_ARGUMENT),
        (&[good, ("a/../../evil", b'0', "x")], codes::INVALID_ARGUMENT),
        (&[good, ("hard", b'1', "new")], codes::INVALID_ARGUMENT),
        (&[good, ("char", b'3', "")], codes::INVALID_ARGUMENT),
        (&[good, ("block", b'4', "")], codes::INVALID_ARGUMENT),
        (&[good, ("pipe", b'6', "")], codes::INVALID_ARGUMENT),
        (&[good, ("sparse", b'S', "")], codes::INVALID_ARGUMENT),
        (&[good, ("", b'0', "x")], codes::INVALID_ARGUMENT),
        (&[good, ("./", b'0', "x")], codes::INVALID_ARGUMENT),
        // Through a symlink of the archive, and through one that is there.
        (&[good, ("evil", b'2', "/tmp"), ("evil/x", b'0', "x")], codes::DENIED),
        (&[good, ("evil", b'2', "../../outside"), ("evil/secret", b'0', "x")], codes::DENIED),
        (&[good, ("out/secret", b'0', "x")], codes::DENIED),
        (&[good, ("in/file", b'0', "x")], codes::DENIED),
        // One in the place of the other.
        (&[good, ("plain/x", b'0', "x")], codes::INVALID_ARGUMENT),
        (&[good, ("plain/", b'5', "")], codes::INVALID_ARGUMENT),
        (&[good, ("dir", b'0', "x")], codes::INVALID_ARGUMENT),
        (&[good, ("new/x", b'0', "x")], codes::DENIED),
        (&[good, ("d/x", b'0', "x"), ("d", b'0', "x")], codes::INVALID_ARGUMENT),
    ];
    for (entries, code) in cases {
        assert_eq!(tree.extract("to", &tar_of(entries)).code(), *code, "{entries:?}");
        assert_eq!(tree.snapshot(), before, "{entries:?}");
        assert!(
            tree.extract("made/here", &tar_of(entries)).error.is_some()
                || entries[1].0.starts_with(['o', 'i', 'p', 'd'])
        );
        let _ = fs::remove_dir_all(tree.root().join("made"));
    }
    let whole = tar_of(&[good, ("b", b'0', &"b".repeat(2000))]);
    for cut in [0, 1, 511, 512, 513, 1024, 1536, 2048, 3000] {
        assert_eq!(tree.extract("to", &whole[..cut]).code(), codes::INVALID_ARGUMENT, "{cut}");
        assert_eq!(tree.snapshot(), before, "{cut}");
    }
    for at in [100, 124, 136, 148, 156, 300] {
        let mut damaged = whole.clone();
        damaged[1024 + at] ^= 0xff;
        assert_eq!(tree.extract("to", &damaged).code(), codes::INVALID_ARGUMENT, "{at}");
        assert_eq!(tree.snapshot(), before, "{at}");
    }
    let text = vec![b'x'; 5000];
    assert_eq!(tree.extract("to", &text).code(), codes::INVALID_ARGUMENT);
    assert_eq!(tree.snapshot(), before);
}

/// More than any buffer, while something else is done.
#[test]
fn large_archives_do_not_hold_others_up() {
    let tree = Tree::new();
    let block: Vec<u8> = (0..1_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::create_dir(tree.root().join("from")).unwrap();
    for number in 0..48 {
        fs::write(tree.root().join(format!("from/{number}")), &block).unwrap();
    }
    let archive = tree.archive("from");
    assert_eq!(archive.done().bytes, 48 * block.len() as u64);
    let mut host = tree.agent.open(Op::FileExtract(tree.path("to")));
    host.send(&HostFrame::Data(archive.data[..10_000].to_vec()));
    // The host thinks, and commands run.
    assert_eq!(tree.agent.shell("exit 3").collect().exited().exit_code, Some(3));
    host.send_data(&archive.data[10_000..]);
    assert_eq!(host.answer().done().bytes, 48 * block.len() as u64);
    assert_eq!(fs::read(tree.root().join("to/47")).unwrap(), block);
}

#[test]
fn more_operations_than_workers_wait_for_their_turn() {
    let tree = Tree::new();
    tree.write("file", "content");
    let stalled: Vec<_> = (0..20).map(|n| tree.agent.open(Op::FileExtract(tree.path(&format!("to{n}"))))).collect();
    let request = FileReadRequest { root: tree.text(""), path: tree.text("file"), offset: 0, length: 10 };
    let mut waiting: Vec<_> = (0..4).map(|_| tree.agent.open(Op::FileRead(request.clone()))).collect();
    drop(stalled);
    for host in &mut waiting {
        assert_eq!(host.answer().data, b"content");
    }
}
