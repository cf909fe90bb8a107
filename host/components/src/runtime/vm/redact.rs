//! What must not be seen of a workspace: its secrets, taken out of everything that comes from it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use pyro_engine::EngineError;
use pyro_engine::secrets::{RedactedStream, Redactor};
use zeroize::Zeroizing;

use super::super::bindings::pyro::vm::types;
use super::super::state::CallState;

/// The redactors of the workspaces that one instance has touched.
#[derive(Debug, Default)]
pub(crate) struct Redactors(HashMap<String, Arc<Redaction>>);

/// The redactor of one workspace.
#[derive(Debug)]
pub(super) struct Redaction(Redactor, Key);

/// Tells one set of values from another, without them.
type Key = u64;

fn key_of(values: &[Zeroizing<Vec<u8>>]) -> Key {
    let mut hasher = DefaultHasher::new();
    values.iter().for_each(|value| value.as_slice().hash(&mut hasher));
    hasher.finish()
}

impl Redaction {
    /// Hides `values`.
    pub(super) fn of<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> Redaction {
        Redaction(Redactor::new(values), 0)
    }

    /// Starts a stream: a secret is found wherever the stream is cut.
    pub(super) fn stream(&self) -> RedactedStream<'_> {
        self.0.stream()
    }

    /// The redactor itself, for output that is read from any place on.
    pub(super) fn redactor(&self) -> &Redactor {
        &self.0
    }

    pub(super) fn text(&self, text: &str) -> String {
        self.0.text(text)
    }

    pub(super) fn bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        if self.0.is_empty() { bytes } else { self.0.bytes(&bytes) }
    }

    /// Takes off what may be left of a secret, at the beginning of an output whose older part was dropped: nobody could
    /// tell the end of one.
    pub(super) fn behead(&self, bytes: &mut Vec<u8>) {
        bytes.drain(..self.0.longest().saturating_sub(1).min(bytes.len()));
    }

    pub(super) fn pairs(&self, pairs: Vec<(String, String)>) -> Vec<(String, String)> {
        pairs.into_iter().map(|(key, value)| (key, self.text(&value))).collect()
    }

    /// An engine's error as a component sees it.
    pub(super) fn error(&self, failed: &EngineError) -> types::Error {
        let mut error = super::error(failed);
        error.message = self.text(&error.message);
        error.hint = error.hint.map(|hint| self.text(&hint));
        error.meta = self.pairs(error.meta);
        error
    }
}

impl CallState {
    /// Returns the redaction of a workspace, read once per instance; that of no workspace hides nothing.
    pub(super) async fn redaction(&mut self, workspace: Option<&str>) -> Result<Arc<Redaction>, types::Error> {
        let Some(id) = workspace else { return Ok(Arc::new(Redaction::of([]))) };
        if let Some(known) = self.redactors.0.get(id) {
            return Ok(Arc::clone(known));
        }
        let values = self.hidden_values(id).await?;
        Ok(self.hide(id, &values))
    }

    /// Reads a workspace's secrets again, after something ran that may have seen ones that are new. Returns the
    /// redaction when it is another than `used`.
    pub(super) async fn newer_redaction(
        &mut self,
        workspace: Option<&str>,
        used: &Redaction,
    ) -> Option<Arc<Redaction>> {
        let id = workspace?;
        // A workspace that is gone meanwhile has none that are newer.
        let values = self.hidden_values(id).await.ok()?;
        (key_of(&values) != used.1).then(|| self.hide(id, &values))
    }

    fn hide(&mut self, id: &str, values: &[Zeroizing<Vec<u8>>]) -> Arc<Redaction> {
        let redactor = Redactor::new(values.iter().map(|value| value.as_slice()));
        let redaction = Arc::new(Redaction(redactor, key_of(values)));
        self.redactors.0.insert(id.to_owned(), Arc::clone(&redaction));
        redaction
    }

    /// Forgets the redaction of a workspace whose secrets change.
    pub(super) fn secrets_changed(&mut self, workspace: &str) {
        self.redactors.0.remove(workspace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_left_of_a_secret_is_taken_off() {
        let beheaded = |redaction: &Redaction, text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            redaction.behead(&mut bytes);
            String::from_utf8(bytes).unwrap()
        };
        let redaction = Redaction::of([b"correct horse".as_slice()]);
        let rest = beheaded(&redaction, "orrect horse and then a lot of other output of this service");
        assert!(!rest.contains("horse") && rest.ends_with("this service"), "{rest}");
        assert_eq!(beheaded(&redaction, "horse"), "");
        assert_eq!(beheaded(&Redaction::of([]), "horse"), "horse");
    }
}
