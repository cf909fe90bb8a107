//! Places where a test makes this process die, as if it had been killed there.

/// Kills this process when `PYRO_FAILPOINT` names this place. Only in builds with debug assertions.
pub(super) fn point(name: &str) {
    #[cfg(debug_assertions)]
    if std::env::var_os("PYRO_FAILPOINT").is_some_and(|wanted| wanted == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal ends the process before this returns, unless somebody else is being scheduled.
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
    let _ = name;
}
