//! What can go wrong with environments.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::error::{EngineError, ErrorCode};

/// A failure to know, build or use an environment.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The catalogue has no such name.
    #[error("unknown environment `{name}`; known are {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Every name that would have worked.
        known: Vec<String>,
        /// The known name that is closest to `name`.
        suggestion: Option<String>,
    },
    /// A catalogue file cannot be understood.
    #[error("{}:{line}: {message}", file.display())]
    Catalogue {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The fact.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
    /// A program that building needs is not installed.
    #[error("`{program}` is not installed, and building `{environment}` needs it")]
    MissingProgram {
        /// The program.
        program: String,
        /// The environment.
        environment: String,
    },
    /// A step of building failed.
    #[error("building `{environment}` failed: {message}{}", Tail(tail))]
    Build {
        /// The environment.
        environment: String,
        /// The fact.
        message: String,
        /// Last lines of the program that failed.
        tail: Vec<String>,
        /// The next step.
        hint: Option<String>,
        /// Whether the same may work later.
        retryable: bool,
    },
    /// A kernel image cannot be used.
    #[error("kernel `{}` cannot be used: {message}", file.display())]
    Kernel {
        /// The file.
        file: PathBuf,
        /// The fact.
        message: String,
    },
    /// There is not enough room on a file system.
    #[error("not enough room in `{}`: {}", path.display(), Room(*needed, *free))]
    DiskFull {
        /// A directory on the full file system.
        path: PathBuf,
        /// Bytes that the step needs, as far as known.
        needed: Option<u64>,
        /// Bytes that are free.
        free: Option<u64>,
    },
    /// The environment is not installed, and the operation does not install it.
    #[error("environment `{0}` is not installed")]
    NotInstalled(String),
    /// The caller gave up.
    #[error("cancelled while {0}")]
    Cancelled(String),
    /// The operating system refused something.
    #[error("{action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, for example `read`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
}

impl EnvironmentError {
    /// Makes the error of a failed system call; no room left becomes [`EnvironmentError::DiskFull`].
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                let path = path.to_owned();
                Self::DiskFull { free: super::space::free_bytes(&path).ok(), path, needed: None }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// Returns the kind of failure, one of the engine's codes.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown { .. } => ErrorCode::UnknownEnvironment,
            Self::Catalogue { .. } => ErrorCode::InvalidArgument,
            Self::MissingProgram { .. } | Self::Build { .. } | Self::Kernel { .. } => ErrorCode::EnvironmentBuildFailed,
            Self::DiskFull { .. } => ErrorCode::DiskFull,
            Self::NotInstalled(_) => ErrorCode::NotFound,
            Self::Cancelled(_) => ErrorCode::Cancelled,
            Self::Io { .. } => ErrorCode::Io,
        }
    }

    /// Returns the next step, when one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { suggestion: Some(name), .. } => Some(format!("did you mean `{name}`?")),
            Self::Unknown { .. } => Some("`pyro env list` shows them".to_owned()),
            Self::Catalogue { hint, .. } | Self::Build { hint, .. } => hint.clone(),
            Self::MissingProgram { program, .. } => {
                Some(format!("`apt-get install {}` brings it; `pyro doctor` checks the rest", package_of(program)))
            }
            Self::Kernel { .. } => Some("name a Linux x86-64 bzImage or vmlinux".to_owned()),
            Self::DiskFull { .. } => {
                Some("free some space (`pyro env prune`), or point PYRO_HOME at a larger disk".to_owned())
            }
            Self::NotInstalled(name) => Some(format!("`pyro env pull {name}` installs it")),
            Self::Cancelled(_) | Self::Io { .. } => None,
        }
    }

    /// Returns whether repeating the same request is safe and may succeed.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Build { retryable, .. } => *retryable,
            Self::DiskFull { .. } | Self::Cancelled(_) => true,
            _ => false,
        }
    }
}

impl From<EnvironmentError> for EngineError {
    fn from(error: EnvironmentError) -> Self {
        let mut out = Self::new(error.code(), error.to_string());
        if let Some(hint) = error.hint() {
            out = out.with_hint(hint);
        }
        if error.retryable() { out.retry_may_help() } else { out }
    }
}

/// Returns the Debian package of a program that building uses.
fn package_of(program: &str) -> &str {
    match program {
        "apt-get" => "apt",
        "dpkg-deb" => "dpkg",
        other => other,
    }
}

struct Tail<'a>(&'a [String]);

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str("; its last lines:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

struct Room(Option<u64>, Option<u64>);

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
        match (self.0, self.1) {
            (Some(needed), Some(free)) => {
                write!(
                    f,
                    "{} MiB needed ({needed} bytes), {} MiB free ({free} bytes)",
                    mib(needed),
                    free / (1024 * 1024)
                )
            }
            (None, Some(free)) => write!(f, "{} MiB free ({free} bytes)", free / (1024 * 1024)),
            (Some(needed), None) => write!(f, "{} MiB needed ({needed} bytes)", mib(needed)),
            (None, None) => f.write_str("nothing is free"),
        }
    }
}
