//! Building the three parts of an environment: root file system, kernel, initramfs.
//!
//! Each part has a slot of its own, because they change at different times: every environment of a suite shares one
//! kernel, and a new agent needs a new initramfs only.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::{
    bootstrap::{self, Bootstrap, Cancelled, Report},
    catalogue::Definition,
    error::EnvironmentError,
    initramfs, kernel, kernel_package, modules,
    sources::{self, Source},
    space,
    stages::REPORT_EVERY,
    store::{Build, Manifest, Slot, Staging, Store, digest_of},
};
use crate::Progress;

pub(crate) const ROOTFS: &str = "rootfs.ext4";
pub(crate) const VMLINUX: &str = "vmlinux";
pub(crate) const INITRAMFS: &str = "initramfs.cpio";
const PACKAGE: &str = "package.deb";
const MODULES: &str = "modules";

pub(crate) const ENVIRONMENTS: &str = "environments";
pub(crate) const KERNELS: &str = "kernels";
pub(crate) const INITRAMFSES: &str = "initramfs";

/// Progress of a whole installation is reported in percent.
pub(crate) const TOTAL: f64 = 100.0;
/// The share that the root file system takes of it.
const ROOTFS_SHARE: f64 = 96.0;

/// Room that a minimal root file system takes while it is built: the chroot, its package files, the image.
const ROOTFS_BYTES: u64 = 1 << 30;
/// And what every further package adds, with what it depends on. `build-essential` takes ten times this, the CA
/// certificates nothing.
const PACKAGE_BYTES: u64 = 96 << 20;
/// Package lists, the package and what is taken out of it.
const KERNEL_BYTES: u64 = 256 << 20;

/// What a root file system's manifest adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RootfsDetails {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sources: Vec<String>,
    pub(crate) packages: Vec<String>,
    pub(crate) content_bytes: u64,
    pub(crate) build_seconds: f64,
}

/// What a kernel's manifest adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KernelDetails {
    /// The Debian package's file, or the path of the kernel that the catalogue names.
    pub(crate) origin: String,
    /// The kernel's own version, when known.
    pub(crate) release: Option<String>,
    /// Module files in loading order.
    pub(crate) modules: Vec<String>,
}

/// What an initramfs's manifest adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct InitramfsDetails {
    pub(crate) agent_sha256: String,
}

/// The installed parts of an environment.
pub(crate) struct Parts {
    pub(crate) rootfs: Build<RootfsDetails>,
    pub(crate) kernel: Build<KernelDetails>,
    pub(crate) initramfs: Build<InitramfsDetails>,
    /// Whether anything had to be built.
    pub(crate) built: bool,
}

/// How thoroughly to look at what is installed, before building what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// By the identity of files.
    Quick,
    /// By the digest of files.
    Thorough,
    /// Not at all: build again.
    Rebuild,
}

/// Builds environments of one store.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    pub(crate) store: &'a Store,
    pub(crate) agent: &'a [u8],
    pub(crate) agent_sha256: &'a str,
    pub(crate) apt_dir: &'a Path,
    pub(crate) program: &'a Path,
    /// Whether free room is checked before a build.
    pub(crate) check_space: bool,
}

impl Builder<'_> {
    pub(crate) fn rootfs_slot(&self, definition: &Definition) -> Slot {
        self.store.slot(ENVIRONMENTS, &definition.dir_name())
    }

    /// Returns the slot of an environment's kernel and the recipe that an up-to-date build in it has.
    pub(crate) fn kernel_slot(&self, definition: &Definition) -> Result<(Slot, String), EnvironmentError> {
        let revision = modules::REVISION.to_le_bytes();
        let Some(file) = &definition.kernel else {
            return Ok(self.suite_kernel_slot(definition));
        };
        let meta = std::fs::metadata(file).map_err(|e| EnvironmentError::io("read", file, e))?;
        let modules = definition.modules.as_deref().unwrap_or(Path::new("")).as_os_str().as_encoded_bytes();
        let path = digest_of(&[file.as_os_str().as_encoded_bytes(), modules]);
        let identity = format!("{} {} {} {}", meta.len(), meta.ino(), meta.mtime(), meta.mtime_nsec());
        // Its modules may come from there.
        let suite = match (&definition.modules, self.suite_kernel(definition)?) {
            (None, Some(kernel)) => kernel.manifest.details.origin,
            _ => String::new(),
        };
        let recipe = digest_of(&[&revision, path.as_bytes(), identity.as_bytes(), suite.as_bytes()]);
        Ok((self.store.slot(KERNELS, &format!("file-{}", path.get(..16).unwrap_or(&path))), recipe))
    }

    fn suite_kernel_slot(&self, definition: &Definition) -> (Slot, String) {
        let revision = modules::REVISION.to_le_bytes();
        let key = format!("{}-{}-amd64", definition.distribution.as_str(), definition.suite);
        let recipe = digest_of(&[&revision, key.as_bytes(), bootstrap::KERNEL_PACKAGE.as_bytes()]);
        (self.store.slot(KERNELS, &key), recipe)
    }

    /// Returns the distribution's own kernel, when it is installed.
    fn suite_kernel(&self, definition: &Definition) -> Result<Option<Build<KernelDetails>>, EnvironmentError> {
        let (slot, recipe) = self.suite_kernel_slot(definition);
        self.good(&slot, &recipe, Look::Quick)
    }

    /// Returns the slot of the initramfs that belongs to a kernel and this agent, and its recipe.
    pub(crate) fn initramfs_slot(&self, kernel: &Manifest<KernelDetails>) -> (Slot, String) {
        let revision = initramfs::REVISION.to_le_bytes();
        let mut parts: Vec<&[u8]> = vec![&revision, self.agent_sha256.as_bytes()];
        for name in &kernel.details.modules {
            parts.push(name.as_bytes());
            if let Some(file) = kernel.files.get(&format!("{MODULES}/{name}")) {
                parts.push(file.sha256.as_bytes());
            }
        }
        let recipe = digest_of(&parts);
        (self.store.slot(INITRAMFSES, recipe.get(..16).unwrap_or(&recipe)), recipe)
    }

    /// Returns every part when all are installed and up to date.
    pub(crate) fn installed(&self, definition: &Definition, look: Look) -> Result<Option<Parts>, EnvironmentError> {
        let Some(rootfs) = self.good(&self.rootfs_slot(definition), &definition.recipe(bootstrap::REVISION), look)?
        else {
            return Ok(None);
        };
        let (slot, recipe) = self.kernel_slot(definition)?;
        let Some(kernel) = self.good::<KernelDetails>(&slot, &recipe, look)? else {
            return Ok(None);
        };
        let (slot, recipe) = self.initramfs_slot(&kernel.manifest);
        let Some(initramfs) = self.good(&slot, &recipe, look)? else {
            return Ok(None);
        };
        Ok(Some(Parts { rootfs, kernel, initramfs, built: false }))
    }

    fn good<T: serde::de::DeserializeOwned + Serialize>(
        &self,
        slot: &Slot,
        recipe: &str,
        look: Look,
    ) -> Result<Option<Build<T>>, EnvironmentError> {
        let found = match look {
            Look::Quick => slot.current()?,
            Look::Thorough => slot.verified()?,
            Look::Rebuild => None,
        };
        Ok(found.filter(|build| build.manifest.recipe == recipe))
    }

    /// Makes sure that every part is installed and up to date, and builds what is not. Root file system and kernel are
    /// built at the same time.
    pub(crate) fn ensure(
        &self,
        definition: &Definition,
        look: Look,
        progress: &dyn Progress,
    ) -> Result<Parts, EnvironmentError> {
        if let Some(parts) = self.installed(definition, look)? {
            return Ok(parts);
        }
        let rootfs_busy = AtomicBool::new(true);
        let failed = AtomicBool::new(false);
        // A failure of one side ends the other.
        let stop = || progress.cancelled() || failed.load(Ordering::Relaxed);
        let (rootfs, kernel) = std::thread::scope(|scope| {
            let kernel = scope.spawn(|| {
                let report = |message: &str, _: f64| {
                    if !rootfs_busy.load(Ordering::Relaxed) {
                        progress.report(message, ROOTFS_SHARE, Some(TOTAL));
                    }
                };
                let kernel = self.ensure_kernel(definition, look, &With::new(&report, &stop));
                failed.fetch_or(kernel.is_err(), Ordering::Relaxed);
                kernel
            });
            let report = |message: &str, done: f64| progress.report(message, done * ROOTFS_SHARE, Some(TOTAL));
            let rootfs = self.ensure_rootfs(definition, look, &With::new(&report, &stop));
            failed.fetch_or(rootfs.is_err(), Ordering::Relaxed);
            rootfs_busy.store(false, Ordering::Relaxed);
            let kernel = kernel.join().unwrap_or_else(|_| {
                Err(EnvironmentError::io("build the kernel in", &self.store.root, io::Error::other("it panicked")))
            });
            (rootfs, kernel)
        });
        let ((rootfs, built_rootfs), (kernel, built_kernel)) = match (rootfs, kernel) {
            (Ok(rootfs), Ok(kernel)) => (rootfs, kernel),
            // The one that failed first only made the other one stop.
            (Err(EnvironmentError::Cancelled(_)), Err(error)) | (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let (initramfs, built_initramfs) = self.ensure_initramfs(&definition.name, &kernel, look, progress)?;
        progress.report(&format!("`{}` is ready", definition.name), TOTAL, Some(TOTAL));
        Ok(Parts { rootfs, kernel, initramfs, built: built_rootfs || built_kernel || built_initramfs })
    }

    fn ensure_rootfs(
        &self,
        definition: &Definition,
        look: Look,
        with: &With<'_>,
    ) -> Result<(Build<RootfsDetails>, bool), EnvironmentError> {
        let slot = self.rootfs_slot(definition);
        let recipe = definition.recipe(bootstrap::REVISION);
        self.build_once(&slot, &recipe, &definition.name, look, with, &|staging| {
            let began = Instant::now();
            let work = staging.work()?;
            let needed = ROOTFS_BYTES + PACKAGE_BYTES * definition.packages.len() as u64;
            if self.check_space {
                space::check(&work, needed)?;
                space::check(&staging.entry(), needed / 2)?;
            }
            let sources = self.sources(definition);
            let build = Bootstrap { definition, sources: &sources, work: &work, program: self.program };
            let image = staging.entry().join(ROOTFS);
            // Twice the estimate, and room for others. Only root may mount; others' builds stay on the disk.
            let memory = Some(2 * needed)
                .filter(|bytes| rustix::process::geteuid().is_root() && space::free_memory() > bytes + needed);
            let stats = match build.rootfs(&image, memory, with.report, with.stop) {
                Err(EnvironmentError::DiskFull { path, .. }) if memory.is_some() && path == work => {
                    (with.report)("building on the disk, as memory is not enough", 0.0);
                    build.rootfs(&image, None, with.report, with.stop)?
                }
                result => result?,
            };
            if stats.skipped > 0 {
                tracing::debug!(count = stats.skipped, "device nodes of the root file system are left out");
            }
            (with.report)("checking and storing the disk image", 0.99);
            Ok(RootfsDetails {
                name: definition.name.clone(),
                version: definition.version.clone(),
                sources: sources.iter().map(Source::public_line).collect(),
                packages: stats.packages,
                content_bytes: stats.content_bytes,
                build_seconds: began.elapsed().as_secs_f64(),
            })
        })
    }

    fn ensure_kernel(
        &self,
        definition: &Definition,
        look: Look,
        with: &With<'_>,
    ) -> Result<(Build<KernelDetails>, bool), EnvironmentError> {
        let (slot, recipe) = self.kernel_slot(definition)?;
        let what = match &definition.kernel {
            Some(file) => format!("kernel {}", file.display()),
            None => format!("kernel of {} {}", definition.distribution.as_str(), definition.suite),
        };
        self.build_once(&slot, &recipe, &what, look, with, &|staging| {
            let entry = staging.entry();
            if self.check_space {
                space::check(&entry, KERNEL_BYTES)?;
            }
            (with.report)(&format!("preparing the {what}"), 0.0);
            match &definition.kernel {
                Some(file) => self.kernel_from_file(definition, file, &entry),
                None => with.keep_reporting(&format!("preparing the {what}"), || {
                    self.kernel_from_package(definition, &slot, staging, with)
                }),
            }
        })
    }

    fn kernel_from_package(
        &self,
        definition: &Definition,
        slot: &Slot,
        staging: &Staging,
        with: &With<'_>,
    ) -> Result<KernelDetails, EnvironmentError> {
        let entry = staging.entry();
        // An older build that is sound still has the package: other modules do not need the network.
        let old = if with.rebuild.load(Ordering::Relaxed) { None } else { slot.current::<KernelDetails>()? };
        let package = entry.join(PACKAGE);
        let origin = match old {
            Some(old) => {
                let from = old.file(PACKAGE);
                std::fs::copy(&from, &package).map_err(|e| EnvironmentError::io("copy", &from, e))?;
                old.manifest.details.origin
            }
            None => {
                let sources = self.sources(definition);
                let work = staging.work()?;
                let build = Bootstrap { definition, sources: &sources, work: &work, program: self.program };
                let found = build.kernel_package(&work, with.stop)?;
                std::fs::copy(&found, &package).map_err(|e| EnvironmentError::io("copy", &found, e))?;
                found.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
        };
        (with.report)("unpacking the kernel", 0.5);
        let unpacked = kernel_package::unpack(&package, &definition.name, with.stop)?;
        write(&entry.join(VMLINUX), &unpacked.elf)?;
        let modules = write_modules(&entry, &unpacked.modules)?;
        Ok(KernelDetails { origin, release: Some(unpacked.release), modules })
    }

    fn kernel_from_file(
        &self,
        definition: &Definition,
        file: &Path,
        entry: &Path,
    ) -> Result<KernelDetails, EnvironmentError> {
        let unusable = |message: String| EnvironmentError::Kernel { file: file.to_owned(), message };
        let mut image = Vec::new();
        File::open(file)
            .and_then(|file| file.take(kernel::MAX_IMAGE_BYTES + 1).read_to_end(&mut image))
            .map_err(|e| EnvironmentError::io("read", file, e))?;
        if image.len() as u64 > kernel::MAX_IMAGE_BYTES {
            return Err(unusable(format!("it is larger than {} bytes", kernel::MAX_IMAGE_BYTES)));
        }
        let elf = kernel::extract_elf(&image).map_err(|e| unusable(e.to_string()))?;
        write(&entry.join(VMLINUX), &elf)?;
        let release = kernel::release(&elf);
        let selected = match (&definition.modules, self.suite_kernel(definition)?) {
            (Some(dir), _) => {
                modules::select(&|visit| modules::walk_dir(dir, visit)).map_err(|e| unusable(e.to_string()))?
            }
            // Another build of the distribution's kernel, or a copy of it.
            (None, Some(suite)) if release.is_some() && suite.manifest.details.release == release => {
                module_files(&suite)?
            }
            // Without modules everything has to be built in.
            (None, _) => Vec::new(),
        };
        let modules = write_modules(entry, &selected)?;
        Ok(KernelDetails { origin: file.display().to_string(), release, modules })
    }

    fn ensure_initramfs(
        &self,
        environment: &str,
        kernel: &Build<KernelDetails>,
        look: Look,
        progress: &dyn Progress,
    ) -> Result<(Build<InitramfsDetails>, bool), EnvironmentError> {
        let (slot, recipe) = self.initramfs_slot(&kernel.manifest);
        let what = format!("initramfs of {environment}");
        let report = |message: &str, _: f64| progress.report(message, ROOTFS_SHARE, Some(TOTAL));
        let stop = || progress.cancelled();
        let with = With::new(&report, &stop);
        self.build_once(&slot, &recipe, &what, look, &with, &|staging| {
            let entry = staging.entry();
            let modules = module_files(kernel)?;
            let path = entry.join(INITRAMFS);
            File::create(&path)
                .and_then(|file| initramfs::write(io::BufWriter::new(file), self.agent, &modules))
                .map_err(|e| EnvironmentError::io("write", &path, e))?;
            Ok(InitramfsDetails { agent_sha256: self.agent_sha256.to_owned() })
        })
    }

    /// Builds into a slot unless a good build is there; whoever comes second waits, and finds the first one's.
    fn build_once<T: serde::de::DeserializeOwned + Serialize>(
        &self,
        slot: &Slot,
        recipe: &str,
        what: &str,
        look: Look,
        with: &With<'_>,
        build: &dyn Fn(&Staging) -> Result<T, EnvironmentError>,
    ) -> Result<(Build<T>, bool), EnvironmentError> {
        let before = slot.target();
        if let Some(found) = self.good(slot, recipe, look)? {
            return Ok((found, false));
        }
        let lock = slot.lock(what, with)?;
        // What someone else built since this one looked is new enough for everyone.
        if (look == Look::Quick || slot.target() != before)
            && let Some(found) = self.good(slot, recipe, Look::Quick)?
        {
            return Ok((found, false));
        }
        if before.is_some() && look != Look::Rebuild {
            (with.report)(&format!("`{what}` is out of date or damaged: building it again"), 0.0);
        }
        with.rebuild.store(look != Look::Quick, Ordering::Relaxed);
        let staging = self.store.stage()?;
        let details = build(&staging)?;
        if (with.stop)() {
            return Err(EnvironmentError::Cancelled(format!("building `{what}`")));
        }
        let sparse: &[&str] = &[ROOTFS];
        let build = with.keep_reporting(&format!("storing `{what}`"), || {
            slot.install(&lock, staging, recipe.to_owned(), sparse, details)
        })?;
        Ok((build, true))
    }

    fn sources(&self, definition: &Definition) -> Vec<Source> {
        match definition.mirror {
            Some(_) => Vec::new(),
            None => sources::host_sources(self.apt_dir, &definition.suite),
        }
    }
}

/// How a build talks to its caller.
struct With<'a> {
    report: Report<'a>,
    stop: Cancelled<'a>,
    /// Whether what is installed is not to be relied on.
    rebuild: AtomicBool,
}

impl<'a> With<'a> {
    fn new(report: Report<'a>, stop: Cancelled<'a>) -> Self {
        Self { report, stop, rebuild: AtomicBool::new(false) }
    }

    /// Does something that says nothing itself: digesting, or waiting for the disk. Reports that it goes on.
    fn keep_reporting<T>(&self, message: &str, work: impl FnOnce() -> T) -> T {
        let (end, ended) = mpsc::channel::<()>();
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while ended.recv_timeout(REPORT_EVERY) == Err(RecvTimeoutError::Timeout) {
                    (self.report)(&format!("{message} ({} s)", began.elapsed().as_secs()), 0.99);
                }
            });
            let result = work();
            drop(end);
            result
        })
    }
}

impl Progress for With<'_> {
    fn report(&self, message: &str, _done: f64, _total: Option<f64>) {
        (self.report)(message, 0.0);
    }

    fn cancelled(&self) -> bool {
        (self.stop)()
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), EnvironmentError> {
    std::fs::write(path, bytes).map_err(|e| EnvironmentError::io("write", path, e))
}

/// Reads the modules of an installed kernel, in loading order.
fn module_files(kernel: &Build<KernelDetails>) -> Result<Vec<(String, Vec<u8>)>, EnvironmentError> {
    kernel
        .manifest
        .details
        .modules
        .iter()
        .map(|name| {
            let path = kernel.file(MODULES).join(name);
            let bytes = std::fs::read(&path).map_err(|e| EnvironmentError::io("read", &path, e))?;
            Ok((name.clone(), bytes))
        })
        .collect()
}

fn write_modules(entry: &Path, modules: &[(String, Vec<u8>)]) -> Result<Vec<String>, EnvironmentError> {
    let dir: PathBuf = entry.join(MODULES);
    std::fs::create_dir(&dir).map_err(|e| EnvironmentError::io("create", &dir, e))?;
    for (name, bytes) in modules {
        write(&dir.join(name), bytes)?;
    }
    Ok(modules.iter().map(|(name, _)| name.clone()).collect())
}
