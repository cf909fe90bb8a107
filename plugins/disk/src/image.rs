//! Listing and reading an ext4 image.
//!
//! The image was written by a guest, so everything in it may be a lie: sizes, directories that
//! contain themselves, names of any bytes. Work is bounded by the caller's limits, and a damaged
//! structure is an error.

use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType, Metadata};
use thiserror::Error;

/// Bytes of one path while listing; a directory that contains itself ends there.
const MAX_PATH: usize = 4096;
/// Directory entries looked at in one listing, shown or not.
const MAX_VISITED: usize = 200_000;

/// Why a disk cannot be listed or read.
#[derive(Debug, Error)]
pub enum ImageError {
    #[error("workspace disk path does not exist: {0}")]
    NotFound(String),
    #[error("workspace disk read only supports regular files: {0}")]
    NotAFile(String),
    #[error("a file on the way to {0} is not a directory")]
    NotADirectory(String),
    #[error("disk cannot be read at {path}: {reason}")]
    Damaged { path: String, reason: String },
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
}

impl Kind {
    /// Its word in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Symlink => "symlink",
        }
    }
}

/// One path of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Absolute; bytes that are no UTF-8 became U+FFFD.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file, 0 for a directory, the length of a symlink's target.
    pub size: u64,
    /// Where a symlink points.
    pub link_target: Option<String>,
}

/// The beginning of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// At most as many bytes as were asked for.
    pub bytes: Vec<u8>,
    /// Bytes of the whole file.
    pub size: u64,
}

/// An ext4 file system.
pub struct Image {
    fs: Ext4,
}

impl Image {
    /// Opens the file system; its journal is replayed in memory, because a stopped machine may have
    /// left one.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] when it is no ext4 file system that can be read.
    pub fn open(disk: impl Ext4Read + 'static) -> Result<Self, ImageError> {
        let fs = Ext4::load(Box::new(disk)).map_err(|error| damaged("/", &error))?;
        Ok(Image { fs })
    }

    /// The entry at `path`, or those below it when it is a directory; sorted by path, at most
    /// `limit`. The flag says that there are more. Devices, sockets and pipes are left out;
    /// symlinks are not followed.
    ///
    /// # Errors
    /// Every [`ImageError`] but [`ImageError::NotAFile`].
    pub fn list(&self, path: &str, recursive: bool, limit: usize) -> Result<(Vec<Listed>, bool), ImageError> {
        let metadata = self.fs.symlink_metadata(path).map_err(|error| at(path, error))?;
        if !metadata.is_dir() {
            let listed = self.listed(path.as_bytes(), &metadata)?;
            return Ok((listed.into_iter().collect(), false));
        }
        let mut out: Vec<Listed> = Vec::new();
        let mut visited = 0;
        let mut open: Vec<Vec<u8>> = vec![path.as_bytes().to_vec()];
        let mut more = false;
        while let Some(directory) = open.pop() {
            let shown = || String::from_utf8_lossy(&directory).into_owned();
            let entries = self.fs.read_dir(directory.as_slice()).map_err(|error| damaged(&shown(), &error))?;
            let mut below = Vec::new();
            for entry in entries {
                let entry = entry.map_err(|error| damaged(&shown(), &error))?;
                visited += 1;
                if visited > MAX_VISITED {
                    more = true;
                    break;
                }
                let name = entry.file_name();
                if matches!(name.as_ref(), b"." | b"..") {
                    continue;
                }
                let path = join(&directory, name.as_ref());
                let metadata = entry.metadata().map_err(|error| damaged(&shown(), &error))?;
                if path.len() > MAX_PATH {
                    more = true;
                    continue;
                }
                let Some(listed) = self.listed(&path, &metadata)? else {
                    continue;
                };
                below.push((path, listed));
            }
            // Depth first in the order of names, so that a limit cuts the list at one place. The
            // order of a directory before its siblings (`a/b` before `a.b`) is put right below.
            below.sort_by(|a, b| a.0.cmp(&b.0));
            if recursive {
                open.extend(
                    below.iter().rev().filter(|(_, e)| e.kind == Kind::Directory).map(|(path, _)| path.clone()),
                );
            }
            out.extend(below.into_iter().map(|(_, listed)| listed));
            if visited > MAX_VISITED || out.len() > limit {
                more |= out.len() > limit || !open.is_empty();
                break;
            }
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        out.truncate(limit);
        Ok((out, more))
    }

    /// The first `max_bytes` of a regular file.
    ///
    /// # Errors
    /// [`ImageError::NotAFile`] for anything else, a symlink too.
    pub fn read(&self, path: &str, max_bytes: usize) -> Result<Content, ImageError> {
        let metadata = self.fs.symlink_metadata(path).map_err(|error| at(path, error))?;
        if metadata.file_type() != FileType::Regular {
            return Err(ImageError::NotAFile(path.to_owned()));
        }
        let mut file = self.fs.open(path).map_err(|error| at(path, error))?;
        let mut bytes = Vec::new();
        let mut block = vec![0; 64 * 1024];
        while bytes.len() < max_bytes {
            let wanted = block.len().min(max_bytes - bytes.len());
            let count =
                file.read_bytes(block.get_mut(..wanted).unwrap_or_default()).map_err(|error| at(path, error))?;
            if count == 0 {
                break;
            }
            bytes.extend_from_slice(block.get(..count).unwrap_or_default());
        }
        Ok(Content { bytes, size: metadata.len() })
    }

    fn listed(&self, path: &[u8], metadata: &Metadata) -> Result<Option<Listed>, ImageError> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let (kind, size, link_target) = match metadata.file_type() {
            FileType::Directory => (Kind::Directory, 0, None),
            FileType::Regular => (Kind::File, metadata.len(), None),
            FileType::Symlink => {
                // The reader makes room for what the inode says, before it looks.
                if metadata.len() > MAX_PATH as u64 {
                    return Err(ImageError::Damaged {
                        path: shown,
                        reason: format!("a symlink of {} bytes", metadata.len()),
                    });
                }
                let target = self.fs.read_link(path).map_err(|error| damaged(&shown, &error))?;
                let target = target.display().to_string();
                (Kind::Symlink, target.len() as u64, Some(target))
            }
            _ => return Ok(None),
        };
        Ok(Some(Listed { path: shown, kind, size, link_target }))
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// An error about a path that the caller named.
fn at(path: &str, error: Ext4Error) -> ImageError {
    match error {
        Ext4Error::NotFound => ImageError::NotFound(path.to_owned()),
        Ext4Error::NotADirectory => ImageError::NotADirectory(path.to_owned()),
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => ImageError::NotAFile(path.to_owned()),
        error => damaged(path, &error),
    }
}

fn damaged(path: &str, error: &Ext4Error) -> ImageError {
    ImageError::Damaged { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::process::Command;
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::*;
    use crate::pages::Pages;

    fn mke2fs(root: &Path, image: &Path, size: &str, options: &[&str]) {
        let output = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(root)
            .args(options)
            .arg(image)
            .arg(size)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .expect("this test needs `mke2fs` (e2fsprogs) installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// An image with every kind of entry, made once.
    fn bytes() -> &'static [u8] {
        static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
        IMAGE.get_or_init(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let root = dir.path().join("root");
            let work = root.join("workspace");
            fs::create_dir_all(work.join("sub dir/deep")).expect("mkdir");
            fs::create_dir_all(work.join("many")).expect("mkdir");
            fs::write(work.join("hello"), "hello\n").expect("write");
            fs::write(work.join("sub dir/deep/b"), vec![b'b'; 200_000]).expect("write");
            fs::write(work.join("sub dir/\u{e4}\u{a0}x"), "").expect("write");
            fs::write(work.join("sub.txt"), "x").expect("write");
            symlink("hello", work.join("fast")).expect("symlink");
            symlink("t/".repeat(100), work.join("slow")).expect("symlink");
            symlink("loop", work.join("loop")).expect("symlink");
            for n in 0..600 {
                fs::write(work.join(format!("many/file-with-a-long-name-{n:05}")), "").expect("write");
            }
            let made = Command::new("mkfifo").arg(work.join("pipe")).status().expect("mkfifo");
            assert!(made.success());
            let image = dir.path().join("image");
            mke2fs(&root, &image, "4M", &["-b", "1024"]);
            fs::read(image).expect("read")
        })
    }

    fn open(bytes: Vec<u8>) -> Result<Image, ImageError> {
        let size = bytes.len() as u64;
        Image::open(Pages::new(size, move |offset, length| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            bytes[start..bytes.len().min(start + length as usize)].to_vec()
        }))
    }

    fn image() -> Image {
        open(bytes().to_vec()).expect("an image")
    }

    fn lines(list: &[Listed]) -> Vec<String> {
        list.iter()
            .map(|e| format!("{} {} {} {}", e.kind.as_str(), e.size, e.path, e.link_target.as_deref().unwrap_or("-")))
            .collect()
    }

    #[test]
    fn a_directory_lists_its_entries() {
        let (list, more) = image().list("/workspace", false, 100).unwrap();
        assert_eq!(
            lines(&list),
            [
                "symlink 5 /workspace/fast hello",
                "file 6 /workspace/hello -",
                "symlink 4 /workspace/loop loop",
                "directory 0 /workspace/many -",
                &format!("symlink 200 /workspace/slow {}", "t/".repeat(100)),
                "directory 0 /workspace/sub dir -",
                "file 1 /workspace/sub.txt -",
            ]
        );
        assert!(!more);
    }

    #[test]
    fn a_recursive_list_is_sorted_and_complete() {
        let (list, more) = image().list("/workspace", true, 1000).unwrap();
        assert_eq!((list.len(), more), (7 + 3 + 600, false));
        assert!(list.is_sorted_by(|a, b| a.path < b.path));
        assert!(list.iter().any(|e| e.path == "/workspace/sub dir/\u{e4}\u{a0}x"));
        let (list, more) = image().list("/workspace", true, 50).unwrap();
        assert_eq!((list.len(), more), (50, true));
        let (list, _) = image().list("/", true, 1000).unwrap();
        assert!(list.iter().any(|e| e.path == "/lost+found"));
        let (list, _) = image().list("/workspace/slow", true, 10).unwrap();
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn a_file_is_read_up_to_the_limit() {
        let content = image().read("/workspace/sub dir/deep/b", 100_000).unwrap();
        assert_eq!((content.bytes.len(), content.size), (100_000, 200_000));
        assert!(content.bytes.iter().all(|byte| *byte == b'b'));
        assert_eq!(image().read("/workspace/hello", 100).unwrap().bytes, b"hello\n");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let image = image();
        assert!(matches!(image.list("/workspace/none", false, 9), Err(ImageError::NotFound(_))));
        assert!(matches!(image.read("/workspace/none", 9), Err(ImageError::NotFound(_))));
        for path in ["/workspace", "/workspace/fast", "/workspace/pipe"] {
            assert!(matches!(image.read(path, 9), Err(ImageError::NotAFile(_))), "{path}");
        }
        assert!(matches!(image.read("/workspace/hello/x", 9), Err(ImageError::NotADirectory(_))));
        assert!(image.read("/workspace/loop/x", 9).is_err());
        assert!(open(vec![0; 100_000]).is_err());
        assert!(open(Vec::new()).is_err());
    }

    #[test]
    fn truncated_images_are_errors() {
        for keep in [1, 2, 5, 50, 500, 2000] {
            if let Ok(image) = open(bytes()[..keep * 1024].to_vec()) {
                let _ = image.list("/", true, 5000);
                let _ = image.read("/workspace/sub dir/deep/b", 1 << 20);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Damage where the metadata lies: nothing panics and nothing runs without end. (A checksum
        /// catches most of it; images without checksums come next.)
        #[test]
        fn damaged_images_are_errors(flips in prop::collection::vec((0_usize..400_000, any::<u8>()), 1..30)) {
            survive(bytes(), &flips)?;
        }

        // `ext4-view` makes room for a symlink on the way of a path by the size that its inode says. The component's
        // memory limit ends that; a test that runs on the host cannot.
        #[test]
        #[ignore = "may ask for more memory than the host has"]
        fn damaged_images_without_checksums_are_errors(flips in prop::collection::vec((0_usize..400_000, any::<u8>()), 1..60)) {
            survive(unchecked(), &flips)?;
        }
    }

    /// The image without checksums and journal, so that damage reaches the code behind them.
    fn unchecked() -> &'static [u8] {
        static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
        IMAGE.get_or_init(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let root = dir.path().join("root");
            fs::create_dir_all(root.join("workspace/a/b/c")).expect("mkdir");
            fs::write(root.join("workspace/sub"), vec![b'b'; 100_000]).expect("write");
            symlink("t/".repeat(100), root.join("workspace/slow")).expect("symlink");
            for n in 0..100 {
                fs::write(root.join(format!("workspace/a/{n}")), "x").expect("write");
            }
            let image = dir.path().join("image");
            mke2fs(
                &root,
                &image,
                "1M",
                &["-b", "1024", "-O", "^metadata_csum,^has_journal,^resize_inode", "-N", "256"],
            );
            fs::read(image).expect("read")
        })
    }

    fn survive(bytes: &[u8], flips: &[(usize, u8)]) -> Result<(), TestCaseError> {
        let mut bytes = bytes.to_vec();
        for (at, byte) in flips {
            bytes[*at % (256 * 1024)] = *byte;
        }
        let started = std::time::Instant::now();
        if let Ok(image) = open(bytes) {
            let listed = image.list("/", true, 2000).map(|(list, _)| list).unwrap_or_default();
            for entry in listed.iter().take(50) {
                let _ = image.read(&entry.path, 1 << 20);
            }
        }
        prop_assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
        Ok(())
    }
}
