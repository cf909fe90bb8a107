//! Keeping secret values out of what pyro shows and keeps.

mod redact;

pub use redact::{REDACTED, RedactedStream, Redactor};
