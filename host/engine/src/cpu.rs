//! What an operator changes of the guests' CPU on the KVM engine: `kvm.toml` in the configuration directory, which is
//! what Firecracker calls a CPU template.
//!
//! ```toml
//! extra_msrs = [0xc0000102]
//!
//! [[cpuid_masks]]
//! leaf = 7
//! ebx = 0xd0030000   # no AVX-512
//! ```
//!
//! Bits can only be taken away: what KVM does not offer cannot be had.

use std::{io::ErrorKind, path::Path};

use pyro_vmm::config::CpuConfig;

use crate::error::{EngineError, ErrorCode};

/// Name of the file.
const FILE: &str = "kvm.toml";

/// Returns what the file in `dir` says; nothing is changed without one.
///
/// # Errors
/// `invalid_argument` with the file and the place, `io` when it is there and cannot be read.
pub(crate) fn operators_changes(dir: &Path) -> Result<CpuConfig, EngineError> {
    let path = dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(CpuConfig::default()),
        Err(error) => return Err(EngineError::io(format_args!("read `{}`", path.display()), &error)),
    };
    toml::from_str(&text).map_err(|error| {
        EngineError::new(ErrorCode::InvalidArgument, format!("`{}`: {}", path.display(), error.to_string().trim()))
            .with_hint(
                "it has `extra_msrs` and `[[cpuid_masks]]` with `leaf`, `subleaf`, `eax`, `ebx`, `ecx` and `edx`",
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_registers_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(operators_changes(dir.path()).unwrap(), CpuConfig::default());
        std::fs::write(dir.path().join(FILE), "extra_msrs = [0x10a]\n[[cpuid_masks]]\nleaf = 7\nebx = 0xd0030000\n")
            .unwrap();
        let cpu = operators_changes(dir.path()).unwrap();
        assert_eq!(cpu.extra_msrs, [0x10a]);
        let [mask] = cpu.cpuid_masks.as_slice() else { panic!("{cpu:?}") };
        assert_eq!((mask.leaf, mask.subleaf, mask.ebx, mask.ecx), (7, None, 0xd003_0000, 0));
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "[[cpuid_masks]]\nleaf = 7\nebxx = 1\n").unwrap();
        let error = operators_changes(dir.path()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        let message = error.message();
        assert!(message.contains("kvm.toml") && message.contains("line 3") && message.contains("ebxx"), "{message}");
    }
}
