//! A directory or an archive of the host as a checked tar.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::UNIX_EPOCH;

use flate2::read::MultiGzDecoder;
use pyro_engine::{EngineError, ErrorCode, for_each_member};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use tar::EntryType;

use super::confined::{Confined, Roots};
use super::output::is_stage;
use super::pack::{Attributes, Packer};

/// Most bytes of an archive once it is unpacked: content and headers.
const MAX_UNPACKED: u64 = 20 << 30;

/// Most characters of what a reader says about a broken archive: it quotes the archive.
const MAX_WHY: usize = 200;

/// A tree as a tar.
pub(super) struct Packed {
    pub(super) tar: File,
    /// `directory` or `tar_archive`.
    pub(super) mode: &'static str,
    pub(super) source: String,
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// Reads the directory or archive at `path`.
pub(super) fn read(roots: &Roots<'_>, path: &str) -> Result<Packed, EngineError> {
    let confined = roots.find(path)?;
    let file = confined.open(OFlags::RDONLY)?;
    let metadata = file.metadata().map_err(|error| io_error(&confined, &error))?;
    let mut packer = Packer::new()?;
    let mode = if metadata.is_dir() {
        directory(&confined, file.into(), &mut packer)?;
        "directory"
    } else if let Some(compressed) = archive_kind(&confined.shown).filter(|_| metadata.is_file()) {
        let file = if compressed { unpacked(&confined, file)? } else { file };
        archive(&confined, file, &mut packer)?;
        "tar_archive"
    } else {
        let message = format!("`{}` is neither a directory nor a .tar, .tar.gz or .tgz archive", confined.shown);
        return Err(EngineError::new(ErrorCode::InvalidArgument, message).with_hint("name one of these"));
    };
    let (entries, bytes) = (packer.entries, packer.bytes);
    Ok(Packed { tar: packer.finish()?, mode, source: confined.shown, entries, bytes })
}

fn io_error(confined: &Confined, error: &io::Error) -> EngineError {
    EngineError::io(format_args!("read `{}`", confined.shown), error)
}

/// Whether a name is that of an archive, and of a compressed one.
fn archive_kind(name: &str) -> Option<bool> {
    if name.ends_with(".tar.gz") || name.ends_with(".tgz") {
        return Some(true);
    }
    name.ends_with(".tar").then_some(false)
}

/// Packs a directory, its members in the order of their names. Symlinks are kept, not followed.
fn directory(confined: &Confined, root: OwnedFd, packer: &mut Packer) -> Result<(), EngineError> {
    // Each open directory, its name, and the members that are still to be packed, last first. The packer bounds its
    // length with the depth.
    let mut open: Vec<(OwnedFd, Vec<u8>, Vec<OsString>)> = Vec::new();
    let names = members(confined, &root)?;
    open.push((root, Vec::new(), names));
    while let Some((directory, prefix, left)) = open.last_mut() {
        let Some(name) = left.pop() else {
            open.pop();
            continue;
        };
        let path = if prefix.is_empty() {
            name.as_bytes().to_vec()
        } else {
            [prefix, b"/".as_slice(), name.as_bytes()].concat()
        };
        let failed = |errno: rustix::io::Errno| {
            let doing = format_args!("read `{}/{}`", confined.shown, String::from_utf8_lossy(&path)).to_string();
            EngineError::io(doing, &errno.into())
        };
        let stat = match rustix::fs::statat(&*directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            // It went while the directory was read.
            Err(rustix::io::Errno::NOENT) => continue,
            other => other.map_err(failed)?,
        };
        let attributes =
            Attributes { mode: stat.st_mode & 0o777, mtime: u64::try_from(stat.st_mtime).unwrap_or_default() };
        match FileType::from_raw_mode(stat.st_mode) {
            // An output under construction, or what a killed process has left of one.
            FileType::Directory if is_stage(name.as_bytes()) => {}
            FileType::Directory => {
                packer.directory(&path, attributes)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = rustix::fs::openat(&*directory, &name, flags, Mode::empty()).map_err(failed)?;
                let names = members(confined, &inner)?;
                open.push((inner, path, names));
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(&*directory, &name, flags, Mode::empty()).map_err(failed)?);
                let metadata = file.metadata().map_err(|error| io_error(confined, &error))?;
                if !metadata.is_file() {
                    return Err(special(&path));
                }
                packer.file(&path, attributes, metadata.len(), file, || {
                    let shown = String::from_utf8_lossy(&path).escape_debug().to_string();
                    let message = format!("`{}/{shown}` became shorter while it was read", confined.shown);
                    EngineError::new(ErrorCode::Io, message).with_hint("try again when nothing writes to it")
                })?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&*directory, &name, Vec::new()).map_err(failed)?;
                packer.symlink(&path, attributes, target.as_bytes())?;
            }
            _ => return Err(special(&path)),
        }
    }
    Ok(())
}

/// The names in a directory, the first one last.
fn members(confined: &Confined, directory: &OwnedFd) -> Result<Vec<OsString>, EngineError> {
    let failed = |errno: rustix::io::Errno| io_error(confined, &errno.into());
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
        if names.len() > 500_000 {
            let message = format!("`{}` has a directory of more than 500000 members", confined.shown);
            return Err(EngineError::new(ErrorCode::LimitExceeded, message).with_hint("choose a smaller tree"));
        }
    }
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

fn special(path: &[u8]) -> EngineError {
    let message = format!(
        "unsupported archive member type: '{}' is no file, directory or symlink",
        String::from_utf8_lossy(path).escape_debug()
    );
    EngineError::new(ErrorCode::InvalidArgument, message).with_hint("choose a tree without it")
}

/// Unpacks a gzip file, within bounds.
fn unpacked(confined: &Confined, file: File) -> Result<File, EngineError> {
    let mut into = tempfile::tempfile().map_err(|error| EngineError::io("make a temporary file", &error))?;
    let mut decoder = MultiGzDecoder::new(io::BufReader::with_capacity(1 << 18, file));
    let mut buffer = vec![0; 1 << 18];
    let mut total = 0u64;
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(confined, &error.to_string())),
        };
        total += count as u64;
        if total > MAX_UNPACKED {
            let message = format!("`{}` unpacks to more than {} GiB", confined.shown, MAX_UNPACKED >> 30);
            return Err(EngineError::new(ErrorCode::LimitExceeded, message).with_hint("choose a smaller archive"));
        }
        into.write_all(buffer.get(..count).unwrap_or_default())
            .map_err(|error| EngineError::io("unpack an archive", &error))?;
    }
    into.rewind().map_err(|error| EngineError::io("unpack an archive", &error))?;
    Ok(into)
}

fn unreadable(confined: &Confined, why: &str) -> EngineError {
    // A reader quotes the bytes it stumbles over as they are.
    let mut shown = String::new();
    for char in why.chars().take(MAX_WHY) {
        match char {
            '\'' | '"' => shown.push(char),
            char => shown.extend(char.escape_debug()),
        }
    }
    let message = format!("`{}` is not a readable archive: {shown}", confined.shown);
    EngineError::new(ErrorCode::InvalidArgument, message).with_hint("make it again with `tar`")
}

/// Packs the members of a tar anew: only what is allowed gets through.
fn archive(confined: &Confined, file: File, packer: &mut Packer) -> Result<(), EngineError> {
    let broken = |error: io::Error| unreadable(confined, &error.to_string());
    for_each_member(file, broken, |entry| {
        let name = entry.path_bytes().into_owned();
        let header = entry.header();
        let now = || std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let attributes = Attributes {
            mode: header.mode().unwrap_or(0o644) & 0o777,
            mtime: header.mtime().unwrap_or_else(|_| now()),
        };
        match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.size();
                packer.file(&name, attributes, size, entry, || {
                    let shown = String::from_utf8_lossy(&name);
                    unreadable(confined, &format!("it ends in the middle of '{shown}'"))
                })
            }
            EntryType::Directory => packer.directory(&name, attributes),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
                packer.symlink(&name, attributes, &target)
            }
            EntryType::XGlobalHeader => Ok(()),
            EntryType::Link => {
                let shown = String::from_utf8_lossy(&name).escape_debug().to_string();
                let message = format!("unsupported archive member type: '{shown}' is a hard link");
                Err(EngineError::new(ErrorCode::InvalidArgument, message)
                    .with_hint("make the archive with `tar --hard-dereference`"))
            }
            _ => Err(special(&name)),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// One member: kind, name, link target or content.
    type Member<'m> = (EntryType, &'m [u8], &'m str);

    /// A tar with names as they are: the writer of the `tar` crate would refuse them.
    fn tar(members: &[Member<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, text) in members {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            let content = matches!(kind, EntryType::Regular | EntryType::GNULongName | EntryType::XHeader);
            header.set_size(if content { text.len() as u64 } else { 0 });
            if !content {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, if content { text.as_bytes() } else { b"" }).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read_bytes(name: &str, bytes: &[u8]) -> Result<Packed, EngineError> {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read(&Roots::reading(&[home.path().to_owned()]), path.to_str().unwrap())
    }

    const FILE: EntryType = EntryType::Regular;

    #[test]
    fn an_archive_is_checked_member_by_member() {
        let cases: [(&[Member<'_>], &str); 16] = [
            (&[(FILE, b"/etc/passwd", "x")], "is absolute"),
            (&[(FILE, b"a/../../b", "x")], "contains `..`"),
            (&[(FILE, b"..", "x")], "contains `..`"),
            (&[(FILE, b"./", "x")], "names nothing"),
            (&[(EntryType::Link, b"a", "b")], "is a hard link"),
            (&[(EntryType::Char, b"a", "")], "is no file, directory or symlink"),
            (&[(EntryType::Fifo, b"a", "")], "is no file, directory or symlink"),
            (&[(EntryType::Symlink, b"a", "/etc")], "has the target '/etc'"),
            (&[(EntryType::Symlink, b"a", "b/../../c")], "has the target"),
            (&[(EntryType::Symlink, b"a", "")], "has the target ''"),
            (&[(EntryType::Symlink, b"a", "b"), (FILE, b"a/c", "x")], "lies behind a symlink"),
            (&[(FILE, b"a", "x"), (FILE, b"a/c", "x")], "lies below a file"),
            (&[(FILE, b"a", "x"), (FILE, b"./a", "y")], "is there twice"),
            (&[(EntryType::Directory, b"a/", ""), (FILE, b"a", "y")], "is there twice"),
            (&[(FILE, b"a/b/c", "x"), (FILE, b"a", "y")], "'a' has members below it"),
            (&[(FILE, b"a/b/c", "x"), (EntryType::Symlink, b"a/b", "c")], "'a/b' has members below it"),
        ];
        for (members, words) in cases {
            let error = read_bytes("t.tar", &tar(members)).map(|packed| packed.entries).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
            assert!(error.message().contains(words), "{words}: {error}");
            assert!(error.hint().is_some(), "{error}");
        }
        // A directory may come after what is in it.
        let late: &[Member<'_>] = &[(FILE, b"a/b", "x"), (EntryType::Directory, b"a/", "")];
        assert_eq!(read_bytes("t.tar", &tar(late)).map(|packed| packed.entries).unwrap(), 2);
    }

    #[test]
    fn an_archive_cannot_hide_a_long_header_behind_a_record() {
        let long = "n".repeat(4 << 20);
        let mut bytes = tar(&[(EntryType::XHeader, b"x", "9 size=0\n"), (FILE, b"a", "")]);
        // `a` covers the header of the long name and the name, and by the record nothing.
        let at = bytes.len() - 1024 - 512;
        let mut header = tar::Header::from_byte_slice(&bytes[at..at + 512]).clone();
        header.set_size(512 + long.len() as u64);
        header.set_cksum();
        bytes.splice(at.., header.as_bytes().iter().copied());
        bytes.extend(tar(&[(EntryType::GNULongName, b"././@LongLink", &long), (FILE, b"b", "")]));
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&bytes).unwrap();
        for (name, bytes) in [("t.tar", bytes), ("t.tgz", gz.finish().unwrap())] {
            let error = read_bytes(name, &bytes).map(|packed| packed.entries).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
            assert!(error.message().ends_with("archive: a member has more than 1024 KiB of headers"), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn a_good_archive_is_packed_anew() {
        let members: &[Member<'_>] = &[
            (EntryType::Directory, b"./", ""),
            (EntryType::Directory, b"./d/", ""),
            (FILE, b"./d/f", "content"),
            (EntryType::Symlink, b"l", "d/f"),
        ];
        let plain = tar(members);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        for (name, bytes) in [("t.tar", plain), ("t.tar.gz", gz.finish().unwrap())] {
            let mut packed = read_bytes(name, &bytes).unwrap();
            assert_eq!((packed.mode, packed.entries, packed.bytes), ("tar_archive", 3, 7));
            let mut archive = tar::Archive::new(&mut packed.tar);
            let found: Vec<(String, u32)> = archive
                .entries()
                .unwrap()
                .map(|entry| {
                    let entry = entry.unwrap();
                    (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap())
                })
                .collect();
            assert_eq!(found, [("d/".to_owned(), 0o755), ("d/f".to_owned(), 0o755), ("l".to_owned(), 0o755)]);
        }
    }

    #[test]
    fn damaged_archives_are_errors() {
        let good = tar(&[(FILE, b"a", "content")]);
        for (name, bytes) in [
            ("t.tar", b"no tar at all".repeat(100)),
            ("t.tar", b"no\x1b[2Jtar\xff\n".repeat(100)),
            ("t.tar", good.get(..600).unwrap().to_vec()),
            ("t.tgz", good.clone()),
            ("t.tar", tar(&[(EntryType::GNULongName, b"././@LongLink", &"n".repeat(2 << 20)), (FILE, b"a", "x")])),
        ] {
            let error = read_bytes(name, &bytes).map(|packed| packed.entries).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{name}: {error}");
            assert!(error.hint().is_some(), "{name}: {error}");
            assert!(!error.message().chars().any(char::is_control), "{name}: {error:?}");
        }
        let cut = good.get(..512 + 3).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(cut).unwrap();
        for (name, bytes) in [("t.tar", cut.to_vec()), ("t.tgz", gz.finish().unwrap())] {
            let error = read_bytes(name, &bytes).map(|packed| packed.entries).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
            assert!(error.message().ends_with("is not a readable archive: it ends in the middle of 'a'"), "{error}");
            assert!(error.hint().is_some());
        }
        let error = read_bytes("t.zip", b"PK").map(|packed| packed.entries).unwrap_err();
        assert!(error.message().contains("neither a directory nor"), "{error}");
    }

    #[test]
    fn a_directory_is_packed_without_following_links() {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("tree");
        std::fs::create_dir_all(tree.join("d/empty")).unwrap();
        std::fs::create_dir_all(tree.join("d/.pyro-output-0123456789abcdef/output")).unwrap();
        std::fs::write(tree.join("d/f"), "x").unwrap();
        symlink("d", tree.join("l")).unwrap();
        let roots = [home.path().to_owned()];
        let packed = read(&Roots::reading(&roots), tree.to_str().unwrap()).unwrap();
        assert_eq!((packed.mode, packed.entries, packed.bytes), ("directory", 4, 1));
        for (make, words) in [
            (Box::new(|| symlink("/etc", tree.join("bad")).unwrap()) as Box<dyn Fn()>, "has the target '/etc'"),
            (
                Box::new(|| {
                    rustix::fs::mknodat(rustix::fs::CWD, tree.join("bad"), FileType::Fifo, 0o600.into(), 0).unwrap();
                }),
                "is no file, directory or symlink",
            ),
        ] {
            make();
            let error = read(&Roots::reading(&roots), tree.to_str().unwrap()).map(|packed| packed.entries).unwrap_err();
            assert!(error.message().contains(words), "{error}");
            std::fs::remove_file(tree.join("bad")).unwrap();
        }
    }
}
