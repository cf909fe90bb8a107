//! Telling the caller how far a long operation is.

/// Receives progress.
pub trait Progress: Send + Sync {
    /// `done` of `total` (when known), with what is happening.
    fn report(&self, message: &str, done: f64, total: Option<f64>);
}

/// Ignores progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _message: &str, _done: f64, _total: Option<f64>) {}
}
