//! Choosing the kernel modules that a machine needs before it has its root file system.
//!
//! Which of them are modules and which are built in changes from kernel to kernel, and Debian's package does not ship
//! `modules.dep` (its installation script makes it). So the dependencies are read from the modules themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::Path,
};

/// What the agent cannot start without: virtio-mmio devices, the disk and its file system, vsock.
const REQUIRED: [&str; 4] = ["virtio_mmio", "virtio_blk", "ext4", "vmw_vsock_virtio_transport"];
/// What is taken when the kernel has it.
const OPTIONAL: [&str; 1] = ["virtio_rng"];
/// Raised when the lists above change.
pub(crate) const REVISION: u32 = 1;

/// The largest module of a Debian kernel has about 15 MB (a graphics driver).
const MAX_MODULE_BYTES: u64 = 64 * 1024 * 1024;
const MAX_LIST_BYTES: u64 = 4 * 1024 * 1024;
const MAX_MODULES: usize = 20_000;
/// A chain of dependencies is a handful long.
const MAX_DEPTH: usize = 32;

/// Why no set of modules can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModulesError {
    #[error("the kernel has no module `{0}` and does not have it built in")]
    Missing(String),
    #[error("module `{0}` depends on itself")]
    Circle(String),
    #[error("module `{0}` cannot be read: {1}")]
    Damaged(String, String),
    #[error("there are more than {MAX_MODULES} modules")]
    TooMany,
    #[error(transparent)]
    Source(#[from] std::io::Error),
}

/// One file of a kernel's module directory: its path and its bytes.
pub(crate) type Visit<'a> = dyn FnMut(&str, &mut dyn Read) -> Result<(), ModulesError> + 'a;

/// Hands every file below a kernel's `/lib/modules/VERSION` to a visitor. It is called twice.
pub(crate) type Walk<'a> = dyn Fn(&mut Visit<'_>) -> Result<(), ModulesError> + 'a;

/// Returns the needed modules, decompressed, as `(file name, bytes)` in the order in which they can be loaded.
///
/// # Errors
/// [`ModulesError`] naming the module.
pub(crate) fn select(walk: &Walk<'_>) -> Result<Vec<(String, Vec<u8>)>, ModulesError> {
    let mut depends: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut built_in = BTreeSet::new();
    walk(&mut |path, content| {
        if path.rsplit('/').next() == Some("modules.builtin") {
            let mut text = String::new();
            content.take(MAX_LIST_BYTES).read_to_string(&mut text)?;
            built_in.extend(text.lines().filter_map(module_name));
        } else if let Some(name) = module_name(path) {
            if depends.len() == MAX_MODULES {
                return Err(ModulesError::TooMany);
            }
            let bytes = decompressed(path, content)?;
            depends.insert(name, depends_of(&bytes));
        }
        Ok(())
    })?;

    let mut order = Vec::new();
    for name in REQUIRED {
        place(name, &depends, &built_in, &mut order, 0)?;
    }
    for name in OPTIONAL.iter().filter(|name| depends.contains_key(**name)) {
        place(name, &depends, &built_in, &mut order, 0)?;
    }

    let mut bytes: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    walk(&mut |path, content| {
        if let Some(name) = module_name(path).filter(|name| order.contains(name)) {
            bytes.insert(name, decompressed(path, content)?);
        }
        Ok(())
    })?;
    order
        .into_iter()
        .map(|name| match bytes.remove(&name) {
            Some(bytes) => Ok((format!("{name}.ko"), bytes)),
            None => Err(ModulesError::Missing(name)),
        })
        .collect()
}

/// Appends a module after everything that it depends on.
fn place(
    name: &str,
    depends: &BTreeMap<String, Vec<String>>,
    built_in: &BTreeSet<String>,
    order: &mut Vec<String>,
    depth: usize,
) -> Result<(), ModulesError> {
    if built_in.contains(name) || order.iter().any(|placed| placed == name) {
        return Ok(());
    }
    if depth > MAX_DEPTH {
        return Err(ModulesError::Circle(name.to_owned()));
    }
    let needs = depends.get(name).ok_or_else(|| ModulesError::Missing(name.to_owned()))?;
    for need in needs {
        place(need, depends, built_in, order, depth + 1)?;
    }
    order.push(name.to_owned());
    Ok(())
}

/// Returns the module's name, as the kernel says it, when the path is one's: `-` and `_` are the same to it.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| file.strip_suffix(end))?;
    (!stem.is_empty()).then(|| stem.replace('-', "_"))
}

fn decompressed(path: &str, content: &mut dyn Read) -> Result<Vec<u8>, ModulesError> {
    let damaged = |why: String| ModulesError::Damaged(path.to_owned(), why);
    let mut out = Vec::new();
    let mut take = |reader: &mut dyn Read| reader.take(MAX_MODULE_BYTES + 1).read_to_end(&mut out);
    let result = if path.ends_with(".xz") {
        take(&mut liblzma::read::XzDecoder::new(content))
    } else if path.ends_with(".zst") {
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(content).map_err(|e| damaged(e.to_string()))?;
        take(&mut decoder)
    } else if path.ends_with(".gz") {
        take(&mut flate2::read::GzDecoder::new(content))
    } else {
        take(content)
    };
    result.map_err(|e| damaged(e.to_string()))?;
    if out.len() as u64 > MAX_MODULE_BYTES {
        return Err(damaged(format!("it is larger than {MAX_MODULE_BYTES} bytes")));
    }
    Ok(out)
}

/// Returns what a module says it depends on. Its `.modinfo` section is a row of `key=value` strings with a zero byte
/// after each; searching for the key finds it without taking the ELF apart.
fn depends_of(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let mut at = 0;
    while let Some(rest) = module.get(at..) {
        let Some(found) = rest.windows(KEY.len()).position(|window| window == KEY) else {
            break;
        };
        let start = at + found;
        at = start + KEY.len();
        // A longer key that ends in this one is another key.
        if start.checked_sub(1).and_then(|before| module.get(before)).is_some_and(|byte| *byte != 0) {
            continue;
        }
        let value = module.get(at..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
        return String::from_utf8_lossy(value)
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| name.replace('-', "_"))
            .collect();
    }
    Vec::new()
}

/// Walks a module directory of the host's file system.
pub(crate) fn walk_dir(dir: &Path, visit: &mut Visit<'_>) -> Result<(), ModulesError> {
    let mut waiting = vec![dir.to_owned()];
    let mut seen = 0;
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            seen += 1;
            if seen > 4 * MAX_MODULES {
                return Err(ModulesError::TooMany);
            }
            let path = entry.path();
            // Links are not followed: `build` and `source` lead out of the directory.
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_file()
                && let Some(name) = path.to_str()
            {
                visit(name, &mut std::fs::File::open(&path)?)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    /// Bytes that say what a module's do.
    pub(crate) fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF....\0license=GPL\0softdepends=x\0depends={depends}\0name=x\0").into_bytes()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn run(files: &[(&str, Vec<u8>)]) -> Result<Vec<(String, Vec<u8>)>, ModulesError> {
        select(&|visit| files.iter().try_for_each(|(path, bytes)| visit(path, &mut bytes.as_slice())))
    }

    fn names(files: &[(&str, Vec<u8>)]) -> Vec<String> {
        run(files).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    /// As in Debian's 6.1 kernel: everything a module but ext4.
    pub(crate) fn all_modules() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("kernel/drivers/virtio/virtio_mmio.ko", module("virtio_ring,virtio")),
            ("kernel/drivers/virtio/virtio.ko", module("virtio_ring")),
            ("kernel/drivers/virtio/virtio_ring.ko", module("")),
            ("kernel/drivers/block/virtio_blk.ko", module("virtio_ring,virtio")),
            ("kernel/net/vsock.ko", module("")),
            ("kernel/net/vmw_vsock_virtio_transport_common.ko", module("vsock")),
            ("kernel/net/vmw_vsock_virtio_transport.ko", module("vmw_vsock_virtio_transport_common,virtio,vsock")),
            ("kernel/drivers/char/hw_random/rng-core.ko", module("")),
            ("kernel/drivers/char/hw_random/virtio-rng.ko", module("rng-core,virtio")),
            ("kernel/drivers/gpu/unrelated.ko", module("virtio")),
            ("modules.builtin", b"kernel/fs/ext4/ext4.ko\nkernel/lib/crc16.ko\n".to_vec()),
        ]
    }

    #[test]
    fn dependencies_come_first_and_only_what_is_needed() {
        assert_eq!(
            names(&all_modules()),
            [
                "virtio_ring.ko",
                "virtio.ko",
                "virtio_mmio.ko",
                "virtio_blk.ko",
                "vsock.ko",
                "vmw_vsock_virtio_transport_common.ko",
                "vmw_vsock_virtio_transport.ko",
                "rng_core.ko",
                "virtio_rng.ko",
            ]
        );
    }

    #[test]
    fn built_in_ones_are_left_out_and_compressed_ones_unpacked() {
        // As in 6.12: virtio built in, modules compressed.
        let blk = module("");
        let files = [
            ("kernel/virtio_mmio.ko.xz", xz(&module(""))),
            ("kernel/virtio_blk.ko.zst", zstd(&blk)),
            ("kernel/vsock.ko", module("")),
            ("kernel/vmw_vsock_virtio_transport.ko", module("vsock,virtio")),
            ("modules.builtin", b"kernel/virtio/virtio.ko\nkernel/virtio_ring.ko\nkernel/ext4.ko\n".to_vec()),
        ];
        let got = run(&files).unwrap();
        let names: Vec<_> = got.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["virtio_mmio.ko", "virtio_blk.ko", "vsock.ko", "vmw_vsock_virtio_transport.ko"]);
        assert_eq!(got[1].1, blk);
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut files = all_modules();
        files.retain(|(path, _)| !path.ends_with("/vsock.ko"));
        assert_eq!(
            run(&files).unwrap_err().to_string(),
            "the kernel has no module `vsock` and does not have it built in"
        );
        files.retain(|(path, _)| !path.contains("rng"));
        assert!(run(&files).is_err());
    }

    #[test]
    fn the_random_device_is_optional() {
        let mut files = all_modules();
        files.retain(|(path, _)| !path.contains("rng"));
        assert!(!names(&files).iter().any(|name| name.contains("rng")));
    }

    #[test]
    fn circles_and_damage_are_refused() {
        let mut files = all_modules();
        files[2].1 = module("virtio");
        assert!(matches!(run(&files), Err(ModulesError::Circle(_))));
        let mut files = all_modules();
        files.push(("kernel/broken.ko.xz", b"no xz".to_vec()));
        assert!(run(&files).unwrap_err().to_string().contains("broken.ko.xz"));
    }

    #[test]
    fn a_directory_can_be_walked() {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in all_modules() {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        std::os::unix::fs::symlink("/", dir.path().join("build")).unwrap();
        let got = select(&|visit| walk_dir(dir.path(), visit)).unwrap();
        assert_eq!(got.len(), 9);
    }

    #[test]
    fn dependencies_are_found_in_any_bytes() {
        assert_eq!(depends_of(b"depends=a,b-c\0"), ["a", "b_c"]);
        assert_eq!(depends_of(b"softdepends=x\0"), Vec::<String>::new());
        assert_eq!(depends_of(b"\0depends="), Vec::<String>::new());
        assert_eq!(depends_of(b"\0depends=\xff"), ["\u{fffd}"]);
    }
}
