//! Kernel files of any content: `--kernel` takes what a user was given by somebody else.
//!
//! The loader may refuse a file or take it. It must not panic, must not write outside the guest's memory, and what it took
//! must leave a machine that the rest of the set-up can go on with.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;

use libfuzzer_sys::fuzz_target;
use pyro_vmm::boot;
use pyro_vmm::kernel;
use pyro_vmm::memory;

const MEMORY: u64 = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let mut file = file_of(data);
    let ram = memory::allocate(MEMORY).unwrap();
    let Ok(kernel) = kernel::load(&ram, &mut file) else { return };
    // The initramfs goes behind the kernel, or there is no room for it.
    let initramfs = boot::load_initramfs(&ram, &kernel, &file_of(b"0707")).ok();
    boot::write_boot_data(&ram, &kernel, "quiet", initramfs, MEMORY).unwrap();
    assert_eq!(boot::entry_regs(&kernel).rip, kernel.entry);
});

fn file_of(bytes: &[u8]) -> File {
    // SAFETY: the name is a C string, and the descriptor is new and owned by nobody else.
    let mut file = unsafe {
        let fd = libc::memfd_create(c"kernel".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    file.write_all(bytes).unwrap();
    file
}
