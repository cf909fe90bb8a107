//! Where pyro keeps things.
//!
//! `$PYRO_HOME` puts everything below one directory, which is what tests and several installations side by side need.
//! Without it the XDG directories are used. Nothing here is created until it is needed: asking for a path must be free.

use std::{
    ffi::OsString,
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

/// The directories of one pyro installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// What must survive.
    pub state: PathBuf,
    /// What can be made again.
    pub cache: PathBuf,
    /// One directory per running machine.
    pub run: PathBuf,
    /// What the user wrote: `environments.toml`.
    pub config: PathBuf,
}

impl Paths {
    /// Returns the directories of this process's environment: below `$PYRO_HOME` when it is set, otherwise in the XDG
    /// directories.
    ///
    /// # Errors
    /// `NotFound` when neither `$PYRO_HOME` nor `$HOME` nor enough XDG variables are set, `InvalidInput` when a path is
    /// not UTF-8.
    pub fn from_env() -> io::Result<Self> {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// Returns the directories below one directory, as with `$PYRO_HOME`.
    pub fn below(home: &Path) -> Self {
        Self { state: home.join("state"), cache: home.join("cache"), run: home.join("run"), config: home.to_owned() }
    }

    fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> io::Result<Self> {
        Self::found(var)?.text()
    }

    /// Refuses paths that are not text. Machines and QEMU are told them in JSON and on command lines.
    fn text(self) -> io::Result<Self> {
        let odd = [&self.state, &self.cache, &self.run, &self.config].into_iter().find(|path| path.to_str().is_none());
        if let Some(path) = odd {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the path `{}` is not UTF-8", path.as_os_str().as_bytes().escape_ascii()),
            ));
        }
        Ok(self)
    }

    fn found(var: impl Fn(&str) -> Option<OsString>) -> io::Result<Self> {
        if let Some(home) = var("PYRO_HOME").filter(|home| !home.is_empty()) {
            // Other processes and QEMU get these paths, whatever their working directory is.
            return std::path::absolute(PathBuf::from(home)).map(|home| Self::below(&home));
        }
        // The XDG specification: a relative path in these variables is to be ignored.
        let absolute = |name: &str| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME");
        let xdg = |name: &str, default: &str| {
            absolute(name)
                .or_else(|| home.as_ref().map(|home| home.join(default)))
                .map(|base| base.join("pyro"))
                .ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("no directory to work in: PYRO_HOME, {name} and HOME are all unset"),
                    )
                })
        };
        let state = xdg("XDG_STATE_HOME", ".local/state")?;
        let run = match absolute("XDG_RUNTIME_DIR") {
            Some(base) => base.join("pyro"),
            None => state.join("run"),
        };
        Ok(Self { cache: xdg("XDG_CACHE_HOME", ".cache")?, config: xdg("XDG_CONFIG_HOME", ".config")?, state, run })
    }
}

/// Makes a directory and its missing parents with mode 0700, and narrows an existing one of ours to it.
///
/// # Errors
/// What the file system says.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(vars: &[(&str, &str)]) -> io::Result<Paths> {
        Paths::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
    }

    #[test]
    fn pyro_home_holds_everything() {
        let got = paths(&[("PYRO_HOME", "/p"), ("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]).unwrap();
        assert_eq!(got, Paths::below(Path::new("/p")));
        assert_eq!(got.cache, Path::new("/p/cache"));
    }

    #[test]
    fn a_relative_pyro_home_becomes_absolute() {
        assert!(paths(&[("PYRO_HOME", "p")]).unwrap().state.is_absolute());
    }

    #[test]
    fn a_path_that_is_not_text_is_refused_and_named() {
        use std::os::unix::ffi::OsStringExt;
        for name in ["PYRO_HOME", "HOME"] {
            let odd = |wanted: &str| (wanted == name).then(|| OsString::from_vec(b"/p\xff".to_vec()));
            let error = Paths::from_vars(odd).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains("/p\\xff"), "{error}");
        }
    }

    #[test]
    fn xdg_directories_and_their_defaults() {
        let got = paths(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c"), ("XDG_RUNTIME_DIR", "/r")]).unwrap();
        assert_eq!(got.state, Path::new("/h/.local/state/pyro"));
        assert_eq!(got.cache, Path::new("/c/pyro"));
        assert_eq!(got.run, Path::new("/r/pyro"));
        assert_eq!(got.config, Path::new("/h/.config/pyro"));
        assert_eq!(paths(&[("HOME", "/h")]).unwrap().run, Path::new("/h/.local/state/pyro/run"));
    }

    #[test]
    fn relative_xdg_directories_are_ignored() {
        let got = paths(&[("HOME", "/h"), ("XDG_STATE_HOME", "x")]).unwrap();
        assert_eq!(got.state, Path::new("/h/.local/state/pyro"));
    }

    #[test]
    fn nothing_set_names_the_variables() {
        let text = paths(&[]).unwrap_err().to_string();
        assert!(text.contains("PYRO_HOME") && text.contains("HOME"), "{text}");
    }

    #[test]
    fn private_directories_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        make_private_dir(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_private_dir(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
