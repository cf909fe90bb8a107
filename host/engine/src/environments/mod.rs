//! Environments: what a machine boots. A name in the catalogue stands for a Debian root file system; from it come an
//! ext4 image, a kernel and an initramfs, built once from Debian's packages and kept in the cache.
//!
//! ```text
//! catalogue ── definition ──┬── mmdebstrap ── tar ── image ──── rootfs.ext4 ──┐
//!                           └── kernel package ─┬── kernel ──── vmlinux ──────┼── Installed
//!                                agent ─────────┴── initramfs ─ initramfs.cpio┘
//! ```
//!
//! Everything here blocks, some of it for minutes; async callers use a blocking thread. Builds ask
//! [`Progress::cancelled`] several times a second and undo themselves. `store` has the rules of the cache.
//!
//! Deliberately absent: machines, and every format but Debian packages in and ext4 out.

mod bootstrap;
mod build;
mod catalogue;
mod error;
mod image;
mod initramfs;
mod kernel;
mod kernel_package;
mod modules;
mod prerequisites;
mod process;
mod report;
mod sources;
mod space;
mod sparse;
mod stages;
mod store;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use build::{Builder, ENVIRONMENTS, INITRAMFS, INITRAMFSES, KERNELS, Look, Parts, ROOTFS, VMLINUX};
use store::Store;

pub use catalogue::{Catalogue, Definition, Distribution};
pub use error::EnvironmentError;
pub use prerequisites::{Prerequisite, prerequisites};
pub use report::{
    EnvironmentReport, EnvironmentSummary, FileReport, InstalledReport, KernelReport, PruneReport, Removed,
};
pub use space::free_bytes;

use crate::{AgentSource, Paths, Progress};

/// The user's catalogue, in the configuration directory.
const USER_CATALOGUE: &str = "environments.toml";

/// The environments of one installation; cheap to clone.
#[derive(Debug, Clone)]
pub struct Environments {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    user_catalogue: PathBuf,
    agent: AgentSource,
    agent_sha256: OnceLock<String>,
    apt_dir: PathBuf,
    program: PathBuf,
    check_space: bool,
    /// A kernel image for every environment.
    kernel: Option<PathBuf>,
}

/// Whether [`Environments::pull`] takes what is installed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullOptions {
    /// Build again from the packages of today, even when what is installed is sound.
    pub refresh: bool,
}

/// An environment that is installed. As long as a clone of this lives, its files stay.
#[derive(Debug, Clone)]
pub struct Installed {
    /// Name in the catalogue.
    pub name: String,
    /// Version of the definition.
    pub version: String,
    /// The ext4 image; read-only, to be used through an overlay or a copy.
    pub rootfs: PathBuf,
    /// Hexadecimal digest of the image, zeros left out.
    pub rootfs_sha256: String,
    /// The kernel, an ELF program with a PVH note when it is Debian's.
    pub kernel: PathBuf,
    /// Hexadecimal SHA-256 of the kernel.
    pub kernel_sha256: String,
    /// The initramfs, an uncompressed cpio.
    pub initramfs: PathBuf,
    /// Hexadecimal SHA-256 of the initramfs.
    pub initramfs_sha256: String,
    /// Whether this call had to build something.
    pub built: bool,
    leases: Vec<Arc<File>>,
}

impl Installed {
    fn new(name: &str, parts: Parts) -> Self {
        let digest = |files: &std::collections::BTreeMap<String, store::FileRecord>, name: &str| {
            files.get(name).map(|file| file.sha256.clone()).unwrap_or_default()
        };
        let Parts { rootfs, kernel, initramfs, built } = parts;
        Self {
            name: name.to_owned(),
            version: rootfs.manifest.details.version.clone(),
            rootfs: rootfs.file(ROOTFS),
            rootfs_sha256: digest(&rootfs.manifest.files, ROOTFS),
            kernel: kernel.file(VMLINUX),
            kernel_sha256: digest(&kernel.manifest.files, VMLINUX),
            initramfs: initramfs.file(INITRAMFS),
            initramfs_sha256: digest(&initramfs.manifest.files, INITRAMFS),
            built,
            leases: vec![rootfs.lease, kernel.lease, initramfs.lease],
        }
    }

    /// Makes a private, writable copy of the root file system at `to`, with at least `min_size` bytes: a reflink where
    /// the file system can, otherwise a copy of the data without the holes. `to` must not exist. The file system inside
    /// keeps its size.
    ///
    /// # Errors
    /// `disk_full`, `io`; nothing is left at `to`.
    pub fn clone_rootfs(&self, to: &Path, min_size: u64) -> Result<(), EnvironmentError> {
        sparse::clone(&self.rootfs, to, min_size)
            .map(|_reflinked| ())
            .map_err(|e| EnvironmentError::io("copy the root file system to", to, e))
    }

    /// Returns the files that another process locks with [`hold`] to keep this environment's files for itself.
    pub fn lease_paths(&self) -> Vec<PathBuf> {
        [&self.rootfs, &self.kernel, &self.initramfs]
            .into_iter()
            .map(|file| file.with_file_name(store::LEASE))
            .collect()
    }

    /// Returns the open leases. A child that inherits them holds the files as well.
    pub fn leases(&self) -> &[Arc<File>] {
        &self.leases
    }
}

/// Keeps an environment's files as long as the result lives; see [`Installed::lease_paths`]. To be called while the
/// [`Installed`] that gave the paths still lives, or the files may be gone.
///
/// # Errors
/// What opening and locking say; `NotFound` when the files are gone.
pub fn hold(lease_paths: &[PathBuf]) -> io::Result<Vec<File>> {
    lease_paths
        .iter()
        .map(|path| {
            let file = File::open(path)?;
            file.lock_shared()?;
            Ok(file)
        })
        .collect()
}

impl Environments {
    /// Makes a handle. Touches no file.
    pub fn new(paths: &Paths, agent: AgentSource) -> Self {
        Self {
            inner: Arc::new(Inner {
                store: Store { root: paths.cache.clone() },
                user_catalogue: paths.config.join(USER_CATALOGUE),
                agent,
                agent_sha256: OnceLock::new(),
                apt_dir: PathBuf::from("/etc/apt"),
                program: PathBuf::from(bootstrap::PROGRAM),
                check_space: true,
                kernel: None,
            }),
        }
    }

    /// Makes a handle to the same environments with another kernel: an ELF or bzImage file. Its modules are the
    /// distribution's when it is of the same release, and have to be built in otherwise. Touches no file.
    #[must_use]
    pub fn with_kernel(self, kernel: PathBuf) -> Self {
        let Inner { store, user_catalogue, agent, apt_dir, program, check_space, .. } = &*self.inner;
        let inner = Inner {
            store: Store { root: store.root.clone() },
            user_catalogue: user_catalogue.clone(),
            agent: *agent,
            agent_sha256: OnceLock::new(),
            apt_dir: apt_dir.clone(),
            program: program.clone(),
            check_space: *check_space,
            kernel: Some(kernel),
        };
        Self { inner: Arc::new(inner) }
    }

    fn builder(&self) -> Builder<'_> {
        let inner = &self.inner;
        Builder {
            store: &inner.store,
            agent: inner.agent.0,
            agent_sha256: inner.agent_sha256.get_or_init(|| store::digest_of(&[inner.agent.0])),
            apt_dir: &inner.apt_dir,
            program: &inner.program,
            check_space: inner.check_space,
        }
    }

    /// Returns every definition. The user's file is read anew each time.
    ///
    /// # Errors
    /// `invalid_argument` for a user file that is not a catalogue; `io`.
    pub fn catalogue(&self) -> Result<Catalogue, EnvironmentError> {
        Catalogue::load(Some(&self.inner.user_catalogue))
    }

    /// Returns every environment of the catalogue, with whether it is installed. Digests nothing.
    ///
    /// # Errors
    /// As [`Environments::catalogue`].
    pub fn list(&self) -> Result<Vec<EnvironmentSummary>, EnvironmentError> {
        let builder = self.builder();
        self.catalogue()?.iter().map(|definition| report::summary(&builder, definition)).collect()
    }

    /// Returns everything about one environment. What is installed is digested, which takes about a second.
    ///
    /// # Errors
    /// `unknown_environment`, and as [`Environments::catalogue`].
    pub fn inspect(&self, name: &str) -> Result<EnvironmentReport, EnvironmentError> {
        let catalogue = self.catalogue()?;
        report::full(&self.builder(), catalogue.get(name)?)
    }

    /// Makes sure that an environment is installed, sound and up to date. What is installed is digested; what is
    /// missing or damaged is built, which takes minutes. Progress is in percent.
    ///
    /// # Errors
    /// `unknown_environment`, `environment_build_failed`, `disk_full`, `cancelled`, `io`, and as
    /// [`Environments::catalogue`]. Nothing half-made is left.
    pub fn pull(
        &self,
        name: &str,
        options: PullOptions,
        progress: &dyn Progress,
    ) -> Result<Installed, EnvironmentError> {
        self.prepare(name, if options.refresh { Look::Rebuild } else { Look::Thorough }, progress)
    }

    /// Like [`Environments::pull`], for the path of every machine: what is installed is recognised by the identity of
    /// its files, in a few milliseconds.
    ///
    /// # Errors
    /// As [`Environments::pull`].
    pub fn ensure(&self, name: &str, progress: &dyn Progress) -> Result<Installed, EnvironmentError> {
        self.prepare(name, Look::Quick, progress)
    }

    fn prepare(&self, name: &str, look: Look, progress: &dyn Progress) -> Result<Installed, EnvironmentError> {
        let catalogue = self.catalogue()?;
        let mut definition = catalogue.get(name)?.clone();
        if let Some(kernel) = &self.inner.kernel {
            definition.kernel = Some(kernel.clone());
            definition.modules = None;
        }
        Ok(Installed::new(name, self.builder().ensure(&definition, look, progress)?))
    }

    /// Removes what nobody needs: leftovers of interrupted builds, builds that are out of date, environments that the
    /// catalogue no longer has. With `all`, every environment that no machine uses.
    ///
    /// # Errors
    /// As [`Environments::catalogue`]; what cannot be removed is reported, not an error.
    pub fn prune(&self, all: bool) -> Result<PruneReport, EnvironmentError> {
        let catalogue = self.catalogue()?;
        let builder = self.builder();
        let store = &self.inner.store;
        let mut out = PruneReport::default();
        out.add("interrupted builds", store.sweep()?, 0);

        let mut kernels = Vec::new();
        let mut initramfses = Vec::new();
        let mut rootfses = Vec::new();
        for definition in catalogue.iter().filter(|_| !all) {
            let slot = builder.rootfs_slot(definition);
            let up_to_date = slot
                .current::<build::RootfsDetails>()?
                .is_some_and(|build| build.manifest.recipe == definition.recipe(bootstrap::REVISION));
            if !up_to_date {
                continue;
            }
            rootfses.push(slot.dir);
            // A kernel file that is gone takes its slot with it.
            let Ok((slot, _)) = builder.kernel_slot(definition) else {
                continue;
            };
            if let Some(kernel) = slot.current::<build::KernelDetails>()? {
                initramfses.push(builder.initramfs_slot(&kernel.manifest).0.dir);
            }
            kernels.push(slot.dir);
        }
        for (kind, needed) in [(ENVIRONMENTS, rootfses), (KERNELS, kernels), (INITRAMFSES, initramfses)] {
            for key in store.keys(kind) {
                let slot = store.slot(kind, &key);
                let (freed, in_use) = slot.remove_unused(!needed.contains(&slot.dir));
                out.add(&format!("{kind}/{key}"), freed, in_use);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
#[path = "environments_tests.rs"]
mod tests;
