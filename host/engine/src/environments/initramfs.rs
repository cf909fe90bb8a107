//! Writing the initial RAM file system: the agent as `/init` and the modules it loads.
//!
//! Format: "newc" cpio, `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel. It is not compressed:
//! the guest would pay for that on its (perhaps software) CPU, the host reads it from the page cache.

use std::io::{self, Write};

/// Raised when the same agent and modules would give other bytes.
pub(crate) const REVISION: u32 = 2;

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The agent reads this file: one module file name per line, relative to `/modules`, in loading order.
const ORDER: &str = "modules/order";

/// What the archive's size is a multiple of. QEMU puts it as high in the guest's memory as it fits, at a page, and SeaBIOS
/// from 1.16.3 has the ACPI tables of a microvm in the last page: an archive that ends within a page is written over them.
const SIZE_STEP: u64 = 4096;

/// Writes the archive. The same input gives the same bytes.
///
/// # Errors
/// What `out` says; `InvalidInput` for a file beyond 4 GiB, which the format cannot hold.
pub(crate) fn write(out: impl Write, agent: &[u8], modules: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut archive = Cpio { out, written: 0, inode: 0 };
    archive.entry("dev", DIRECTORY | 0o755, &[], (0, 0))?;
    // Without it the kernel starts /init with no standard output, and a failing agent would fail in silence.
    archive.entry("dev/console", CHARACTER_DEVICE | 0o600, &[], (5, 1))?;
    archive.entry("modules", DIRECTORY | 0o755, &[], (0, 0))?;
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.entry(ORDER, REGULAR | 0o644, order.as_bytes(), (0, 0))?;
    for (name, bytes) in modules {
        archive.entry(&format!("modules/{name}"), REGULAR | 0o644, bytes, (0, 0))?;
    }
    archive.entry("init", REGULAR | 0o755, agent, (0, 0))?;
    archive.end()
}

struct Cpio<W> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Cpio<W> {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` does not fit into a cpio"));
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let mut header = String::from("070701");
        // inode, mode, uid, gid, links, mtime, size, device of the file system, device of the node, name size, check.
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align(4)?;
        self.put(data)?;
        self.align(4)
    }

    fn end(mut self) -> io::Result<()> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[], (0, 0))?;
        self.align(SIZE_STEP)?;
        self.out.flush()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn align(&mut self, to: u64) -> io::Result<()> {
        while !self.written.is_multiple_of(to) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, data and device.
    type Entry = (String, u32, Vec<u8>, (u32, u32));

    /// Returns every entry, read back by the format's own rules.
    fn parse(mut bytes: &[u8]) -> Vec<Entry> {
        let mut out = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                u32::from_str_radix(std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let data = (110 + name_size).next_multiple_of(4);
            let next = (data + size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert!(bytes[next..].iter().all(|byte| *byte == 0));
                return out;
            }
            out.push((name, mode, bytes[data..data + size].to_vec(), device));
            bytes = &bytes[next..];
        }
    }

    fn archive() -> Vec<u8> {
        let mut out = Vec::new();
        let modules = [("a.ko".to_owned(), vec![1; 5]), ("b.ko".to_owned(), vec![2; 8])];
        write(&mut out, b"agent", &modules).unwrap();
        out
    }

    #[test]
    fn everything_is_where_the_kernel_and_the_agent_look() {
        let bytes = archive();
        assert_eq!(bytes.len() as u64 % SIZE_STEP, 0);
        let entries = parse(&bytes);
        let find = |name: &str| entries.iter().find(|entry| entry.0 == name).unwrap();
        assert_eq!(find("init").1, REGULAR | 0o755);
        assert_eq!(find("init").2, b"agent");
        assert_eq!(find("modules/order").2, b"a.ko\nb.ko\n");
        assert_eq!(find("modules/b.ko").2, [2; 8]);
        assert_eq!((find("dev/console").1, find("dev/console").3), (CHARACTER_DEVICE | 0o600, (5, 1)));
        // Directories come before what is in them.
        let position = |name: &str| entries.iter().position(|entry| entry.0 == name).unwrap();
        assert!(position("dev") < position("dev/console") && position("modules") < position("modules/a.ko"));
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(archive(), archive());
    }

    #[test]
    fn a_full_disk_is_reported() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(write(Full, b"", &[]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
