//! What interceptors attach to the call being served: secrets for the workspace it makes, and variables for the
//! processes it starts. It is gone with the call.

use std::sync::{Mutex, PoisonError};

use pyro_engine::workspaces::SecretKind;
use pyro_engine::{EngineError, ErrorCode};
use zeroize::Zeroizing;

/// Attachments and bindings of one call.
const MAX_ENTRIES: usize = 64;

/// The attachments of one call, shared by its instances.
#[derive(Debug, Default)]
pub(crate) struct Attachments(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    secrets: Vec<AttachedSecret>,
    variables: Vec<BoundVariable>,
    /// Values that stood in the call's arguments, by what stands there instead.
    hidden: Vec<(String, Zeroizing<Vec<u8>>)>,
}

/// A secret for the workspace that the call makes.
#[derive(Clone)]
pub(crate) struct AttachedSecret {
    pub(crate) name: String,
    pub(crate) kind: SecretKind,
    pub(crate) value: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for AttachedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "secret {} [redacted]", self.name)
    }
}

/// A secret of a workspace as an environment variable.
#[derive(Clone, Debug)]
pub(crate) struct BoundVariable {
    pub(crate) workspace: String,
    pub(crate) secret: String,
    pub(crate) variable: String,
}

impl Attachments {
    /// Adds a secret for the workspace that the call makes.
    pub(crate) fn attach(&self, secret: AttachedSecret) -> Result<(), EngineError> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.secrets.iter().any(|known| known.name == secret.name) {
            return Err(invalid(format!("duplicate secret name: {}", secret.name)).with_hint("give each secret once"));
        }
        room(entries.secrets.len(), "secrets")?;
        entries.secrets.push(secret);
        Ok(())
    }

    /// Keeps a value; returns what stands for it, which nobody can guess.
    pub(crate) fn hide(&self, value: String) -> String {
        let handle = format!("secret-value:{}", uuid::Uuid::new_v4().simple());
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.hidden.push((handle.clone(), Zeroizing::new(value.into_bytes())));
        handle
    }

    /// Returns the value that `text` stands for; none when it stands for nothing but itself.
    pub(crate) fn hidden(&self, text: &str) -> Option<Zeroizing<Vec<u8>>> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.hidden.iter().find(|(handle, _)| handle == text).map(|(_, value)| value.clone())
    }

    /// Adds a variable for the processes that the call starts.
    pub(crate) fn bind(&self, bound: BoundVariable) -> Result<(), EngineError> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &&BoundVariable| known.workspace == bound.workspace && known.variable == bound.variable;
        if entries.variables.iter().find(same).is_some() {
            let message = format!("variable `{}` is bound to two secrets", bound.variable);
            return Err(invalid(message).with_hint("use another variable for one of them"));
        }
        room(entries.variables.len(), "variables")?;
        entries.variables.push(bound);
        Ok(())
    }

    /// Returns the secrets for a new workspace.
    pub(crate) fn secrets(&self) -> Vec<AttachedSecret> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).secrets.clone()
    }

    /// Returns the variables for a process in `workspace`.
    pub(crate) fn variables(&self, workspace: &str) -> Vec<BoundVariable> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.variables.iter().filter(|bound| bound.workspace == workspace).cloned().collect()
    }
}

fn invalid(message: String) -> EngineError {
    EngineError::new(ErrorCode::InvalidArgument, message)
}

fn room(used: usize, what: &str) -> Result<(), EngineError> {
    if used < MAX_ENTRIES {
        return Ok(());
    }
    let message = format!("a call takes at most {MAX_ENTRIES} {what}");
    Err(EngineError::new(ErrorCode::LimitExceeded, message).with_hint("attach fewer of them"))
}
