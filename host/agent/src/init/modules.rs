//! Loads the kernel modules that the initramfs brings.
//!
//! `order` lists file names beside it, one per line, dependencies first. Files are plain ELF objects; compressed ones are
//! unpacked when the initramfs is built.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::fatal::FatalError;

/// Loads the modules that `dir` lists.
///
/// # Errors
/// When the list or a module cannot be read, or the kernel refuses one. One that is loaded already is fine.
pub fn load_all(dir: &Path) -> Result<(), FatalError> {
    let order = dir.join("order");
    let text = std::fs::read_to_string(&order).map_err(FatalError::path("read", order))?;
    for name in names(&text) {
        let path = dir.join(name);
        let file = File::open(&path).map_err(FatalError::path("open module", &path))?;
        match finit_module(file.as_fd(), c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(FatalError::path("load module", &path)(errno)),
        }
    }
    Ok(())
}

fn names(order: &str) -> impl Iterator<Item = &str> {
    order
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_blank_lines_and_comments() {
        let listed: Vec<&str> = names("virtio.ko\n\n# transport\n  vsock.ko \n").collect();
        assert_eq!(listed, ["virtio.ko", "vsock.ko"]);
    }
}
