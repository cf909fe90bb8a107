//! Turning a root file system in tar form into one ext4 image, without root and without mounting anything.
//!
//! The tar is read as a stream, straight from the program that makes it. The image has no journal: machines write to
//! copies of it that live as long as they do.
//!
//! Deliberately absent: device nodes, FIFOs and sockets. The guest's kernel makes its own `/dev`, and no Debian package
//! ships the others.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io::{self, BufReader, Read},
    path::{Component, Path},
};

use arcbox_ext4::{
    FileTimestamps, FormatOptions, Formatter,
    constants::{file_mode, make_mode},
    error::FormatError,
};
use tar::EntryType;

/// What dpkg knows about the packages of a root file system.
const DPKG_STATUS: &str = "/var/lib/dpkg/status";
/// Far above any real one (a full desktop has about 5 MB).
const MAX_STATUS_BYTES: u64 = 64 * 1024 * 1024;
/// PAX names of extended attributes begin with this.
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("the tar is damaged: {0}")]
    Tar(#[source] io::Error),
    #[error("`{0}` cannot be a name in the image")]
    Name(String),
    #[error("hard link `{0}` leads nowhere")]
    Link(String),
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Format(FormatError),
    #[error(transparent)]
    Io(io::Error),
}

impl From<FormatError> for ImageError {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Io(error) => Self::Io(error),
            other => Self::Format(other),
        }
    }
}

/// A file or directory that replaces what the tar has at its path.
#[derive(Debug, Clone)]
pub(crate) enum Extra {
    File(&'static str, u16, String),
    Dir(&'static str, u16),
}

impl Extra {
    fn path(&self) -> &'static str {
        match self {
            Self::File(path, ..) | Self::Dir(path, _) => path,
        }
    }
}

/// What to make.
pub(crate) struct ImageSpec<'a> {
    pub(crate) size: u64,
    pub(crate) extras: &'a [Extra],
    /// Directories that are made empty: what the tar has below them is left out.
    pub(crate) emptied: &'a [&'a str],
    /// Says which paths of the tar are left out. A directory that something in it needs is made all the same.
    pub(crate) left_out: fn(&str) -> bool,
}

/// What was made.
#[derive(Debug, Default)]
pub(crate) struct ImageStats {
    /// Bytes of the files' contents.
    pub(crate) content_bytes: u64,
    /// Entries that ext4 images of ours do not hold.
    pub(crate) skipped: u64,
    /// Installed packages as `name version`, sorted.
    pub(crate) packages: Vec<String>,
}

/// Writes an ext4 image at `path` from a tar. `advance` is told the bytes read so far and answers whether to go on.
///
/// # Errors
/// [`ImageError`]; the half-written file is the caller's to remove.
pub(crate) fn write_image(
    tar: impl Read,
    path: &Path,
    spec: &ImageSpec<'_>,
    advance: &mut dyn FnMut(u64) -> bool,
) -> Result<ImageStats, ImageError> {
    let mut image = Formatter::with_options(path, FormatOptions::new(spec.size).label("pyro-root"))?;
    let mut stats = ImageStats::default();
    let mut links = BTreeMap::new();
    // Which inode a hard link's target is: the writer cannot link to a link.
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, tar));
    let mut read_bytes = 0u64;
    for entry in archive.entries().map_err(ImageError::Tar)? {
        let mut entry = entry.map_err(ImageError::Tar)?;
        read_bytes += entry.size() + 512;
        if !advance(read_bytes) {
            return Err(ImageError::Cancelled);
        }
        let name = name_of(&entry.path_bytes())?;
        if name == "/" {
            image.set_permissions("/", 0o755)?;
            continue;
        }
        if (spec.left_out)(&name)
            || spec.extras.iter().any(|extra| extra.path() == name)
            || spec.emptied.iter().any(|dir| name.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')))
        {
            continue;
        }
        let kind = entry.header().entry_type();
        if kind == EntryType::Link {
            let target = entry.link_name_bytes().ok_or_else(|| ImageError::Link(name.clone()))?;
            links.insert(name, name_of(&target)?);
            continue;
        }
        let owner = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let (uid, gid) = (owner(entry.header().uid()), owner(entry.header().gid()));
        let mode = entry.header().mode().unwrap_or(0o644) & 0o7777;
        let mode = mode as u16;
        let mtime = entry.header().mtime().unwrap_or(0);
        let xattrs = xattrs_of(&mut entry)?;
        let xattrs = (!xattrs.is_empty()).then_some(&xattrs);
        let times = Some(times(mtime));
        match kind {
            EntryType::Directory => {
                let mode = make_mode(file_mode::S_IFDIR, mode);
                image.create(&name, mode, None, times, None, Some(uid), Some(gid), xattrs)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                stats.content_bytes += entry.size();
                let mode = make_mode(file_mode::S_IFREG, mode);
                if name == DPKG_STATUS {
                    let mut text = Vec::new();
                    (&mut entry).take(MAX_STATUS_BYTES).read_to_end(&mut text).map_err(ImageError::Tar)?;
                    stats.packages = packages_of(&String::from_utf8_lossy(&text));
                    let mut data = text.as_slice();
                    image.create(&name, mode, None, times, Some(&mut data), Some(uid), Some(gid), xattrs)?;
                } else {
                    // The writer takes any failed read for its own; this one belongs to the tar.
                    let mut source = Source { inner: &mut entry, failed: RefCell::new(None) };
                    let made = image.create(&name, mode, None, times, Some(&mut source), Some(uid), Some(gid), xattrs);
                    if let Some(error) = source.failed.into_inner() {
                        return Err(ImageError::Tar(error));
                    }
                    made?;
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| ImageError::Link(name.clone()))?;
                let target = String::from_utf8(target.into_owned()).map_err(|_| ImageError::Link(name.clone()))?;
                let mode = make_mode(file_mode::S_IFLNK, 0o777);
                image.create(&name, mode, Some(&target), times, None, Some(uid), Some(gid), None)?;
            }
            _ => stats.skipped += 1,
        }
    }
    for (name, target) in &links {
        image.link(name, resolve(target, &links).ok_or_else(|| ImageError::Link(name.clone()))?).map_err(|error| {
            match error {
                FormatError::NotFound(_) => ImageError::Link(name.clone()),
                other => other.into(),
            }
        })?;
    }
    for extra in spec.extras {
        match extra {
            Extra::File(path, mode, text) => {
                let mode = make_mode(file_mode::S_IFREG, *mode);
                image.create(path, mode, None, None, Some(&mut text.as_bytes()), Some(0), Some(0), None)?;
            }
            Extra::Dir(path, mode) => {
                image.create(path, make_mode(file_mode::S_IFDIR, *mode), None, None, None, Some(0), Some(0), None)?;
            }
        }
    }
    image.close()?;
    Ok(stats)
}

/// Returns a tar entry's name as an absolute path.
fn name_of(bytes: &[u8]) -> Result<String, ImageError> {
    let refused = || ImageError::Name(String::from_utf8_lossy(bytes).chars().take(200).collect());
    let text = std::str::from_utf8(bytes).map_err(|_| refused())?;
    let mut out = String::with_capacity(text.len() + 1);
    for part in Path::new(text).components() {
        match part {
            Component::Normal(part) => {
                out.push('/');
                // ext4's own limit; the writer does not check it.
                out.push_str(part.to_str().filter(|part| part.len() <= 255).ok_or_else(refused)?);
            }
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(refused()),
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    Ok(out)
}

/// Follows links to links; `None` for a circle.
fn resolve<'a>(target: &'a str, links: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let mut at = target;
    for _ in 0..=links.len() {
        match links.get(at) {
            Some(next) => at = next,
            None => return Some(at),
        }
    }
    None
}

fn xattrs_of<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<HashMap<String, Vec<u8>>, ImageError> {
    let mut out = HashMap::new();
    if let Some(extensions) = entry.pax_extensions().map_err(ImageError::Tar)? {
        for extension in extensions {
            let extension = extension.map_err(ImageError::Tar)?;
            if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(XATTR_PREFIX)) {
                out.insert(name.to_owned(), extension.value_bytes().to_vec());
            }
        }
    }
    Ok(out)
}

fn times(mtime: u64) -> FileTimestamps {
    // ext4 keeps the seconds beyond 2038 in two more bits.
    let (low, high) = (mtime as u32, ((mtime.wrapping_add(1 << 31) >> 32) as u32) & 3);
    FileTimestamps {
        access_lo: low,
        access_hi: high,
        modification_lo: low,
        modification_hi: high,
        creation_lo: low,
        creation_hi: high,
        ..FileTimestamps::default()
    }
}

fn packages_of(status: &str) -> Vec<String> {
    let mut out: Vec<_> = status
        .split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            field("Status:").filter(|status| status.ends_with(" installed"))?;
            Some(format!("{} {}", field("Package:")?, field("Version:")?))
        })
        .collect();
    out.sort();
    out
}

/// Keeps a failed read apart from a failed write.
struct Source<'a, R> {
    inner: &'a mut R,
    failed: RefCell<Option<io::Error>>,
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect_err(|error| {
            *self.failed.borrow_mut() = Some(io::Error::new(error.kind(), error.to_string()));
        })
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
