//! What the kernel command line tells the agent.
//!
//! | parameter | meaning |
//! |---|---|
//! | `pyro.root=DEVICE` | the root block device; `/dev/vda` |
//! | `pyro.rootfstype=TYPE` | its file system; `ext4` |
//! | `pyro.rootflags=OPTIONS` | mount options for the file system |
//! | `pyro.ro` | mount it read-only |
//! | `pyro.hostname=NAME` | the host name; `pyro` |

use super::fatal::FatalError;

/// The agent's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline {
    /// The root block device.
    pub root: String,
    /// Its file system.
    pub root_fs_type: String,
    /// Mount options for the file system, joined by commas.
    pub root_flags: String,
    /// True when it is mounted read-only.
    pub read_only: bool,
    /// The host name.
    pub hostname: Option<String>,
}

impl Cmdline {
    /// Returns the parameters of the running kernel.
    ///
    /// # Errors
    /// When `/proc/cmdline` cannot be read or names an unknown `pyro.` parameter.
    pub fn read() -> Result<Self, FatalError> {
        let text = std::fs::read("/proc/cmdline").map_err(FatalError::path("read", "/proc/cmdline"))?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    /// Returns the parameters in `text`. What does not begin with `pyro.` belongs to the kernel.
    ///
    /// # Errors
    /// For an unknown `pyro.` parameter, or one without its value.
    pub fn parse(text: &str) -> Result<Self, FatalError> {
        let mut parsed = Self {
            root: "/dev/vda".to_owned(),
            root_fs_type: "ext4".to_owned(),
            root_flags: String::new(),
            read_only: false,
            hostname: None,
        };
        for word in text.split_ascii_whitespace() {
            let Some(parameter) = word.strip_prefix("pyro.") else {
                continue;
            };
            match parameter.split_once('=') {
                Some(("root", value)) if value.starts_with("/dev/") => parsed.root = value.to_owned(),
                Some(("rootfstype", value)) if !value.is_empty() => parsed.root_fs_type = value.to_owned(),
                Some(("rootflags", value)) => parsed.root_flags = value.to_owned(),
                Some(("hostname", value)) if !value.is_empty() => parsed.hostname = Some(value.to_owned()),
                None if parameter == "ro" => parsed.read_only = true,
                _ => {
                    return Err(FatalError::Cmdline(format!("unknown or malformed kernel parameter `{word}`")));
                }
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_parameters_and_leaves_the_kernels() {
        let parsed = Cmdline::parse("quiet root=x pyro.root=/dev/vdb pyro.ro pyro.rootfstype=erofs\n").unwrap();
        assert_eq!(
            parsed,
            Cmdline {
                root: "/dev/vdb".into(),
                root_fs_type: "erofs".into(),
                root_flags: String::new(),
                read_only: true,
                hostname: None
            }
        );
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for text in ["pyro.rot=/dev/vda", "pyro.root=vda", "pyro.root", "pyro.hostname=", "pyro.ro=1"] {
            let error = Cmdline::parse(text).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
