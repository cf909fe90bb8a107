//! Loads the kernel modules that the initramfs brings.
//!
//! `order` lists file names beside it, one per line, dependencies first. Files are plain ELF objects; compressed ones are
//! unpacked when the initramfs is built.
//!
//! Modules are handed to the kernel without the signature at their end. Checking it costs a guest about 11 million
//! instructions per module, three quarters of the agent's whole boot, and proves nothing: whoever could change a module
//! in the initramfs could change this program beside it. A kernel that insists gets the whole file.

use std::path::Path;

use rustix::io::Errno;
use rustix::system::init_module;

use super::fatal::FatalError;

/// The end of a signed module, and what precedes it: `struct module_signature` of linux/module_signature.h, whose last
/// four bytes are the signature's length, big endian.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_HEADER_BYTES: usize = 12;

/// Loads the modules that `dir` lists.
///
/// # Errors
/// When the list or a module cannot be read, or the kernel refuses one. One that is loaded already is fine.
pub fn load_all(dir: &Path) -> Result<(), FatalError> {
    let order = dir.join("order");
    let text = std::fs::read_to_string(&order).map_err(FatalError::path("read", order))?;
    for name in names(&text) {
        let path = dir.join(name);
        let image = std::fs::read(&path).map_err(FatalError::path("read module", &path))?;
        let mut result = init_module(without_signature(&image), c"");
        if matches!(result, Err(Errno::KEYREJECTED | Errno::NOKEY | Errno::PERM)) {
            result = init_module(&image, c"");
        }
        match result {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(FatalError::path("load module", &path)(errno)),
        }
    }
    Ok(())
}

fn names(order: &str) -> impl Iterator<Item = &str> {
    order.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Returns the module before its signature; all of it when it has none.
fn without_signature(image: &[u8]) -> &[u8] {
    let module = || {
        let rest = image.strip_suffix(SIGNATURE_MAGIC)?;
        let header_at = rest.len().checked_sub(SIGNATURE_HEADER_BYTES)?;
        let (rest, header) = rest.split_at_checked(header_at)?;
        let length = u32::from_be_bytes(*header.last_chunk()?);
        rest.get(..rest.len().checked_sub(usize::try_from(length).ok()?)?)
    };
    module().unwrap_or(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_blank_lines_and_comments() {
        let listed: Vec<&str> = names("virtio.ko\n\n# transport\n  vsock.ko \n").collect();
        assert_eq!(listed, ["virtio.ko", "vsock.ko"]);
    }

    #[test]
    fn cuts_the_signature_off() {
        let mut signed = b"\x7fELF code".to_vec();
        signed.extend(b"signature");
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0]);
        signed.extend(9u32.to_be_bytes());
        signed.extend(SIGNATURE_MAGIC);
        assert_eq!(without_signature(&signed), b"\x7fELF code");
    }

    #[test]
    fn leaves_other_files_alone() {
        for file in [&b""[..], b"\x7fELF", SIGNATURE_MAGIC, b"short~Module signature appended~\n"] {
            assert_eq!(without_signature(file), file);
        }
        let mut lies = b"\x7fELF".to_vec();
        lies.extend([0; 8]);
        lies.extend(u32::MAX.to_be_bytes());
        lies.extend(SIGNATURE_MAGIC);
        assert_eq!(without_signature(&lies), lies);
    }
}
