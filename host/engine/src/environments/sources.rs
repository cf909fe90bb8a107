//! Which package sources an environment is built from.
//!
//! A host that already uses the wanted Debian suite knows a mirror that works for it, perhaps the only one behind its
//! firewall. Its other sources (vendors' repositories, backports, local ones) must not reach an image that carries
//! Debian's name, so only entries of the suite itself and its updates are taken, only `main`, and only when Debian's
//! archive key signs them. Formats: sources.list(5), both styles.

use std::{fs, path::Path};

/// No sources file is larger.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Enough for any host, and a bound on the command line.
const MAX_SOURCES: usize = 16;

/// One repository in the one-line style's terms.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    pub(crate) suite: String,
    pub(crate) uri: String,
    /// Path of the key ring, when the entry names one.
    pub(crate) signed_by: Option<String>,
}

impl Source {
    /// Returns the line of sources.list(5) for building: with the credentials that the host's entry may hold.
    pub(crate) fn line(&self) -> String {
        self.line_with(&self.uri)
    }

    /// Returns the line that goes into the image: without credentials, which are the host's business.
    pub(crate) fn public_line(&self) -> String {
        self.line_with(&without_credentials(&self.uri))
    }

    fn line_with(&self, uri: &str) -> String {
        match &self.signed_by {
            Some(key) => format!("deb [signed-by={key}] {uri} {} main", self.suite),
            None => format!("deb {uri} {} main", self.suite),
        }
    }
}

fn without_credentials(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}/{path}")
        }
        None => uri.to_owned(),
    }
}

/// Returns the host's Debian sources for `suite`, read from `apt_dir` (`/etc/apt`). Empty when the host does not use
/// the suite itself: updates alone build nothing.
pub(crate) fn host_sources(apt_dir: &Path, suite: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut take = |file: &Path| {
        let Some(text) = read(file) else { return };
        let entries = match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => deb822(&text),
            Some("list") => one_line(&text),
            _ => Vec::new(),
        };
        for entry in entries {
            found.extend(entry.sources_of(suite));
        }
    };
    take(&apt_dir.join("sources.list"));
    let mut parts: Vec<_> = fs::read_dir(apt_dir.join("sources.list.d"))
        .map(|dir| dir.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect())
        .unwrap_or_default();
    parts.sort();
    parts.iter().for_each(|part| take(part));
    found.sort();
    found.dedup();
    found.truncate(MAX_SOURCES);
    if found.iter().any(|source| source.suite == suite) { found } else { Vec::new() }
}

fn read(file: &Path) -> Option<String> {
    if fs::metadata(file).ok()?.len() > MAX_FILE_BYTES {
        return None;
    }
    String::from_utf8(fs::read(file).ok()?).ok()
}

/// What one entry of either style says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
    /// Restricts or widens the entry in a way that is not followed here.
    special: bool,
}

impl Entry {
    fn sources_of(&self, suite: &str) -> Vec<Source> {
        if self.special || !self.components.iter().any(|component| component == "main") {
            return Vec::new();
        }
        let wanted =
            |have: &&String| have.strip_prefix(suite).is_some_and(|rest| matches!(rest, "" | "-updates" | "-security"));
        let mut out = Vec::new();
        for suite in self.suites.iter().filter(wanted) {
            for uri in self.uris.iter().filter_map(|uri| resolve(uri)) {
                if is_debian(&uri, self.signed_by.as_deref()) && is_plain(&uri) && is_plain(suite) {
                    out.push(Source { suite: suite.clone(), uri, signed_by: self.signed_by.clone() });
                }
            }
        }
        out
    }
}

/// Nothing in it can be taken for an option or another field.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'[' | b']' | b'#' | b'"' | b'\\' | b'\''))
}

/// A key ring that the entry names decides; the file is Debian's own package's. Without one, any key that the host
/// trusts would do, and the conventional last part of a Debian mirror's address is what tells it from a vendor's.
fn is_debian(uri: &str, signed_by: Option<&str>) -> bool {
    match signed_by {
        Some(key) => {
            let name = Path::new(key).file_name().and_then(|name| name.to_str()).unwrap_or_default();
            key.starts_with('/') && is_plain(key) && name.starts_with("debian-archive-")
        }
        None => matches!(uri.trim_end_matches('/').rsplit('/').next(), Some("debian" | "debian-security")),
    }
}

/// Returns an address that works inside a chroot as well: cloud images name a file with the mirror's address in it.
fn resolve(uri: &str) -> Option<String> {
    let list = uri.strip_prefix("mirror+file://").or_else(|| uri.strip_prefix("mirror+file:"));
    let uri = match list {
        Some(list) => {
            let text = read(Path::new(list))?;
            let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
            first.split_whitespace().next()?.to_owned()
        }
        None => uri.to_owned(),
    };
    (uri.starts_with("http://") || uri.starts_with("https://")).then_some(uri)
}

fn one_line(text: &str) -> Vec<Entry> {
    text.lines().filter_map(one_line_entry).collect()
}

fn one_line_entry(line: &str) -> Option<Entry> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t', '[']))?.trim_start();
    let mut entry = Entry::default();
    let rest = match rest.strip_prefix('[') {
        Some(options) => {
            let (options, rest) = options.split_once(']')?;
            for option in options.split_whitespace() {
                match option.split_once('=') {
                    Some(("signed-by", key)) => entry.signed_by = Some(key.to_owned()),
                    Some(("arch", arch)) => entry.special |= !arch.split(',').any(|a| a == "amd64"),
                    _ => entry.special = true,
                }
            }
            rest
        }
        None => rest,
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    entry.uris.push(words.next()?);
    entry.suites.push(words.next()?);
    entry.components.extend(words);
    Some(entry)
}

fn deb822(text: &str) -> Vec<Entry> {
    let mut out = Vec::new();
    for stanza in text.replace("\r\n", "\n").split("\n\n") {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza.lines().filter(|line| !line.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push(' ');
                    value.push_str(line.trim());
                }
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let words = |value: &str| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut entry = Entry::default();
        let mut deb = false;
        for (name, value) in fields {
            match name.as_str() {
                "types" => deb = words(&value).iter().any(|t| t == "deb"),
                "uris" => entry.uris = words(&value),
                "suites" => entry.suites = words(&value),
                "components" => entry.components = words(&value),
                "signed-by" if value.starts_with('/') && !value.contains(char::is_whitespace) => {
                    entry.signed_by = Some(value);
                }
                "architectures" => entry.special |= !words(&value).iter().any(|a| a == "amd64"),
                "enabled" => {
                    entry.special |= !matches!(value.to_ascii_lowercase().as_str(), "yes" | "true" | "on" | "1")
                }
                // These change nothing about what is fetched. Everything else does: an embedded key, `Trusted`, ...
                "x-repolib-name" | "description" | "languages" | "targets" | "pdiffs" | "by-hash" => {}
                _ => entry.special = true,
            }
        }
        if deb {
            out.push(entry);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn lines(files: &[(&str, &str)]) -> Vec<String> {
        host_sources(host(files).path(), "bookworm").iter().map(Source::line).collect()
    }

    #[test]
    fn deb822_entries_of_the_suite() {
        let text = format!(
            "# comment\nTypes: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n \
             bookworm-backports\nComponents: main contrib\nSigned-By: {KEY}\n\nTypes: deb\nURIs: \
             http://mirror.example/sec\nSuites: bookworm-security\nComponents: main\nSigned-By: {KEY}\n"
        );
        assert_eq!(
            lines(&[("sources.list.d/debian.sources", &text)]),
            [
                format!("deb [signed-by={KEY}] http://mirror.example/debian bookworm main"),
                format!("deb [signed-by={KEY}] http://mirror.example/sec bookworm-security main"),
                format!("deb [signed-by={KEY}] http://mirror.example/debian bookworm-updates main"),
            ]
        );
    }

    #[test]
    fn one_line_entries_of_the_suite() {
        let text = "deb http://m.example/debian bookworm main # ok\ndeb-src http://m.example/debian bookworm main\n\
                    #deb http://m.example/debian bookworm main\ndeb [arch=arm64] http://m.example/debian bookworm main\n\
                    deb http://m.example/debian sid main\ndeb http://m.example/debian bookworm contrib\n";
        assert_eq!(lines(&[("sources.list", text)]), ["deb http://m.example/debian bookworm main"]);
    }

    #[test]
    fn other_vendors_do_not_leak_in() {
        let debian = "deb http://m.example/debian bookworm main\n";
        for vendor in [
            "deb [signed-by=/usr/share/keyrings/vendor.gpg] http://v.example/apt bookworm main",
            "deb http://v.example/apt bookworm main",
            "deb [trusted=yes] http://v.example/debian bookworm main",
            "deb http://v.example/debian bookworm-vendor main",
            "deb [signed-by=/home/x/debian-archive-keyring.gpg;x] http://v.example/apt bookworm-vendor main",
            "deb cdrom:[Debian]/ bookworm main",
            "deb file:/srv/debian bookworm main",
        ] {
            let got = lines(&[("sources.list", debian), ("sources.list.d/vendor.list", vendor)]);
            assert_eq!(got, [debian.trim()], "{vendor}");
        }
        for vendor in [
            "Types: deb\nURIs: http://v.example/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP\n .\n",
            "Types: deb\nURIs: http://v.example/debian\nSuites: bookworm\nComponents: main\nTrusted: yes\n",
            "Types: deb\nEnabled: no\nURIs: http://v.example/debian\nSuites: bookworm\nComponents: main\n",
        ] {
            let got = lines(&[("sources.list", debian), ("sources.list.d/vendor.sources", vendor)]);
            assert_eq!(got, [debian.trim()], "{vendor}");
        }
    }

    #[test]
    fn another_release_or_no_files_give_nothing() {
        assert!(lines(&[("sources.list", "deb http://m.example/debian trixie main")]).is_empty());
        assert!(lines(&[("sources.list", "deb http://m.example/debian bookworm-updates main")]).is_empty());
        assert!(host_sources(Path::new("/nonexistent"), "bookworm").is_empty());
    }

    #[test]
    fn mirror_lists_are_followed() {
        let dir = host(&[("mirrors.list", "# first\nhttp://m.example/debian\tpriority:1\n")]);
        let list = dir.path().join("mirrors.list");
        let text = format!(
            "Types: deb\nURIs: mirror+file://{}\nSuites: bookworm\nComponents: main\nSigned-By: {KEY}\n",
            list.display()
        );
        fs::write(dir.path().join("sources.list.d/debian.sources"), text).unwrap();
        let got = host_sources(dir.path(), "bookworm");
        assert_eq!(got.first().unwrap().uri, "http://m.example/debian");
    }

    #[test]
    fn credentials_stay_on_the_host() {
        let source = Source {
            suite: "bookworm".to_owned(),
            uri: "https://user:secret@m.example:8080/debian".to_owned(),
            signed_by: None,
        };
        assert!(source.line().contains("secret"));
        assert_eq!(source.public_line(), "deb https://m.example:8080/debian bookworm main");
        assert_eq!(without_credentials("http://m.example/a@b"), "http://m.example/a@b");
    }
}
