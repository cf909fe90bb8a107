use std::{path::PathBuf, process::Command};

use arcbox_ext4::Reader;

use super::*;

const SIZE: u64 = 256 << 20;

/// A tar that is built entry by entry.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(1_700_000_000);
        header.set_uid(7);
        header.set_gid(8);
        header
    }

    fn dir(mut self, path: &str) -> Self {
        self.0.append_data(&mut Self::header(EntryType::Directory, 0o750, 0), path, io::empty()).unwrap();
        self
    }

    fn file(mut self, path: &str, data: &[u8]) -> Self {
        self.0.append_data(&mut Self::header(EntryType::Regular, 0o4755, data.len()), path, data).unwrap();
        self
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        self.0.append_link(&mut Self::header(kind, 0o777, 0), path, target).unwrap();
        self
    }

    fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        let key = format!("{XATTR_PREFIX}{name}");
        self.0.append_pax_extensions([(key.as_str(), value)]).unwrap();
        self
    }

    fn device(mut self, path: &str) -> Self {
        self.0.append_data(&mut Self::header(EntryType::Char, 0o600, 0), path, io::empty()).unwrap();
        self
    }

    /// A name that the builder itself would refuse.
    fn raw_name(mut self, name: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, 0o644, 0);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.0.append(&header, io::empty()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

struct Made {
    dir: tempfile::TempDir,
    stats: ImageStats,
}

impl Made {
    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn reader(&self) -> Reader {
        Reader::new(&self.path()).unwrap()
    }

    /// debugfs and e2fsck are the independent opinion; the image is made for a kernel, not for our own reader.
    fn debugfs(&self, request: &str) -> String {
        let out = Command::new("debugfs").arg("-R").arg(request).arg(self.path()).output().expect("e2fsprogs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn check(&self) {
        let out = Command::new("e2fsck").arg("-fn").arg(self.path()).output().expect("e2fsprogs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }
}

fn try_make(tar: &[u8], extras: &[Extra], emptied: &[&str]) -> Result<Made, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    let spec = ImageSpec { size: SIZE, extras, emptied, left_out: |path| path.starts_with("/left/") };
    let stats = write_image(tar, &dir.path().join("image"), &spec, &mut |_| true)?;
    Ok(Made { dir, stats })
}

fn make(tar: Tar) -> Made {
    try_make(&tar.bytes(), &[], &[]).unwrap()
}

#[test]
fn files_directories_and_links_arrive_and_the_image_is_clean() {
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    let made = make(
        Tar::new()
            .dir("./")
            .dir("./usr/")
            .dir("./usr/bin")
            .file("./usr/bin/tool", b"#!x")
            .file("./usr/big", &big)
            .link(EntryType::Symlink, "./bin", "usr/bin")
            .link(EntryType::Symlink, "./long", &"x/".repeat(60))
            .link(EntryType::Link, "./usr/bin/a", "./usr/bin/tool")
            .link(EntryType::Link, "./usr/bin/b", "./usr/bin/a"),
    );
    made.check();
    let mut reader = made.reader();
    assert_eq!(reader.read_file("/usr/big", 0, None).unwrap(), big);
    assert_eq!(reader.read_file("/usr/bin/b", 0, None).unwrap(), b"#!x");
    let stat = made.debugfs("stat /usr/bin/tool");
    for part in ["Mode:  04755", "User:     7", "Group:     8", "Links: 3", "mtime: 0x6553f100"] {
        assert!(stat.contains(part), "no `{part}` in {stat}");
    }
    assert!(made.debugfs("stat /bin").contains("usr/bin"));
    assert_eq!(made.stats.content_bytes, 3_000_003);
}

#[test]
fn capabilities_survive() {
    // cap_net_raw+ep, as `ping` has it.
    let value = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let made = make(Tar::new().xattr("security.capability", &value).file("./ping", b"x"));
    made.check();
    assert!(made.debugfs("ea_list /ping").contains("security.capability"), "{}", made.debugfs("ea_list /ping"));
}

#[test]
fn device_nodes_are_left_out_and_counted() {
    let made = make(Tar::new().dir("./dev").device("./dev/null").file("./x", b""));
    made.check();
    assert_eq!(made.stats.skipped, 1);
    assert!(!made.reader().exists("/dev/null"));
}

#[test]
fn extras_replace_and_emptied_directories_are_empty() {
    let tar = Tar::new()
        .dir("./etc")
        .file("./etc/hostname", b"builder-of-secrets\n")
        .dir("./etc/apt")
        .dir("./etc/apt/sources.list.d")
        .file("./etc/apt/sources.list.d/x.list", b"deb")
        .file("./etc/apt/sources.list.dx", b"kept")
        .dir("./left")
        .file("./left/out", b"x");
    let extras = [Extra::File("/etc/hostname", 0o644, "pyro\n".to_owned()), Extra::Dir("/workspace", 0o755)];
    let made = try_make(&tar.bytes(), &extras, &["/etc/apt/sources.list.d"]).unwrap();
    made.check();
    let mut reader = made.reader();
    assert_eq!(reader.read_file("/etc/hostname", 0, None).unwrap(), b"pyro\n");
    assert!(reader.exists("/workspace") && reader.exists("/etc/apt/sources.list.d"));
    assert!(reader.exists("/etc/apt/sources.list.dx"));
    assert!(!reader.exists("/etc/apt/sources.list.d/x.list"));
    assert!(reader.exists("/left") && !reader.exists("/left/out"));
}

#[test]
fn installed_packages_are_listed() {
    let status = "Package: git\nStatus: install ok installed\nVersion: 1:2.39\n\nPackage: gone\nStatus: deinstall ok \
                  config-files\nVersion: 1\n\nPackage: bash\nStatus: install ok installed\nVersion: 5.2\n";
    let made = make(
        Tar::new().dir("./var").dir("./var/lib").dir("./var/lib/dpkg").file("./var/lib/dpkg/status", status.as_bytes()),
    );
    assert_eq!(made.stats.packages, ["bash 5.2", "git 1:2.39"]);
    assert_eq!(made.reader().read_file(DPKG_STATUS, 0, None).unwrap(), status.as_bytes());
}

#[test]
fn bad_tars_are_refused() {
    let fails = |tar: Vec<u8>| try_make(&tar, &[], &[]).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(fails(Tar::new().raw_name(b"../../etc/passwd").bytes()).contains("cannot be a name"));
    assert!(fails(Tar::new().raw_name(b"a\xff").bytes()).contains("cannot be a name"));
    assert!(fails(Tar::new().file(&"x".repeat(256), b"").bytes()).contains("cannot be a name"));
    assert!(fails(Tar::new().link(EntryType::Link, "./a", "./missing").bytes()).contains("leads nowhere"));
    let circle = Tar::new().link(EntryType::Link, "./a", "./b").link(EntryType::Link, "./b", "./a");
    assert!(fails(circle.bytes()).contains("leads nowhere"));
    let mut cut = Tar::new().file("./big", &[1; 100_000]).bytes();
    cut.truncate(50_000);
    assert!(fails(cut).contains("the tar is damaged"));
    assert!(fails(vec![7; 5000]).contains("the tar is damaged"));
}

#[test]
fn cancelling_stops() {
    let tar = Tar::new().file("./a", b"1").file("./b", b"2").bytes();
    let dir = tempfile::tempdir().unwrap();
    let spec = ImageSpec { size: SIZE, extras: &[], emptied: &[], left_out: |_| false };
    let result = write_image(tar.as_slice(), &dir.path().join("i"), &spec, &mut |bytes| bytes < 1000);
    assert!(matches!(result, Err(ImageError::Cancelled)));
}
