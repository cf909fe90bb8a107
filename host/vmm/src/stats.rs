//! Counters of one running VM. Plain atomics: reading them disturbs nobody.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// A counter that threads add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Returns the value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Exits from guest to VMM, over all vCPUs.
#[derive(Debug, Default)]
pub struct ExitCounters {
    /// Port reads.
    pub io_in: Counter,
    /// Port writes.
    pub io_out: Counter,
    /// Reads of device windows.
    pub mmio_read: Counter,
    /// Writes to device windows.
    pub mmio_write: Counter,
    /// Interruptions by a signal: pause, stop.
    pub kicks: Counter,
    /// Everything else.
    pub other: Counter,
    /// Accesses that no device answers.
    pub unclaimed: Counter,
}

/// Work of one disk.
#[derive(Debug, Default)]
pub struct DriveCounters {
    /// Completed reads.
    pub reads: Counter,
    /// Completed writes.
    pub writes: Counter,
    /// Completed flushes.
    pub flushes: Counter,
    /// Bytes read.
    pub bytes_read: Counter,
    /// Bytes written.
    pub bytes_written: Counter,
    /// Requests answered with an error.
    pub errors: Counter,
    /// Sum of the times from taking a request to answering it, in microseconds.
    pub busy_us: Counter,
    /// Requests handed to a worker because they might block.
    pub deferred: Counter,
}

/// A snapshot of a VM's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmStats {
    /// Milliseconds since the first vCPU ran.
    pub uptime_ms: u64,
    /// Port reads.
    pub io_in_exits: u64,
    /// Port writes.
    pub io_out_exits: u64,
    /// Reads of device windows.
    pub mmio_read_exits: u64,
    /// Writes to device windows.
    pub mmio_write_exits: u64,
    /// Interruptions by a signal.
    pub kick_exits: u64,
    /// Other exits.
    pub other_exits: u64,
    /// Accesses that no device answers.
    pub unclaimed_accesses: u64,
    /// Bytes the guest wrote to its console.
    pub console_bytes: u64,
    /// Bytes of entropy the guest took.
    pub entropy_bytes: u64,
    /// Resident memory of the VMM process in KiB, guest RAM included.
    pub rss_kib: u64,
    /// Each disk, in order.
    pub drives: Vec<DriveStats>,
}

/// A snapshot of a disk's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of DriveCounters")]
pub struct DriveStats {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub errors: u64,
    pub busy_us: u64,
    pub deferred: u64,
}

impl DriveCounters {
    /// Returns the values.
    pub fn snapshot(&self) -> DriveStats {
        DriveStats {
            reads: self.reads.get(),
            writes: self.writes.get(),
            flushes: self.flushes.get(),
            bytes_read: self.bytes_read.get(),
            bytes_written: self.bytes_written.get(),
            errors: self.errors.get(),
            busy_us: self.busy_us.get(),
            deferred: self.deferred.get(),
        }
    }
}
