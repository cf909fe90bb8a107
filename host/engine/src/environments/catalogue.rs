//! The environments that can be asked for: data in TOML, the embedded file first, then the user's.
//!
//! Parsed by hand over the parser's spanned tree instead of through serde, because a person who mistypes a key gets the
//! line, the fact and the key that was meant. Everything a definition says reaches a command line or a path, so every
//! value is checked here once, and [`Definition`] cannot hold a bad one.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::error::EnvironmentError;

const EMBEDDED: &str = include_str!("../../environments.toml");
/// What the embedded catalogue is called in messages.
pub(crate) const EMBEDDED_NAME: &str = "built-in environments.toml";

/// A user file beyond this is not a catalogue.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
const MAX_NAME_BYTES: usize = 64;
const MAX_TEXT_BYTES: usize = 1024;
const MAX_PACKAGES: usize = 1000;
/// The smallest file system that holds a minimal Debian, and the largest that the image writer's layout is tried with.
const DISK_MIB: std::ops::RangeInclusive<u64> = 512..=262_144;
const DEFAULT_DISK_MIB: u64 = 4096;

/// One environment that can be asked for; every value is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Its name, for example `debian:12`.
    pub name: String,
    /// One line for listings.
    pub description: String,
    /// Version of the definition.
    pub version: String,
    /// Where its packages come from.
    pub distribution: Distribution,
    /// The distribution's code name of the release.
    pub suite: String,
    /// Packages beside the essential ones and apt; sorted, without repetition.
    pub packages: Vec<String>,
    /// Size of the file system in MiB.
    pub disk_mib: u64,
    /// Package mirror, when the host's own choice is not to be taken.
    pub mirror: Option<String>,
    /// A kernel image to use instead of the distribution's.
    pub kernel: Option<PathBuf>,
    /// The directory of modules that belongs to `kernel`.
    pub modules: Option<PathBuf>,
    /// The file that defines it.
    pub defined_in: PathBuf,
}

/// Distributions that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Debian, through `mmdebstrap`.
    Debian,
}

impl Distribution {
    /// Returns the name used in the catalogue.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debian => "debian",
        }
    }
}

impl Definition {
    /// Returns the hexadecimal digest of everything that decides what the root file system holds. An installed
    /// environment with another digest is out of date. `revision` is the builder's own.
    pub(crate) fn recipe(&self, revision: u32) -> String {
        let mut hash = Sha256::new();
        let mut put = |text: &str| {
            // The length in front keeps neighbouring values apart.
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        put(&revision.to_string());
        put(self.distribution.as_str());
        put(&self.suite);
        put(&self.version);
        put(&self.disk_mib.to_string());
        put(self.mirror.as_deref().unwrap_or(""));
        self.packages.iter().for_each(|package| put(package));
        hex::encode(hash.finalize())
    }

    /// Returns the name as one file name. `_` stands for `:`, which QEMU's options and some tools take apart; a name
    /// holds no `_` of its own.
    pub(crate) fn dir_name(&self) -> String {
        self.name.replace(':', "_")
    }
}

/// All definitions by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    entries: BTreeMap<String, Definition>,
}

impl Catalogue {
    /// Reads the embedded catalogue and, when it exists, the user's file over it.
    ///
    /// # Errors
    /// `invalid_argument` with file and line for a file that is not a catalogue; `io` when it cannot be read.
    pub fn load(user_file: Option<&Path>) -> Result<Self, EnvironmentError> {
        let mut entries = parse(EMBEDDED, Path::new(EMBEDDED_NAME))?;
        if let Some(file) = user_file
            && let Some(text) = read_bounded(file)?
        {
            entries.extend(parse(&text, file)?);
        }
        Ok(Self { entries })
    }

    /// Returns the definition called `name`.
    ///
    /// # Errors
    /// [`EnvironmentError::Unknown`] with the known names and the closest of them.
    pub fn get(&self, name: &str) -> Result<&Definition, EnvironmentError> {
        self.entries.get(name).ok_or_else(|| EnvironmentError::Unknown {
            // What was asked for may be anything; a message stays readable.
            name: name.chars().filter(|c| !c.is_control()).take(MAX_NAME_BYTES).collect(),
            known: self.entries.keys().cloned().collect(),
            suggestion: closest(name, self.entries.keys().map(String::as_str)),
        })
    }

    /// Returns every definition, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Definition> {
        self.entries.values()
    }
}

fn read_bounded(file: &Path) -> Result<Option<String>, EnvironmentError> {
    let size = match std::fs::metadata(file) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(EnvironmentError::io("read", file, error)),
    };
    if size > MAX_FILE_BYTES {
        return Err(EnvironmentError::Catalogue {
            file: file.to_owned(),
            line: 1,
            message: format!("the file has {size} bytes, more than the {MAX_FILE_BYTES} of any catalogue"),
            hint: None,
        });
    }
    let bytes = std::fs::read(file).map_err(|e| EnvironmentError::io("read", file, e))?;
    String::from_utf8(bytes).map(Some).map_err(|e| EnvironmentError::Catalogue {
        file: file.to_owned(),
        line: 1 + e.as_bytes().iter().take(e.utf8_error().valid_up_to()).filter(|b| **b == b'\n').count(),
        message: "the file is not UTF-8".to_owned(),
        hint: None,
    })
}

/// Returns the candidate that `given` was most likely meant to be.
pub(crate) fn closest<'a>(given: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    // Far above any real misspelling; the comparison is quadratic in the lengths.
    if given.len() > 2 * MAX_NAME_BYTES {
        return None;
    }
    candidates
        .map(|candidate| (strsim::jaro_winkler(given, candidate), candidate))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// A table being taken apart, with what an error about it needs.
struct Reader<'a> {
    text: &'a str,
    file: &'a Path,
}

type Key<'i> = Spanned<DeString<'i>>;
type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn error(&self, at: usize, message: String, hint: Option<String>) -> EnvironmentError {
        let line = 1 + self.text.bytes().take(at).filter(|b| *b == b'\n').count();
        EnvironmentError::Catalogue { file: self.file.to_owned(), line, message, hint }
    }

    fn unknown_key(&self, key: &Key<'_>, known: &[&str]) -> EnvironmentError {
        let name = key.get_ref();
        let hint = match closest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("known keys: {}", known.join(", ")),
        };
        self.error(key.span().start, format!("unknown key `{name}`"), Some(hint))
    }

    fn string(&self, key: &str, value: &Value<'_>) -> Result<String, EnvironmentError> {
        let at = value.span().start;
        let Some(text) = value.get_ref().as_str() else {
            return Err(self.error(
                at,
                format!("`{key}` must be a string, not {}", value.get_ref().type_str()),
                Some(format!("write {key} = \"...\"")),
            ));
        };
        if text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
            return Err(self.error(at, format!("`{key}` must be one line of at most {MAX_TEXT_BYTES} bytes"), None));
        }
        Ok(text.to_owned())
    }

    fn checked(
        &self,
        key: &str,
        value: &Value<'_>,
        allowed: impl Fn(&str) -> bool,
        rule: &str,
    ) -> Result<String, EnvironmentError> {
        let text = self.string(key, value)?;
        if allowed(&text) {
            return Ok(text);
        }
        Err(self.error(value.span().start, format!("`{text}` is no {key}"), Some(rule.to_owned())))
    }
}

fn parse(text: &str, file: &Path) -> Result<BTreeMap<String, Definition>, EnvironmentError> {
    let reader = Reader { text, file };
    let root = DeTable::parse(text).map_err(|error| {
        reader.error(error.span().map_or(0, |span| span.start), error.message().trim().replace('\n', ", "), None)
    })?;
    let mut out = BTreeMap::new();
    for (key, value) in root.get_ref() {
        if key.get_ref() != "environments" {
            return Err(reader.unknown_key(key, &["environments"]));
        }
        let DeValue::Table(environments) = value.get_ref() else {
            return Err(reader.error(
                value.span().start,
                "`environments` must be a table".to_owned(),
                Some("write [environments.\"NAME\"]".to_owned()),
            ));
        };
        for (name, value) in environments {
            let definition = parse_definition(&reader, name, value)?;
            out.insert(definition.name.clone(), definition);
        }
    }
    Ok(out)
}

const KEYS: [&str; 9] =
    ["description", "version", "distribution", "suite", "packages", "disk_mib", "mirror", "kernel", "modules"];

fn parse_definition(reader: &Reader<'_>, key: &Key<'_>, value: &Value<'_>) -> Result<Definition, EnvironmentError> {
    let name: &str = key.get_ref();
    if !is_name(name) {
        return Err(reader.error(
            key.span().start,
            format!("`{}` is no environment name", name.escape_debug()),
            Some(format!(
                "use lower-case letters, digits, `.`, `+` and `-`, at most one `:` between them, {MAX_NAME_BYTES} bytes"
            )),
        ));
    }
    let DeValue::Table(table) = value.get_ref() else {
        return Err(reader.error(
            value.span().start,
            format!("environment `{name}` must be a table"),
            Some(format!("write [environments.\"{name}\"]")),
        ));
    };
    let mut description = None;
    let mut version = None;
    let mut distribution = None;
    let mut suite = None;
    let mut packages = Vec::new();
    let mut disk_mib = DEFAULT_DISK_MIB;
    let (mut mirror, mut kernel, mut modules) = (None, None, None);
    for (key, value) in table {
        let k: &str = key.get_ref();
        match k {
            "description" => description = Some(reader.string(k, value)?),
            "version" => {
                version = Some(reader.checked(k, value, is_version, "use letters, digits, `.`, `+` and `-`")?);
            }
            "distribution" => {
                reader.checked(k, value, |v| v == "debian", "only \"debian\" can be built")?;
                distribution = Some(Distribution::Debian);
            }
            "suite" => {
                suite = Some(reader.checked(
                    k,
                    value,
                    is_package,
                    "a Debian code name is one, for example \"bookworm\"",
                )?);
            }
            "packages" => packages = parse_packages(reader, value)?,
            "disk_mib" => disk_mib = parse_disk(reader, value)?,
            "mirror" => {
                mirror = Some(reader.checked(k, value, is_mirror, "give an http, https or file URL without spaces")?);
            }
            "kernel" => kernel = Some(reader.path(k, value)?),
            "modules" => modules = Some(reader.path(k, value)?),
            _ => return Err(reader.unknown_key(key, &KEYS)),
        }
    }
    let missing = |what: &str| {
        reader.error(
            key.span().start,
            format!("environment `{name}` has no `{what}`"),
            Some(format!("add {what} = \"...\"")),
        )
    };
    if modules.is_some() && kernel.is_none() {
        return Err(reader.error(
            key.span().start,
            format!("environment `{name}` has `modules` but no `kernel`"),
            Some("name the kernel image that the modules belong to".to_owned()),
        ));
    }
    Ok(Definition {
        name: name.to_owned(),
        description: description.ok_or_else(|| missing("description"))?,
        version: version.ok_or_else(|| missing("version"))?,
        distribution: distribution.ok_or_else(|| missing("distribution"))?,
        suite: suite.ok_or_else(|| missing("suite"))?,
        packages,
        disk_mib,
        mirror,
        kernel,
        modules,
        defined_in: reader.file.to_owned(),
    })
}

impl Reader<'_> {
    /// A path, relative to the file that names it.
    fn path(&self, key: &str, value: &Value<'_>) -> Result<PathBuf, EnvironmentError> {
        let text = self.checked(key, value, |v| !v.is_empty(), "give the path of a file")?;
        Ok(match self.file.parent() {
            Some(dir) => dir.join(text),
            None => PathBuf::from(text),
        })
    }
}

fn parse_packages(reader: &Reader<'_>, value: &Value<'_>) -> Result<Vec<String>, EnvironmentError> {
    let DeValue::Array(list) = value.get_ref() else {
        return Err(reader.error(
            value.span().start,
            "`packages` must be a list of strings".to_owned(),
            Some("write packages = [\"git\"]".to_owned()),
        ));
    };
    if list.len() > MAX_PACKAGES {
        return Err(reader.error(value.span().start, format!("`packages` names more than {MAX_PACKAGES}"), None));
    }
    let mut out = list
        .iter()
        .map(|item| reader.checked("package", item, is_package, "a Debian package name is one, for example \"git\""))
        .collect::<Result<Vec<_>, _>>()?;
    out.sort();
    out.dedup();
    Ok(out)
}

fn parse_disk(reader: &Reader<'_>, value: &Value<'_>) -> Result<u64, EnvironmentError> {
    value
        .get_ref()
        .as_integer()
        .and_then(|number| u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok())
        .filter(|mib| DISK_MIB.contains(mib))
        .ok_or_else(|| {
            reader.error(
                value.span().start,
                format!("`disk_mib` must be a whole number between {} and {}", DISK_MIB.start(), DISK_MIB.end()),
                None,
            )
        })
}

/// Letters that Debian allows in package names, and never an option: the first is a letter or a digit.
fn is_package(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= MAX_NAME_BYTES
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'+' | b'-'))
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES && text.split(':').count() <= 2 && text.split(':').all(is_package)
}

fn is_version(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-'))
}

fn is_mirror(text: &str) -> bool {
    let scheme = ["http://", "https://", "file:///"].iter().any(|scheme| text.starts_with(scheme));
    scheme && !text.contains(|c: char| c.is_whitespace() || matches!(c, '[' | ']' | '#' | '"' | '\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[environments."my:1"]
description = "mine"
version = "2"
distribution = "debian"
suite = "trixie"
"#;

    fn load(text: &str) -> Result<Catalogue, EnvironmentError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("environments.toml");
        std::fs::write(&file, text).unwrap();
        Catalogue::load(Some(&file))
    }

    /// The line, message and hint of a refused file.
    fn refused(text: &str) -> (usize, String, String) {
        match load(text).unwrap_err() {
            EnvironmentError::Catalogue { line, message, hint, .. } => (line, message, hint.unwrap_or_default()),
            other => panic!("{other}"),
        }
    }

    fn with(extra: &str) -> String {
        format!("{GOOD}{extra}\n")
    }

    #[test]
    fn the_embedded_catalogue_is_what_is_promised() {
        let catalogue = Catalogue::load(None).unwrap();
        let names: Vec<_> = catalogue.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["debian:12", "debian:12-base", "debian:12-build"]);
        assert!(catalogue.iter().all(|d| d.version == "1.0.0" && d.suite == "bookworm" && d.mirror.is_none()));
        assert!(catalogue.get("debian:12").unwrap().packages.contains(&"git".to_owned()));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones_and_suggests() {
        let error = Catalogue::load(None).unwrap().get("debain:12").unwrap_err();
        assert_eq!(error.code().as_str(), "unknown_environment");
        assert!(error.to_string().contains("debian:12, debian:12-base, debian:12-build"), "{error}");
        assert_eq!(error.hint().unwrap(), "did you mean `debian:12`?");
        let error = Catalogue::load(None).unwrap().get("zzz").unwrap_err();
        assert_eq!(error.hint().unwrap(), "`pyro env list` shows them");
    }

    #[test]
    fn an_absurd_name_makes_a_short_message() {
        let error = Catalogue::load(None).unwrap().get(&"x\n".repeat(100_000)).unwrap_err();
        assert!(error.to_string().len() < 300);
    }

    #[test]
    fn a_user_file_adds_and_replaces() {
        let catalogue = load(&format!("{GOOD}\n{}", GOOD.replace("my:1", "debian:12"))).unwrap();
        assert_eq!(catalogue.get("debian:12").unwrap().suite, "trixie");
        assert_eq!(catalogue.get("my:1").unwrap().disk_mib, DEFAULT_DISK_MIB);
        assert_eq!(catalogue.get("debian:12-base").unwrap().suite, "bookworm");
    }

    #[test]
    fn a_missing_user_file_is_no_error() {
        let catalogue = Catalogue::load(Some(Path::new("/nonexistent/environments.toml"))).unwrap();
        assert_eq!(catalogue.iter().count(), 3);
    }

    #[test]
    fn unknown_keys_are_refused_with_line_and_suggestion() {
        let (line, message, hint) = refused(&with("pakages = []"));
        assert_eq!((line, message.as_str()), (7, "unknown key `pakages`"));
        assert_eq!(hint, "did you mean `packages`?");
        let (line, message, hint) = refused("[environment.x]\n");
        assert_eq!((line, message.as_str()), (1, "unknown key `environment`"));
        assert_eq!(hint, "did you mean `environments`?");
    }

    #[test]
    fn missing_keys_are_named() {
        let (_, message, _) = refused("[environments.x]\ndescription = \"d\"\nversion = \"1\"\nsuite = \"sid\"\n");
        assert_eq!(message, "environment `x` has no `distribution`");
    }

    #[test]
    fn values_that_would_reach_a_command_line_are_checked() {
        for bad in ["--hook", "a b", "a,b", "", "A", "a;b", "a/b", "./x"] {
            let (_, message, _) = refused(&with(&format!("packages = [\"{bad}\"]")));
            assert_eq!(message, format!("`{bad}` is no package"));
        }
        for bad in ["ftp://x", "deb http://x", "http://x y", "http://x [trusted=yes]", "--x"] {
            assert!(refused(&with(&format!("mirror = \"{bad}\""))).1.ends_with("is no mirror"), "{bad}");
        }
        for bad in ["../x", "/etc", "Debian", "a:b:c", "a_b", "-a", ":", ""] {
            let (_, message, _) = refused(&GOOD.replace("my:1", bad));
            assert!(message.ends_with("is no environment name"), "{message}");
        }
    }

    #[test]
    fn wrong_types_and_sizes_are_refused() {
        assert_eq!(refused(&with("mirror = 3")).1, "`mirror` must be a string, not integer");
        assert!(refused(&with("packages = \"git\"")).1.starts_with("`packages` must be a list"));
        for bad in ["0", "-1", "1.5", "\"4\"", "99999999999999999999", "300000"] {
            assert!(refused(&with(&format!("disk_mib = {bad}"))).1.starts_with("`disk_mib` must be"), "{bad}");
        }
        assert_eq!(load(&with("disk_mib = 0x1000")).unwrap().get("my:1").unwrap().disk_mib, 4096);
        assert!(refused(&with("modules = \"m\"")).1.contains("no `kernel`"));
        assert!(refused("environments = 3\n").1.contains("must be a table"));
        assert!(refused("[environments]\nx = 3\n").1.contains("must be a table"));
    }

    #[test]
    fn a_kernel_is_relative_to_the_file_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("environments.toml");
        std::fs::write(&file, with("kernel = \"vmlinux\"")).unwrap();
        let catalogue = Catalogue::load(Some(&file)).unwrap();
        assert_eq!(catalogue.get("my:1").unwrap().kernel.as_deref(), Some(dir.path().join("vmlinux").as_path()));
    }

    #[test]
    fn broken_files_name_the_line() {
        assert_eq!(refused("\n\n[environments\n").0, 3);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("environments.toml");
        std::fs::write(&file, b"# ok\n\xff\xfe\n").unwrap();
        assert!(Catalogue::load(Some(&file)).unwrap_err().to_string().contains(":2: the file is not UTF-8"));
        std::fs::write(&file, vec![b'#'; 2 << 20]).unwrap();
        assert!(Catalogue::load(Some(&file)).unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn the_recipe_changes_with_what_is_built_and_with_nothing_else() {
        let base = load(GOOD).unwrap().get("my:1").unwrap().clone();
        let recipe = |change: &dyn Fn(&mut Definition)| {
            let mut changed = base.clone();
            change(&mut changed);
            changed.recipe(1)
        };
        let same = base.recipe(1);
        assert_eq!(recipe(&|d| d.description = "other".to_owned()), same);
        assert_eq!(recipe(&|d| d.kernel = Some("/k".into())), same);
        assert_ne!(recipe(&|d| d.packages.push("git".to_owned())), same);
        assert_ne!(recipe(&|d| d.suite = "bookworm".to_owned()), same);
        assert_ne!(recipe(&|d| d.version = "3".to_owned()), same);
        assert_ne!(recipe(&|d| d.disk_mib = 1), same);
        assert_ne!(base.recipe(2), same);
    }
}
