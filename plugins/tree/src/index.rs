//! Reading the table of a tar.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use tar::{Archive, EntryType, PaxExtensions};
use thiserror::Error;

/// What an archive may hold.
#[derive(Debug, Clone)]
pub struct TreeLimits {
    /// Members.
    pub entries: usize,
    /// Bytes of all names and link targets together.
    pub name_bytes: usize,
}

impl Default for TreeLimits {
    /// A large source tree with its dependencies; two indexes fit in 32 MiB of memory.
    fn default() -> Self {
        TreeLimits { entries: 100_000, name_bytes: 10 << 20 }
    }
}

/// Bytes of one path, as the kernel's `PATH_MAX`.
const MAX_PATH: u64 = 4096;
/// Bytes of one extended header; its values are paths.
const MAX_EXTENSION: u64 = 64 * 1024;

/// Why an archive was refused.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TreeError {
    #[error("archive cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("archive member `{path}`: {reason}")]
    Member { path: String, reason: &'static str },
    #[error("archive has more than {0} members")]
    TooManyEntries(usize),
    #[error("names in the archive take more than {0} bytes")]
    NamesTooLong(usize),
    #[error("`{0}` is not a file of the archive")]
    NotAFile(String),
}

impl TreeError {
    /// The next step, where the one who asked for the tree can take it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            TreeError::Member { .. } => Some("rename or remove this member, or take a part of the tree without it"),
            TreeError::TooManyEntries(_) | TreeError::NamesTooLong(_) => {
                Some("remove what is not needed, or take a part of the tree")
            }
            TreeError::Read(_) | TreeError::NotAFile(_) => None,
        }
    }
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Where its content begins in the archive.
        offset: u64,
    },
    /// A symlink.
    Symlink {
        /// Where it points; not followed, so it may be anything.
        target: String,
    },
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// False when its name or its target is not UTF-8: each byte that is not stands there as `\xNN`.
    pub is_exact: bool,
}

/// The table of an archive, and the archive for the contents.
pub struct Tree<R> {
    // Reading a file moves the reader, and callers walk the table while they read.
    reader: RefCell<R>,
    entries: BTreeMap<String, Entry>,
}

impl<R: Read + Seek> Tree<R> {
    /// Reads the table of an uncompressed tar. Only headers are read.
    ///
    /// # Errors
    /// Malformed headers, a member that is neither directory, file nor symlink, a name that is not
    /// relative and without `..`, a member below a file, contents behind the end, limits.
    pub fn index(mut reader: R, limits: &TreeLimits) -> Result<Self, TreeError> {
        let end = reader.seek(SeekFrom::End(0))?;
        reader.seek(SeekFrom::Start(0))?;
        let mut archive = Archive::new(reader);
        let mut table = Table { entries: BTreeMap::new(), name_bytes: 0, limits };
        let mut pending = Pending::default();
        // Raw: the crate's own reading of extended headers has no bound.
        for member in archive.entries_with_seek()?.raw(true) {
            let mut member = member?;
            let header = member.header();
            let (kind, mode) = (header.entry_type(), header.mode().unwrap_or(0o644) & 0o7777);
            let size = header.entry_size()?;
            let offset = member.raw_file_position();
            let plain = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            let refuse = |reason| TreeError::Member { path: plain.clone(), reason };
            if offset.checked_add(size).is_none_or(|last| last > end) {
                return Err(refuse("its content lies behind the end of the archive"));
            }
            match kind {
                EntryType::GNULongName | EntryType::GNULongLink => {
                    let value = extension(&mut member, size).map_err(refuse_or_io(&plain))?;
                    let value = value.strip_suffix(&[0]).unwrap_or(&value).to_vec();
                    let slot = if kind == EntryType::GNULongName { &mut pending.path } else { &mut pending.link };
                    *slot = Some(value);
                    continue;
                }
                EntryType::XHeader => {
                    let value = extension(&mut member, size).map_err(refuse_or_io(&plain))?;
                    pending.take_pax(&value).map_err(refuse)?;
                    continue;
                }
                // `git archive` puts its commit there; nothing that matters to a tree.
                EntryType::XGlobalHeader => continue,
                _ => {}
            }

            let Pending { path, link, size: pax_size } = std::mem::take(&mut pending);
            if pax_size.is_some_and(|pax| pax != size) {
                return Err(refuse("two different sizes"));
            }
            let path = path.unwrap_or_else(|| member.header().path_bytes().into_owned());
            let link = link.or_else(|| member.header().link_name_bytes().map(|link| link.into_owned()));
            let mut is_exact = std::str::from_utf8(&path).is_ok();
            let kind = match kind {
                EntryType::Directory => EntryKind::Directory,
                EntryType::Regular | EntryType::Continuous => EntryKind::File { size, offset },
                EntryType::Symlink => {
                    let target = link.unwrap_or_default();
                    is_exact &= std::str::from_utf8(&target).is_ok();
                    let target = shown(&target);
                    if target.is_empty() || target.contains('\0') || target.len() as u64 > MAX_PATH {
                        return Err(refuse("link target is empty or too long"));
                    }
                    EntryKind::Symlink { target }
                }
                EntryType::Link => return Err(refuse("hard links are not supported")),
                _ => return Err(refuse("only directories, files and symlinks are supported")),
            };
            table.insert(shown(&path), Entry { kind, mode, is_exact })?;
        }
        let entries = table.entries;
        Ok(Tree { reader: RefCell::new(archive.into_inner()), entries })
    }

    /// The members by path, sorted. The root itself is not among them; a directory that has members
    /// may be absent.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The content of a file, up to `limit` bytes of it from `offset` on.
    ///
    /// # Errors
    /// [`TreeError::NotAFile`], or a failed read.
    pub fn read(&self, path: &str, offset: u64, limit: u64) -> Result<Vec<u8>, TreeError> {
        let Some(Entry { kind: EntryKind::File { size, offset: start }, .. }) = self.entries.get(path) else {
            return Err(TreeError::NotAFile(path.to_owned()));
        };
        let offset = offset.min(*size);
        let wanted = limit.min(*size - offset);
        let mut reader = self.reader.borrow_mut();
        reader.seek(SeekFrom::Start(*start + offset))?;
        let mut content = Vec::new();
        (&mut *reader).take(wanted).read_to_end(&mut content)?;
        if content.len() as u64 != wanted {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(content)
    }
}

/// What extended headers said about the next member.
#[derive(Default)]
struct Pending {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Pending {
    fn take_pax(&mut self, data: &[u8]) -> Result<(), &'static str> {
        for record in PaxExtensions::new(data) {
            let record = record.map_err(|_| "malformed extended header")?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or("malformed size")?);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err("sparse files are not supported");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads the content of an extended header.
fn extension(member: &mut impl Read, size: u64) -> Result<Vec<u8>, Option<io::Error>> {
    if size > MAX_EXTENSION {
        return Err(None);
    }
    let mut value = Vec::new();
    member.take(MAX_EXTENSION).read_to_end(&mut value)?;
    Ok(value)
}

fn refuse_or_io(path: &str) -> impl Fn(Option<io::Error>) -> TreeError {
    move |error| match error {
        Some(error) => TreeError::Read(error),
        None => TreeError::Member { path: path.to_owned(), reason: "its extended header is too long" },
    }
}

/// A name of Linux as text.
fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

struct Table<'l> {
    entries: BTreeMap<String, Entry>,
    name_bytes: usize,
    limits: &'l TreeLimits,
}

impl Table<'_> {
    fn insert(&mut self, path: String, entry: Entry) -> Result<(), TreeError> {
        let refuse = |reason| Err(TreeError::Member { path: path.clone(), reason });
        let is_directory = entry.kind == EntryKind::Directory;
        let mut name = path.as_str();
        while let Some(rest) = name.strip_prefix("./") {
            name = rest;
        }
        if is_directory {
            name = name.trim_end_matches('/');
            if matches!(name, "" | ".") && !path.starts_with('/') {
                return Ok(());
            }
        }
        if path.len() as u64 > MAX_PATH || name.contains('\0') {
            return refuse("its name is too long or has a NUL");
        }
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return refuse("its name is not relative to the tree");
        }
        let mut parent = name;
        while let Some((above, _)) = parent.rsplit_once('/') {
            match self.entries.get(above).map(|entry| &entry.kind) {
                None => {}
                // Checked when it was inserted.
                Some(EntryKind::Directory) => break,
                Some(_) => return refuse("it lies below a file"),
            }
            parent = above;
        }
        if !is_directory && self.has_members(name) {
            return refuse("a file where a directory is");
        }
        if let Some(there) = self.entries.get(name)
            && (there.kind == EntryKind::Directory) != is_directory
        {
            return refuse("a file and a directory of one name");
        }
        if self.entries.get(name).is_some_and(|there| there.is_exact != entry.is_exact) {
            return refuse("another member's name is written as this one's is");
        }

        let link = match &entry.kind {
            EntryKind::Symlink { target } => target.len(),
            _ => 0,
        };
        self.name_bytes += name.len() + link;
        if self.name_bytes > self.limits.name_bytes {
            return Err(TreeError::NamesTooLong(self.limits.name_bytes));
        }
        // As tar itself: the last of two members of one name is the one that counts.
        let name = name.to_owned();
        self.entries.insert(name, entry);
        if self.entries.len() > self.limits.entries {
            return Err(TreeError::TooManyEntries(self.limits.entries));
        }
        Ok(())
    }

    fn has_members(&self, name: &str) -> bool {
        let first = format!("{name}/");
        self.entries.range(first.clone()..).next().is_some_and(|(path, _)| path.starts_with(&first))
    }
}
