//! Counters of the device, readable from any thread while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Declares the counters once: the live ones and the plain copy that readers get.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Live counters. Only the thread that runs the device writes them.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Counter),* }

        /// A copy of the device's counters since it was made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        #[non_exhaustive]
        pub struct VsockStats { $($(#[$doc])* pub $name: u64),* }

        impl Counters {
            pub(crate) fn snapshot(&self) -> VsockStats {
                VsockStats { $($name: self.$name.get()),* }
            }
        }
    };
}

counters! {
    /// Packets taken from the guest.
    tx_packets,
    /// Payload bytes taken from the guest.
    tx_bytes,
    /// Packets given to the guest.
    rx_packets,
    /// Payload bytes given to the guest.
    rx_bytes,
    /// Connections opened, by either side.
    connections_opened,
    /// Connections that have ended, of those opened.
    connections_closed,
    /// Host connects that failed: refused, timed out, reset or over the limit.
    connects_failed,
    /// Guest connects that were refused.
    guest_connects_refused,
    /// Connections ended because the guest broke the protocol.
    protocol_errors,
    /// Resets sent to the guest.
    resets_sent,
    /// Packets dropped: bad descriptor chain, wrong context id.
    dropped_packets,
    /// Receive buffers given back empty because nothing fits into them.
    bad_rx_buffers,
    /// Resets dropped because the guest takes none.
    dropped_resets,
    /// Times the device had data for the guest but no receive buffer.
    rx_starved,
    /// Times a connection had data for the guest but no credit.
    credit_starved,
    /// Calls that handled at least one host event.
    host_wakeups,
    /// Guest notifications asked for.
    notifications,
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        // One writer, so a load and a store need no locked instruction.
        self.0.store(self.get().wrapping_add(amount), Ordering::Relaxed);
    }

    pub(crate) fn bump(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
