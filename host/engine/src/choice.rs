//! Which engine machines run on, and why.

use std::path::PathBuf;

use pyro_vmm::selftest::{self, Verdict};
use serde::Serialize;

use crate::{
    error::{EngineError, ErrorCode},
    paths::Paths,
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
        EngineChoice::Auto => Ok(follow(&kvm_verdict())),
        // Whatever the self-test says: who asks for it may know better. A KVM that is not there is another matter.
        EngineChoice::Kvm => match pyro_vmm::kvm::open() {
            Ok(_) => Ok(EnginePick { execution_mode: ExecutionMode::MicrovmKvm, reason: "asked for".to_owned() }),
            Err(error) => Err(EngineError::new(ErrorCode::EngineUnavailable, format!("KVM cannot be used: {error}"))
                .with_hint("use `--engine auto` or `--engine qemu`")),
        },
    }
}

/// Returns what the self-test says about this host's KVM: what is kept for this boot, kernel and CPU, or the result of
/// a run, which takes milliseconds.
///
/// It is read anew each time, because a machine that dies of a fault of KVM changes it.
pub fn kvm_verdict() -> Verdict {
    match verdict_dir() {
        Some(dir) => selftest::run_cached(&dir),
        None => selftest::run(),
    }
}

/// Returns the directory in which the verdict is kept. It is about the host, so it is the same for every home that a
/// process opens.
pub(crate) fn verdict_dir() -> Option<PathBuf> {
    Paths::from_env().ok().map(|paths| paths.cache)
}

fn follow(verdict: &Verdict) -> EnginePick {
    if verdict.usable {
        return EnginePick {
            execution_mode: ExecutionMode::MicrovmKvm,
            reason: format!("KVM works: {}", verdict.reason),
        };
    }
    EnginePick { execution_mode: ExecutionMode::MicrovmQemuTcg, reason: format!("KVM is not used: {}", verdict.reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_leads_to_an_engine_or_to_the_fact() {
        assert_eq!(pick_engine(EngineChoice::Qemu).unwrap().execution_mode, ExecutionMode::MicrovmQemuTcg);
        match pick_engine(EngineChoice::Kvm) {
            Ok(pick) => assert_eq!(pick.execution_mode, ExecutionMode::MicrovmKvm),
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::EngineUnavailable);
                assert!(error.hint().is_some());
            }
        }
    }

    #[test]
    fn auto_follows_the_verdict_and_says_why() {
        let verdict = |usable| Verdict { usable, reason: "int3 failed".to_owned(), elapsed_us: 1 };
        assert_eq!(follow(&verdict(true)).execution_mode, ExecutionMode::MicrovmKvm);
        let pick = follow(&verdict(false));
        assert_eq!(pick.execution_mode, ExecutionMode::MicrovmQemuTcg);
        assert_eq!(pick.reason, "KVM is not used: int3 failed");
    }
}
