//! Taking the kernel image and the modules out of a Debian kernel package.
//!
//! `dpkg-deb`, which every host with apt has, gives the package's files as a tar; the rest happens here.

use std::{io::Read, path::Path, process::Stdio};

use super::{
    bootstrap::Cancelled,
    error::EnvironmentError,
    kernel::{self, MAX_IMAGE_BYTES},
    modules::{self, ModulesError, Visit},
    process::{self, RunError},
};

const PROGRAM: &str = "dpkg-deb";
/// No kernel package holds more files.
const MAX_ENTRIES: usize = 100_000;

/// What a kernel package gives.
pub(crate) struct Unpacked {
    /// The kernel as an ELF program.
    pub(crate) elf: Vec<u8>,
    /// The needed modules as `(file name, bytes)`, in loading order.
    pub(crate) modules: Vec<(String, Vec<u8>)>,
    /// The kernel's own version, `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
}

/// Unpacks what is needed of the package at `deb`.
pub(crate) fn unpack(deb: &Path, environment: &str, cancelled: Cancelled<'_>) -> Result<Unpacked, EnvironmentError> {
    let kernel_error = |message: String| EnvironmentError::Kernel { file: deb.to_owned(), message };
    let mut image: Option<(String, Vec<u8>)> = None;
    files(deb, environment, cancelled, &mut |path, content| {
        if let Some(release) = path.strip_prefix("/boot/vmlinuz-").filter(|_| image.is_none()) {
            let mut bytes = Vec::new();
            content.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes)?;
            image = Some((release.to_owned(), bytes));
        }
        Ok(())
    })?;
    let (release, image) = image.ok_or_else(|| kernel_error("the package has no /boot/vmlinuz".to_owned()))?;
    if image.len() as u64 > MAX_IMAGE_BYTES {
        return Err(kernel_error(format!("its image is larger than {MAX_IMAGE_BYTES} bytes")));
    }
    let elf = kernel::extract_elf(&image).map_err(|e| kernel_error(e.to_string()))?;

    // A failure of the program is more telling than what it does to the selection.
    let failed = std::cell::RefCell::new(None);
    let selected = modules::select(&|visit| {
        let mut visit_module = |path: &str, content: &mut dyn Read| {
            if path.contains("/lib/modules/") { visit(path, content) } else { Ok(()) }
        };
        files(deb, environment, cancelled, &mut visit_module).map_err(|error| {
            *failed.borrow_mut() = Some(error);
            ModulesError::Source(std::io::ErrorKind::Other.into())
        })
    });
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let modules = selected.map_err(|e| kernel_error(e.to_string()))?;
    Ok(Unpacked { elf, modules, release })
}

/// Hands every regular file of the package to `visit`, with its absolute path.
fn files(
    deb: &Path,
    environment: &str,
    cancelled: Cancelled<'_>,
    visit: &mut Visit<'_>,
) -> Result<(), EnvironmentError> {
    let kernel_error = |message: String| EnvironmentError::Kernel { file: deb.to_owned(), message };
    let (tar, writer) = std::io::pipe().map_err(|e| EnvironmentError::io("open a pipe for", PROGRAM, e))?;
    let mut command = process::command(PROGRAM);
    command.arg("--fsys-tarfile").arg(deb).stdout(Stdio::from(writer));
    // The program is watched from another thread: it must die with this build, not with this function's reads.
    let (ran, visited) = std::thread::scope(|scope| {
        let running = scope.spawn(|| process::run_with_stdout(command, cancelled, |_| {}, || {}));
        let visited = visit_tar(tar, cancelled, visit);
        let ran = running.join().unwrap_or_else(|_| Err(RunError::Io(std::io::ErrorKind::Other.into())));
        (ran, visited)
    });
    match ran {
        Ok(done) if done.status.success() => visited.map_err(|e| kernel_error(e.to_string())),
        // It was cut off because the visit failed first.
        Ok(done) => match visited {
            Err(error @ (ModulesError::Damaged(..) | ModulesError::TooMany)) => Err(kernel_error(error.to_string())),
            _ => Err(EnvironmentError::Build {
                environment: environment.to_owned(),
                message: format!("unpacking the kernel package ended with {}", done.how()),
                tail: done.tail,
                hint: None,
                retryable: false,
            }),
        },
        Err(error) => Err(error.at(PROGRAM, environment)),
    }
}

fn visit_tar(tar: impl Read, cancelled: Cancelled<'_>, visit: &mut Visit<'_>) -> Result<(), ModulesError> {
    let mut archive = tar::Archive::new(std::io::BufReader::with_capacity(1 << 20, tar));
    for (index, entry) in archive.entries()?.enumerate() {
        let mut entry = entry?;
        if index > MAX_ENTRIES {
            return Err(ModulesError::TooMany);
        }
        if cancelled() {
            return Err(ModulesError::Source(std::io::ErrorKind::Interrupted.into()));
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = format!("/{}", path.trim_start_matches("./").trim_start_matches('/'));
        visit(&path, &mut entry)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;

    use super::*;
    use crate::environments::{kernel::tests as images, modules::tests as modules_of};

    /// Makes a kernel package as Debian's is laid out.
    pub(crate) fn kernel_deb(dir: &Path, elf: &[u8]) -> std::path::PathBuf {
        let root = dir.join("deb-root");
        let put = |path: &str, bytes: &[u8]| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        put(
            "DEBIAN/control",
            b"Package: linux-image-1-test\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x>\nDescription: x\n",
        );
        put("boot/vmlinuz-1-test", &images::bzimage(&images::lz4(elf)));
        for (path, bytes) in modules_of::all_modules() {
            put(&format!("lib/modules/1-test/{path}"), &bytes);
        }
        let deb = dir.join("linux-image-1-test_1_amd64.deb");
        let out = Command::new("dpkg-deb").args(["-Znone", "-b"]).arg(&root).arg(&deb).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::remove_dir_all(root).unwrap();
        deb
    }

    #[test]
    fn kernel_and_modules_come_out() {
        let dir = tempfile::tempdir().unwrap();
        let elf = images::elf(50_000);
        let got = unpack(&kernel_deb(dir.path(), &elf), "x", &|| false).unwrap();
        assert!(got.elf == elf);
        assert_eq!(got.release, "1-test");
        assert_eq!(got.modules.len(), 9);
        assert_eq!(got.modules[0].0, "virtio_ring.ko");
    }

    #[test]
    fn what_is_no_package_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.deb");
        std::fs::write(&file, b"no package").unwrap();
        let error = unpack(&file, "debian:12", &|| false).err().unwrap();
        assert_eq!(error.code().as_str(), "environment_build_failed");
        assert!(error.to_string().contains("unpacking the kernel package ended with exit code 2"), "{error}");
    }

    #[test]
    fn cancelling_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let deb = kernel_deb(dir.path(), &images::elf(100));
        let error = unpack(&deb, "x", &|| true).err().unwrap();
        assert_eq!(error.code().as_str(), "cancelled");
    }
}
