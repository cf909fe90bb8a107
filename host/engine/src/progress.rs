//! Telling the caller how far a long operation is, and asking it whether to go on.

/// Receives the progress of a long operation, from any thread.
pub trait Progress: Send + Sync {
    /// `done` of `total` (when known), with what is happening. The unit is the operation's own; `done` never falls.
    fn report(&self, message: &str, done: f64, total: Option<f64>);

    /// Returns whether the caller gave up. A long operation asks several times a second, and then undoes what it
    /// began and fails with `cancelled`.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Ignores progress and never cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _message: &str, _done: f64, _total: Option<f64>) {}
}
