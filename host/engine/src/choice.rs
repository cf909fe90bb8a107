//! Which engine machines run on, and why.

use serde::Serialize;

use crate::{
    error::{EngineError, ErrorCode},
    spec::{EngineChoice, ExecutionMode},
};

/// An engine and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnginePick {
    /// What machines run on.
    pub execution_mode: ExecutionMode,
    /// The fact that decided, for a person.
    pub reason: String,
}

/// Returns the engine that a choice leads to on this host.
///
/// # Errors
/// `engine_unavailable` with the fact, when the choice cannot be had.
pub fn pick_engine(choice: EngineChoice) -> Result<EnginePick, EngineError> {
    match choice {
        EngineChoice::Qemu => {
            Ok(EnginePick { execution_mode: ExecutionMode::MicrovmQemuTcg, reason: "asked for".to_owned() })
        }
        EngineChoice::Auto => Ok(EnginePick {
            execution_mode: ExecutionMode::MicrovmQemuTcg,
            reason: format!("KVM is not used: {}", kvm_obstacle()),
        }),
        EngineChoice::Kvm => {
            Err(EngineError::new(ErrorCode::EngineUnavailable, format!("KVM cannot be used: {}", kvm_obstacle()))
                .with_hint("use `--engine auto` or `--engine qemu`"))
        }
    }
}

/// Returns why KVM cannot be used.
pub(crate) fn kvm_obstacle() -> String {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "this host has no /dev/kvm".to_owned(),
        Err(e) => format!("/dev/kvm cannot be opened: {e}"),
        // That the file opens proves nothing about the guests it can run.
        Ok(_) => "this build has no KVM engine".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_leads_to_an_engine_or_to_the_fact() {
        assert_eq!(pick_engine(EngineChoice::Qemu).unwrap().execution_mode, ExecutionMode::MicrovmQemuTcg);
        let auto = pick_engine(EngineChoice::Auto).unwrap();
        assert!(auto.reason.contains("KVM"), "{}", auto.reason);
        let kvm = pick_engine(EngineChoice::Kvm).unwrap_err();
        assert_eq!(kvm.code(), ErrorCode::EngineUnavailable);
        assert!(kvm.hint().is_some());
    }
}
