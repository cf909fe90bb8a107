//! Flow control arithmetic: who may still send how many bytes (virtio 1.2, section 5.10.6.3).
//!
//! Both sides count bytes in wrapping 32-bit counters. [`SendCredit`] is our view of the guest's
//! receive buffer, [`ReceiveCredit`] the guest's view of ours.

/// How much we may send to the guest on one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendCredit {
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
}

/// The guest claimed to have taken out more bytes than it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditViolation;

impl SendCredit {
    /// Returns the bytes that may be sent now.
    pub fn available(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.in_flight())
    }

    /// Returns the size of the guest's buffer.
    pub fn peer_alloc(&self) -> u32 {
        self.peer_alloc
    }

    /// Counts `len` bytes as sent. The caller has kept to [`Self::available`].
    pub fn sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// Takes the two credit fields of a packet from the guest.
    ///
    /// A `forwarded` older than the last one seen is ignored: Linux fills the field before it
    /// queues the packet, so two of its threads may queue in the other order.
    pub fn update(&mut self, alloc: u32, forwarded: u32) -> Result<(), CreditViolation> {
        let advance = forwarded.wrapping_sub(self.peer_forwarded);
        if advance <= self.in_flight() {
            self.peer_forwarded = forwarded;
        } else if advance < 1 << 31 {
            return Err(CreditViolation);
        }
        self.peer_alloc = alloc;
        Ok(())
    }

    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.peer_forwarded)
    }
}

/// How much the guest may send to us on one connection.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveCredit {
    alloc: u32,
    received: u32,
    forwarded: u32,
    told: u32,
}

impl ReceiveCredit {
    /// Starts with a receive buffer of `alloc` bytes.
    pub fn new(alloc: u32) -> ReceiveCredit {
        ReceiveCredit { alloc, received: 0, forwarded: 0, told: 0 }
    }

    /// Counts `len` bytes from the guest, or refuses them because they overrun the buffer.
    pub fn receive(&mut self, len: u32) -> Result<(), CreditViolation> {
        let held = self.received.wrapping_sub(self.forwarded);
        if len > self.alloc.saturating_sub(held) {
            return Err(CreditViolation);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// Counts `len` received bytes as handed on to the host.
    pub fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Returns the `buf_alloc` and `fwd_cnt` of a packet about to be sent, and remembers that the guest will know.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.alloc, self.forwarded)
    }

    /// Returns whether the guest, whose own buffer is `peer_alloc`, should be told by a packet of its own.
    ///
    /// True once the guest believes that half of the window is gone although some of it is free
    /// again: early enough that a sender never stops, late enough that a packet is worth its cost.
    /// The window is the smaller of the two buffers, because Linux never sends more than it would
    /// itself receive, whatever it is offered.
    pub fn update_due(&self, peer_alloc: u32) -> bool {
        let believed_held = self.received.wrapping_sub(self.told);
        self.forwarded != self.told && believed_held >= self.alloc.min(peer_alloc) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_guest_that_shrinks_its_buffer_stops_us() {
        let mut credit = SendCredit::default();
        credit.update(1000, 0).unwrap();
        credit.sent(800);
        credit.update(100, 0).unwrap();
        assert_eq!(credit.available(), 0);
        credit.update(100, 750).unwrap();
        assert_eq!(credit.available(), 50);
    }

    #[test]
    fn claims_of_bytes_never_sent_are_refused_and_late_packets_are_not() {
        let mut credit = SendCredit::default();
        credit.update(1000, 0).unwrap();
        credit.sent(10);
        assert_eq!(credit.update(1000, 11), Err(CreditViolation));
        credit.update(1000, 10).unwrap();
        credit.update(1000, 3).unwrap();
        assert_eq!(credit.available(), 1000);
    }

    #[test]
    fn an_overrun_is_refused() {
        let mut credit = ReceiveCredit::new(100);
        credit.receive(100).unwrap();
        assert_eq!(credit.receive(1), Err(CreditViolation));
        credit.forward(1);
        credit.receive(1).unwrap();
        assert_eq!(credit.receive(1), Err(CreditViolation));
    }

    proptest! {
        /// Two honest ends, counters anywhere on the 32-bit circle: never more in flight than the
        /// buffer holds, and no stall. The sender also keeps to the size of its own buffer.
        #[test]
        fn honest_ends_agree(start in any::<u32>(), alloc in 1u32..1 << 20, peer_alloc in 1u32..1 << 20, steps in prop::collection::vec((any::<bool>(), 1u32..1 << 16), 1..200)) {
            let window = alloc.min(peer_alloc);
            let mut sender = SendCredit { sent: start, peer_alloc: window, peer_forwarded: start };
            let mut receiver = ReceiveCredit { alloc, received: start, forwarded: start, told: start };
            let mut held = 0u64;
            for (send, amount) in steps {
                if send {
                    let len = amount.min(sender.available());
                    sender.sent(len);
                    prop_assert!(receiver.receive(len).is_ok());
                    held += u64::from(len);
                } else {
                    let len = u64::from(amount).min(held) as u32;
                    receiver.forward(len);
                    held -= u64::from(len);
                    if receiver.update_due(peer_alloc) {
                        let (_, forwarded) = receiver.tell();
                        prop_assert!(sender.update(window, forwarded).is_ok());
                        prop_assert!(!receiver.update_due(peer_alloc));
                    }
                }
                prop_assert!(held <= u64::from(alloc));
            }
            // A receiver that is empty leaves its sender room: a stream cannot stall for ever.
            receiver.forward(held as u32);
            if receiver.update_due(peer_alloc) {
                let (_, forwarded) = receiver.tell();
                sender.update(window, forwarded).unwrap();
            }
            prop_assert!(sender.available() > 0);
        }

        /// Whatever a guest claims, what we believe to be in flight never exceeds what we sent.
        #[test]
        fn hostile_updates_never_widen_the_window(claims in prop::collection::vec((any::<u32>(), any::<u32>(), 0u32..5000), 1..100)) {
            let mut credit = SendCredit::default();
            let mut sent = 0u64;
            for (alloc, forwarded, want) in claims {
                let _ = credit.update(alloc, forwarded);
                let len = want.min(credit.available());
                credit.sent(len);
                sent += u64::from(len);
                prop_assert!(u64::from(credit.in_flight()) <= sent);
            }
        }
    }
}
