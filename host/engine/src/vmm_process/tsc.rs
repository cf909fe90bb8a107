//! The rate of the host's time stamp counter.
//!
//! The software engine gives the guest the host's counter. On a busy host the guest's own measurement of its rate can
//! fail, and the kernel then waits for ever; told the rate, it does not measure.

use std::{fs, time::Duration};

/// Rates that a time stamp counter can have, in kHz. Anything else is a misreading.
const PLAUSIBLE_KHZ: std::ops::RangeInclusive<u64> = 100_000..=10_000_000;

/// Returns the rate in kHz, or `None` when the host does not tell and has no steady counter.
pub(crate) fn host_khz() -> Option<u64> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    from_cpuinfo(&cpuinfo).or_else(measure)
}

/// The kernel counts its delay loop in time stamps, so BogoMIPS is twice the counter's rate in MHz. `cpu MHz` is not
/// used: it follows the clock of the core, which the counter does not.
fn from_cpuinfo(cpuinfo: &str) -> Option<u64> {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    if !field("flags")?.split_ascii_whitespace().any(|flag| flag == "constant_tsc") {
        return None;
    }
    let mhz: f64 = field("bogomips")?.parse().ok()?;
    let khz = mhz * 500.0;
    if !khz.is_finite() || khz < 0.0 {
        return None;
    }
    let khz = khz.round() as u64;
    PLAUSIBLE_KHZ.contains(&khz).then_some(khz)
}

/// Counts for a moment, beside the monotonic clock.
#[cfg(target_arch = "x86_64")]
fn measure() -> Option<u64> {
    // SAFETY: RDTSC only reads a counter, and every x86-64 processor has it.
    let read = || unsafe { core::arch::x86_64::_rdtsc() };
    let started = std::time::Instant::now();
    let from = read();
    std::thread::sleep(Duration::from_millis(20));
    let counted = read().checked_sub(from)?;
    let nanos = u64::try_from(started.elapsed().as_nanos()).ok()?;
    let khz = counted.checked_mul(1_000_000)?.checked_div(nanos)?;
    PLAUSIBLE_KHZ.contains(&khz).then_some(khz)
}

#[cfg(not(target_arch = "x86_64"))]
fn measure() -> Option<u64> {
    let _ = Duration::ZERO;
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bogomips_is_twice_the_rate() {
        let cpuinfo = "processor\t: 0\ncpu MHz\t\t: 800.000\nflags\t\t: fpu tsc constant_tsc\nbogomips\t: 5192.27\n";
        assert_eq!(from_cpuinfo(cpuinfo), Some(2_596_135));
    }

    #[test]
    fn nonsense_is_not_a_rate() {
        assert_eq!(from_cpuinfo(""), None);
        assert_eq!(from_cpuinfo("flags : fpu tsc\nbogomips : 5192.27\n"), None, "the counter is not steady");
        for bad in ["0", "nan", "inf", "-5192", "x", "1e300", "5"] {
            assert_eq!(from_cpuinfo(&format!("flags : constant_tsc\nbogomips : {bad}\n")), None, "{bad}");
        }
    }

    #[test]
    fn counting_agrees_with_the_kernel() {
        let (Some(counted), Ok(cpuinfo)) = (measure(), fs::read_to_string("/proc/cpuinfo")) else {
            return;
        };
        if let Some(told) = from_cpuinfo(&cpuinfo) {
            assert!(counted.abs_diff(told) < told / 50, "{counted} {told}");
        }
    }
}
