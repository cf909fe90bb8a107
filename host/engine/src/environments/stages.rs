//! How far a build is: read from what mmdebstrap, apt and dpkg print, which is for people and has no other form.
//!
//! Nothing depends on these lines but progress. A line that is not understood changes nothing, and time that passes in
//! silence is reported as well.

use std::time::{Duration, Instant};

use super::bootstrap::Report;

/// Silence is broken after this long.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(2);

/// How far mmdebstrap is, read from what it, apt and dpkg print.
#[derive(Debug)]
pub(crate) struct Stages {
    /// Where the current stage begins and ends, as fractions of the whole.
    from: f64,
    to: f64,
    message: String,
    /// Packages of the current stage; each is unpacked and set up.
    packages: f64,
    steps: f64,
    /// What apt said the packages take, over both of its runs.
    installed_bytes: f64,
    /// Bytes of the tar that are in the image.
    pub(crate) image_bytes: u64,
    imaging: bool,
    done: f64,
    began: Instant,
    reported: Option<Instant>,
}

impl Default for Stages {
    fn default() -> Self {
        Self {
            from: 0.0,
            to: 0.02,
            message: "starting mmdebstrap".to_owned(),
            packages: 0.0,
            steps: 0.0,
            installed_bytes: 0.0,
            image_bytes: 0,
            imaging: false,
            done: 0.0,
            began: Instant::now(),
            reported: None,
        }
    }
}

/// mmdebstrap's own lines that begin a stage, the share of the time that is over when it ends, and the words for it.
/// Shares were measured with `debian:12`.
const STAGES: [(&str, f64, &str); 8] = [
    ("I: running apt-get update", 0.10, "fetching package lists"),
    ("I: downloading packages with apt", 0.18, "downloading essential packages"),
    ("I: extracting archives", 0.24, "extracting essential packages"),
    ("I: installing essential packages", 0.50, "installing essential packages"),
    ("I: installing remaining packages", 0.88, "installing packages"),
    ("I: cleaning package lists", 0.90, "cleaning up"),
    ("I: creating tarball", 0.99, "writing the disk image"),
    ("I: removing tempdir", 1.0, "removing temporary files"),
];

impl Stages {
    /// Takes one line of output.
    pub(crate) fn line(&mut self, line: &str, report: Report<'_>) {
        if let Some((_, to, words)) = STAGES.iter().find(|(start, ..)| line.starts_with(start)) {
            self.from = self.to.max(self.done);
            self.to = to.max(self.from);
            self.message = (*words).to_owned();
            self.steps = 0.0;
            self.imaging = line.starts_with("I: creating tarball");
            self.report(report);
        } else if let Some(count) = newly_installed(line) {
            self.packages = count;
            self.steps = 0.0;
        } else if let Some(bytes) = disk_space(line) {
            self.installed_bytes += bytes;
        } else if let Some(rest) = line.strip_prefix("Get:") {
            if let Some(package) = rest.split_whitespace().nth(4) {
                self.advance(0.3, format!("downloading {package}"), report);
            }
        } else if let Some(rest) = line.strip_prefix("Unpacking ") {
            self.advance(0.5, format!("unpacking {}", first_word(rest)), report);
        } else if let Some(rest) = line.strip_prefix("Setting up ") {
            self.advance(0.5, format!("setting up {}", first_word(rest)), report);
        }
    }

    fn advance(&mut self, step: f64, message: String, report: Report<'_>) {
        self.steps += step;
        self.message = message;
        // Hundreds of packages a second would be noise.
        if self.reported.is_none_or(|at| at.elapsed() >= Duration::from_millis(200)) {
            self.report(report);
        }
    }

    /// Says that time passed.
    pub(crate) fn tick(&mut self, report: Report<'_>) {
        if self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            self.report(report);
        }
    }

    fn report(&mut self, report: Report<'_>) {
        let within = if self.imaging {
            let bytes = self.image_bytes as f64;
            if self.installed_bytes > 0.0 { bytes / self.installed_bytes } else { 0.0 }
        } else if self.packages > 0.0 {
            self.steps / self.packages
        } else {
            0.0
        };
        self.done = self.done.max(self.from + (self.to - self.from) * within.clamp(0.0, 1.0)).min(1.0);
        self.reported = Some(Instant::now());
        report(&format!("{} ({} s)", self.message, self.began.elapsed().as_secs()), self.done);
    }
}

fn first_word(text: &str) -> &str {
    text.split([' ', ':']).next().unwrap_or(text)
}

/// `0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.`
fn newly_installed(line: &str) -> Option<f64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "newly")?;
    (words.get(at + 1)?.starts_with("installed")).then(|| words.get(at.checked_sub(1)?)?.parse().ok())?
}

/// `After this operation, 139 MB of additional disk space will be used.`
fn disk_space(line: &str) -> Option<f64> {
    let mut words = line.strip_prefix("After this operation, ")?.split_whitespace();
    let number: f64 = words.next()?.replace(',', "").parse().ok()?;
    let unit = match words.next()? {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    Some(number * unit)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn progress_rises_to_the_end_and_says_what_happens() {
        let seen = Mutex::new(Vec::new());
        let report = |message: &str, done: f64| seen.lock().unwrap().push((message.to_owned(), done));
        let mut stages = Stages::default();
        for line in [
            "I: running apt-get update...",
            "Get:1 http://m.example bookworm InRelease [151 kB]",
            "I: downloading packages with apt...",
            "0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.",
            "After this operation, 139 MB of additional disk space will be used.",
            "Get:1 http://m.example bookworm/main amd64 libc6 amd64 2.36 [2759 kB]",
            "I: extracting archives...",
            "I: installing essential packages...",
            "Unpacking libc6:amd64 (2.36-9) ...",
            "Setting up libc6:amd64 (2.36-9) ...",
            "I: installing remaining packages inside the chroot...",
            "0 upgraded, 52 newly installed, 0 to remove and 0 not upgraded.",
            "I: cleaning package lists and apt cache...",
            "I: creating tarball...",
        ] {
            stages.line(line, &report);
            stages.reported = None;
        }
        assert_eq!(stages.packages, 52.0);
        stages.image_bytes = 70_000_000;
        stages.tick(&report);
        stages.line("I: removing tempdir /x...", &report);
        let seen = seen.into_inner().unwrap();
        assert!(seen.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{seen:?}");
        assert!(seen.iter().any(|(message, _)| message.starts_with("unpacking libc6 ")), "{seen:?}");
        assert!(seen.iter().any(|(message, _)| message.starts_with("downloading libc6 ")), "{seen:?}");
        assert!(seen.last().unwrap().1 > 0.98);
    }

    #[test]
    fn a_silent_program_is_reported_every_few_seconds() {
        let count = Mutex::new(0);
        let report = |_: &str, _: f64| *count.lock().unwrap() += 1;
        let mut stages = Stages::default();
        stages.tick(&report);
        stages.tick(&report);
        assert_eq!(*count.lock().unwrap(), 1);
        stages.reported = Instant::now().checked_sub(REPORT_EVERY);
        stages.tick(&report);
        assert_eq!(*count.lock().unwrap(), 2);
    }

    #[test]
    fn figures_of_apt() {
        assert_eq!(newly_installed("1 upgraded, 12 newly installed, 0 to remove"), Some(12.0));
        assert_eq!(newly_installed("newly installed"), None);
        assert_eq!(
            disk_space("After this operation, 1,024 kB of additional disk space will be used."),
            Some(1_024_000.0)
        );
        assert_eq!(disk_space("After this operation, x"), None);
    }
}
