//! What is noted about a service.

use crate::readiness::Probe;

/// A service's notes, in the `meta` that the host keeps for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Notes {
    /// The shell line.
    pub command: String,
    /// Where it runs.
    pub cwd: String,
    /// How its readiness is found out.
    pub probe: Option<Probe>,
    /// Seconds it has for it, and milliseconds between two looks.
    pub ready_timeout_seconds: u32,
    /// Milliseconds between two looks.
    pub ready_interval_ms: u32,
    /// Unix seconds.
    pub ready_at: Option<f64>,
    /// Why it does not run any more, when a tool ended it or it never got ready.
    pub stop_reason: Option<String>,
}

impl Notes {
    /// Reads notes; what is missing or damaged is as if it had not been noted.
    pub fn read(meta: &[(String, String)]) -> Notes {
        let get = |key: &str| meta.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        let text = |key: &str| get(key).unwrap_or_default().to_owned();
        let number = |key: &str, other: u32| get(key).and_then(|value| value.parse().ok()).unwrap_or(other);
        let cwd = text("cwd");
        Notes {
            command: text("command"),
            probe: get("ready_type").zip(get("ready_target")).and_then(|(kind, target)| Probe::read(kind, target)),
            ready_timeout_seconds: number("ready_timeout_seconds", 30),
            ready_interval_ms: number("ready_interval_ms", 500),
            ready_at: get("ready_at").and_then(|value| value.parse().ok()),
            stop_reason: get("stop_reason").filter(|reason| !reason.is_empty()).map(str::to_owned),
            cwd,
        }
    }

    /// The notes of a service that is about to start.
    pub fn write(&self) -> Vec<(String, String)> {
        let mut meta = vec![
            ("command".to_owned(), self.command.clone()),
            ("cwd".to_owned(), self.cwd.clone()),
            ("ready_timeout_seconds".to_owned(), self.ready_timeout_seconds.to_string()),
            ("ready_interval_ms".to_owned(), self.ready_interval_ms.to_string()),
        ];
        if let Some(probe) = &self.probe {
            meta.push(("ready_type".to_owned(), probe.kind().to_owned()));
            meta.push(("ready_target".to_owned(), probe.target().to_owned()));
        }
        meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_go_round() {
        let notes = Notes {
            command: "serve".into(),
            cwd: "/workspace".into(),
            probe: Probe::new(None, Some("localhost:80"), None, None).unwrap(),
            ready_timeout_seconds: 7,
            ready_interval_ms: 9,
            ..Notes::default()
        };
        let mut meta = notes.write();
        assert_eq!(Notes::read(&meta), notes);
        meta.push(("ready_at".into(), "12.5".into()));
        meta.push(("stop_reason".into(), "sigterm".into()));
        let read = Notes::read(&meta);
        assert_eq!((read.ready_at, read.stop_reason.as_deref()), (Some(12.5), Some("sigterm")));
        assert_eq!(Notes::read(&[("ready_at".into(), "x".into())]).ready_at, None);
    }
}
