//! What is known about environments, as plain data for listings and for `--json`.

use serde::Serialize;

use super::{
    bootstrap,
    build::{Builder, KernelDetails, ROOTFS, RootfsDetails},
    catalogue::Definition,
    error::EnvironmentError,
    store::{Build, Manifest, disk_bytes},
};

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EnvironmentSummary {
    /// Name in the catalogue.
    pub name: String,
    /// What it holds.
    pub description: String,
    /// Version of the definition.
    pub version: String,
    /// `debian`.
    pub distribution: String,
    /// Code name of the release.
    pub suite: String,
    /// Whether it is installed, up to date, and its files are in place.
    pub installed: bool,
    /// Whether it is installed, but not as the catalogue now defines it.
    pub outdated: bool,
    /// Bytes that its root file system takes on the disk, when installed.
    pub disk_bytes: Option<u64>,
    /// Hexadecimal digest of its root file system, zeros left out, when installed.
    pub digest: Option<String>,
    /// When it was built, in UTC, when installed.
    pub created: Option<String>,
}

/// Everything about one environment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EnvironmentReport {
    /// The line of the listing.
    #[serde(flatten)]
    pub summary: EnvironmentSummary,
    /// Packages that the definition asks for beside the essential ones.
    pub packages: Vec<String>,
    /// Size of the file system that a machine sees, in MiB.
    pub disk_mib: u64,
    /// The file that defines it.
    pub defined_in: String,
    /// What is installed.
    pub details: Option<InstalledReport>,
}

/// What is installed of an environment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstalledReport {
    /// The files, relative to `directory`.
    pub files: Vec<FileReport>,
    /// Where they are.
    pub directory: String,
    /// Whether every file has the digest that it was installed with.
    pub sound: bool,
    /// Sources of its packages, as in sources.list(5).
    pub sources: Vec<String>,
    /// Every installed package as `name version`.
    pub installed_packages: Vec<String>,
    /// Bytes of the files in the root file system.
    pub content_bytes: u64,
    /// How long building took.
    pub build_seconds: f64,
    /// The kernel that its machines boot; absent when damaged or missing.
    pub kernel: Option<KernelReport>,
}

/// A file of the cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileReport {
    /// Name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Hexadecimal digest; of an image without its zeros.
    pub sha256: String,
}

/// An installed kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelReport {
    /// The package's file, or the path that the catalogue names.
    pub origin: String,
    /// The kernel's own version, when known.
    pub release: Option<String>,
    /// Modules in the initramfs, in loading order.
    pub modules: Vec<String>,
    /// The files.
    pub files: Vec<FileReport>,
    /// Where they are.
    pub directory: String,
}

/// What [`super::Environments::prune`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PruneReport {
    /// What was removed.
    pub removed: Vec<Removed>,
    /// What would have been removed, but is in use.
    pub in_use: Vec<String>,
    /// Sum over `removed`.
    pub freed_bytes: u64,
}

/// Something that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// What.
    pub name: String,
    /// Bytes on the disk.
    pub bytes: u64,
}

impl PruneReport {
    pub(crate) fn add(&mut self, name: &str, bytes: u64, in_use: usize) {
        if bytes > 0 {
            self.removed.push(Removed { name: name.to_owned(), bytes });
            self.freed_bytes += bytes;
        }
        if in_use > 0 {
            self.in_use.push(name.to_owned());
        }
    }
}

pub(crate) fn summary(builder: &Builder<'_>, definition: &Definition) -> Result<EnvironmentSummary, EnvironmentError> {
    let build = builder.rootfs_slot(definition).current::<RootfsDetails>()?;
    Ok(summary_of(definition, build.as_ref()))
}

fn summary_of(definition: &Definition, build: Option<&Build<RootfsDetails>>) -> EnvironmentSummary {
    let up_to_date = build.is_some_and(|build| build.manifest.recipe == definition.recipe(bootstrap::REVISION));
    EnvironmentSummary {
        name: definition.name.clone(),
        description: definition.description.clone(),
        version: definition.version.clone(),
        distribution: definition.distribution.as_str().to_owned(),
        suite: definition.suite.clone(),
        installed: up_to_date,
        outdated: build.is_some() && !up_to_date,
        disk_bytes: build.map(|build| disk_bytes(&build.dir)),
        digest: build.and_then(|build| build.manifest.files.get(ROOTFS)).map(|file| file.sha256.clone()),
        created: build.map(|build| utc(build.manifest.created)),
    }
}

pub(crate) fn full(builder: &Builder<'_>, definition: &Definition) -> Result<EnvironmentReport, EnvironmentError> {
    let slot = builder.rootfs_slot(definition);
    let build = slot.current::<RootfsDetails>()?;
    let sound = build.is_some() && slot.verified::<RootfsDetails>()?.is_some();
    let kernel = match builder.kernel_slot(definition) {
        Ok((slot, _)) => slot.verified::<KernelDetails>()?,
        Err(_) => None,
    };
    let details = build.as_ref().map(|build| {
        let details = &build.manifest.details;
        InstalledReport {
            files: files_of(&build.manifest),
            directory: build.dir.display().to_string(),
            sound,
            sources: details.sources.clone(),
            installed_packages: details.packages.clone(),
            content_bytes: details.content_bytes,
            build_seconds: details.build_seconds,
            kernel: kernel.map(|kernel| KernelReport {
                files: files_of(&kernel.manifest),
                directory: kernel.dir.display().to_string(),
                origin: kernel.manifest.details.origin,
                release: kernel.manifest.details.release,
                modules: kernel.manifest.details.modules,
            }),
        }
    });
    Ok(EnvironmentReport {
        summary: summary_of(definition, build.as_ref()),
        packages: definition.packages.clone(),
        disk_mib: definition.disk_mib,
        defined_in: definition.defined_in.display().to_string(),
        details,
    })
}

fn files_of<T>(manifest: &Manifest<T>) -> Vec<FileReport> {
    manifest
        .files
        .iter()
        .map(|(name, file)| FileReport { name: name.clone(), size: file.size, sha256: file.sha256.clone() })
        .collect()
}

/// Returns Unix seconds as `2026-03-01T12:00:00Z`. The calendar arithmetic counts eras of 400 years from 1 March of
/// year 0, as Howard Hinnant's "chrono-compatible low-level date algorithms" do.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(utc(1_709_251_200), "2024-03-01T00:00:00Z");
        assert_eq!(utc(4_102_444_799), "2099-12-31T23:59:59Z");
    }
}
