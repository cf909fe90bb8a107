//! The tar format: ustar headers, with pax records for what does not fit into them. GNU's long names are read too.
//!
//! Reading believes nothing: sums are checked, sizes and extension records are bounded, and what pyro's archives may not
//! hold (hard links, devices, sparse files) is an error.

/// Headers and contents are padded to this.
pub const BLOCK: usize = 512;
/// The longest extension record that is read: a path and its target, with room for records that are skipped.
const EXTENSION_MAX: u64 = 1024 * 1024;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with so many bytes, which follow.
    File(u64),
    /// A directory.
    Directory,
    /// A symlink with this target.
    Symlink(Vec<u8>),
}

/// An entry's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its path, as it is written in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Unix seconds.
    pub mtime: u64,
}

/// Why bytes are not an archive that may be unpacked.
pub type Malformed = String;

/// What a header block begins.
enum Block {
    /// An entry.
    Entry(Head),
    /// An extension of the next header, of so many bytes.
    Extension(Extension, u64),
    /// The end of the archive.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Extension {
    Pax,
    Ignored,
    LongPath,
    LongTarget,
}

/// Reads headers from a source of bytes.
#[derive(Default)]
pub struct HeadReader {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<u64>,
}

impl HeadReader {
    /// Returns the next entry's head; `None` is the end of the archive. `read` fills the buffer it is given.
    ///
    /// # Errors
    /// `wrap` of what is wrong, and what `read` fails with.
    pub fn next<E>(
        &mut self,
        mut read: impl FnMut(&mut [u8]) -> Result<(), E>,
        wrap: impl Fn(Malformed) -> E,
    ) -> Result<Option<Head>, E> {
        loop {
            let mut block = [0; BLOCK];
            read(&mut block)?;
            match self.block(&block).map_err(&wrap)? {
                Block::End => return Ok(None),
                Block::Entry(head) => return Ok(Some(head)),
                Block::Extension(extension, size) => {
                    if size > EXTENSION_MAX {
                        return Err(wrap(format!("it has an extension record of {size} bytes")));
                    }
                    let size = usize::try_from(size).unwrap_or(usize::MAX);
                    let mut bytes = vec![0; padded(size)];
                    read(&mut bytes)?;
                    bytes.truncate(size);
                    self.extend(extension, &bytes).map_err(&wrap)?;
                }
            }
        }
    }

    fn block(&mut self, block: &[u8; BLOCK]) -> Result<Block, Malformed> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(Block::End);
        }
        check_sum(block)?;
        let size = number(field(block, 124, 12)).ok_or("a size in it is not a number")?;
        let flag = block.get(156).copied().unwrap_or(0);
        match flag {
            b'x' => return Ok(Block::Extension(Extension::Pax, size)),
            b'g' => return Ok(Block::Extension(Extension::Ignored, size)),
            b'L' => return Ok(Block::Extension(Extension::LongPath, size)),
            b'K' => return Ok(Block::Extension(Extension::LongTarget, size)),
            _ => {}
        }
        let mut path = self.path.take().unwrap_or_else(|| name_and_prefix(block));
        let target = self.target.take();
        let size = self.size.take().unwrap_or(size);
        let mtime = self.mtime.take().or_else(|| number(field(block, 136, 12))).unwrap_or(0);
        let mode = number(field(block, 100, 8)).ok_or("a mode in it is not a number")?;
        let shown = String::from_utf8_lossy(&path).into_owned();
        // Before ustar, a directory was a file whose name ends in a slash.
        let is_directory = flag == b'5' || (flag == 0 && path.ends_with(b"/"));
        let kind = match flag {
            _ if is_directory => Kind::Directory,
            0 | b'0' | b'7' => Kind::File(size),
            b'2' => Kind::Symlink(target.unwrap_or_else(|| until_zero(field(block, 157, 100)).to_vec())),
            b'1' => return Err(format!("`{shown}` is a hard link")),
            b'3' | b'4' => return Err(format!("`{shown}` is a device")),
            b'6' => return Err(format!("`{shown}` is a named pipe")),
            other => return Err(format!("`{shown}` is of the unknown type {:?}", char::from(other))),
        };
        if !matches!(kind, Kind::File(_)) && size != 0 {
            return Err(format!("`{shown}` has content, but is not a file"));
        }
        while path.last() == Some(&b'/') && path.len() > 1 {
            path.pop();
        }
        let mode = u32::try_from(mode & 0o7777).unwrap_or(0);
        Ok(Block::Entry(Head { path, kind, mode, mtime }))
    }

    fn extend(&mut self, extension: Extension, bytes: &[u8]) -> Result<(), Malformed> {
        match extension {
            Extension::Ignored => {}
            Extension::LongPath => self.path = Some(until_zero(bytes).to_vec()),
            Extension::LongTarget => self.target = Some(until_zero(bytes).to_vec()),
            Extension::Pax => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let (key, value, after) = pax_record(rest).ok_or("a pax record in it is malformed")?;
                    match key {
                        b"path" => self.path = Some(value.to_vec()),
                        b"linkpath" => self.target = Some(value.to_vec()),
                        b"size" => self.size = Some(decimal(value).ok_or("a pax size in it is not a number")?),
                        b"mtime" => self.mtime = decimal(value.split(|byte| *byte == b'.').next().unwrap_or(b"")),
                        key if key.starts_with(b"GNU.sparse") => return Err("it has a sparse file".to_owned()),
                        _ => {}
                    }
                    rest = after;
                }
            }
        }
        Ok(())
    }
}

/// Appends the header of an entry to `out`, with a pax record before it where it needs one.
pub fn write_head(head: &Head, out: &mut Vec<u8>) {
    let mut path = head.path.clone();
    if head.kind == Kind::Directory {
        path.push(b'/');
    }
    let (flag, size, target) = match &head.kind {
        Kind::File(size) => (b'0', *size, &[][..]),
        Kind::Directory => (b'5', 0, &[][..]),
        Kind::Symlink(target) => (b'2', 0, target.as_slice()),
    };
    let mut pax = Vec::new();
    if path.len() > 100 {
        write_pax(b"path", &path, &mut pax);
    }
    if target.len() > 100 {
        write_pax(b"linkpath", target, &mut pax);
    }
    if size > 0o777_7777_7777 {
        write_pax(b"size", size.to_string().as_bytes(), &mut pax);
    }
    if !pax.is_empty() {
        write_header(b"././@PaxHeader", b'x', 0o644, pax.len() as u64, 0, b"", out);
        out.extend_from_slice(&pax);
        pad(pax.len() as u64, out);
    }
    write_header(&path, flag, head.mode, size, head.mtime, target, out);
}

/// Appends the zeroes that follow a content of `size` bytes.
pub fn pad(size: u64, out: &mut Vec<u8>) {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if over > 0 {
        out.resize(out.len() + BLOCK - over, 0);
    }
}

/// Appends the end of an archive.
pub fn write_end(out: &mut Vec<u8>) {
    out.resize(out.len() + 2 * BLOCK, 0);
}

fn padded(size: usize) -> usize {
    size.div_ceil(BLOCK).saturating_mul(BLOCK)
}

fn write_header(path: &[u8], flag: u8, mode: u32, size: u64, mtime: u64, target: &[u8], out: &mut Vec<u8>) {
    let mut block = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, path.get(..path.len().min(100)).unwrap_or_default());
    put(100, format!("{:07o}", mode & 0o7777).as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    // What is too large for a field is in a pax record; its low bits here mislead nobody.
    put(124, format!("{:011o}", size & 0o777_7777_7777).as_bytes());
    put(136, format!("{:011o}", mtime & 0o777_7777_7777).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, target.get(..target.len().min(100)).unwrap_or_default());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    for (to, from) in block.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *to = from;
    }
    out.extend_from_slice(&block);
}

/// A record begins with its own length in decimal, which counts itself.
fn write_pax(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, bytes.get(length..)?))
}

fn check_sum(block: &[u8; BLOCK]) -> Result<(), Malformed> {
    let stored = number(field(block, 148, 8)).ok_or("it is not a tar archive")?;
    let bytes = |sum: i64, (at, byte): (usize, &u8), signed: bool| {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        sum + if signed { i64::from(byte.cast_signed()) } else { i64::from(byte) }
    };
    let unsigned = block.iter().enumerate().fold(0, |sum, item| bytes(sum, item, false));
    let signed = block.iter().enumerate().fold(0, |sum, item| bytes(sum, item, true));
    if [unsigned, signed].contains(&i64::try_from(stored).unwrap_or(-1)) {
        Ok(())
    } else {
        Err("it is not a tar archive, or is damaged".to_owned())
    }
}

fn name_and_prefix(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_zero(field(block, 0, 100));
    let prefix = until_zero(field(block, 345, 155));
    // GNU's own format has other things in the place of the prefix.
    if field(block, 257, 6) == b"ustar\0" && !prefix.is_empty() {
        return [prefix, name].join(&b'/');
    }
    name.to_vec()
}

fn field(block: &[u8; BLOCK], at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// An octal number that a space or zero byte may end, or GNU's binary form.
fn number(bytes: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = bytes.split_first()
        && first & 0x80 != 0
    {
        // A negative one, as of a time before 1970, is refused.
        return (first & 0x7f == 0)
            .then(|| rest.iter().try_fold(0u64, |sum, byte| Some(sum.checked_mul(256)? | u64::from(*byte))))?;
    }
    let mut digits = bytes.iter().skip_while(|byte| **byte == b' ').take_while(|byte| !matches!(**byte, b' ' | 0));
    digits.try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'7' => Some(sum.checked_mul(8)? + u64::from(byte - b'0')),
        _ => None,
    })
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Reads every head and skips every content, as unpacking does.
    fn read_all(mut bytes: &[u8]) -> Result<Vec<Head>, String> {
        let mut reader = HeadReader::default();
        let mut heads = Vec::new();
        loop {
            let fill = |buffer: &mut [u8]| {
                let (now, rest) = bytes.split_at_checked(buffer.len()).ok_or("cut")?;
                buffer.copy_from_slice(now);
                bytes = rest;
                Ok(())
            };
            let Some(head) = reader.next(fill, |reason| reason)? else { return Ok(heads) };
            if let Kind::File(size) = head.kind {
                bytes = bytes.get(padded(usize::try_from(size).unwrap())..).ok_or("cut")?;
            }
            heads.push(head);
        }
    }

    fn head() -> impl Strategy<Value = Head> {
        let name = || "[a-z\u{e9} ./]{1,300}".prop_filter("no slash at its end", |name| !name.ends_with('/'));
        let kind = prop_oneof![
            (0u64..2000).prop_map(Kind::File),
            Just(Kind::Directory),
            name().prop_map(|target| Kind::Symlink(target.into_bytes())),
        ];
        (name(), kind, 0u32..0o10000, 0u64..0o777_7777_7777).prop_map(|(path, kind, mode, mtime)| Head {
            path: path.into_bytes(),
            kind,
            mode,
            mtime,
        })
    }

    fn write_all(heads: &[Head]) -> Vec<u8> {
        let mut out = Vec::new();
        for head in heads {
            write_head(head, &mut out);
            if let Kind::File(size) = head.kind {
                out.resize(out.len() + usize::try_from(size).unwrap(), b'x');
                pad(size, &mut out);
            }
        }
        write_end(&mut out);
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(heads in vec(head(), 0..6)) {
            prop_assert_eq!(read_all(&write_all(&heads)), Ok(heads));
        }

        #[test]
        fn damage_never_panics(heads in vec(head(), 1..4), damage in vec((any::<usize>(), any::<u8>()), 0..8)) {
            let mut bytes = write_all(&heads);
            for (at, byte) in damage {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let _ = read_all(&bytes);
        }

        #[test]
        fn pax_records_never_panic(bytes in vec(any::<u8>(), 0..200), digits in "[0-9]{0,25} [a-z]{0,5}=?.{0,9}\n?") {
            let _ = HeadReader::default().extend(Extension::Pax, &bytes);
            let _ = HeadReader::default().extend(Extension::Pax, digits.as_bytes());
        }
    }

    #[test]
    fn numbers_have_two_forms() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0"), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 2, 0, 0, 0, 0]), Some(0x2_0000_0000));
        assert_eq!(number(b"64x\0"), None);
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn a_size_past_what_ustar_can_say_is_kept() {
        let head = Head { path: b"big".to_vec(), kind: Kind::File(1 << 40), mode: 0o644, mtime: 0 };
        let mut out = Vec::new();
        write_head(&head, &mut out);
        let mut rest = out.as_slice();
        let read = HeadReader::default().next(
            |buffer| {
                let (now, later) = rest.split_at(buffer.len());
                buffer.copy_from_slice(now);
                rest = later;
                Ok::<(), String>(())
            },
            |reason| reason,
        );
        assert_eq!(read, Ok(Some(head)));
    }
}
