//! The 44-byte header in front of every vsock packet (virtio 1.2, section 5.10.6).
//!
//! A header is copied out of guest memory once, decoded here into plain integers, and never read
//! from the guest again: what was checked is what is used.

/// Bytes of a packet header on the wire.
pub const HEADER_LEN: usize = 44;

/// The host's context id (virtio 1.2, section 5.10.4).
pub const HOST_CID: u64 = 2;

/// Stream sockets, the only type this device offers.
pub const TYPE_STREAM: u16 = 1;

/// In a SHUTDOWN packet: the sender will receive no more data.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// In a SHUTDOWN packet: the sender will send no more data.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both directions of a SHUTDOWN packet.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Open a connection.
    Request,
    /// Accept a connection.
    Response,
    /// Refuse or end a connection at once.
    Reset,
    /// End one or both directions of a connection.
    Shutdown,
    /// Carry data.
    Data,
    /// Tell the peer how much may be sent.
    CreditUpdate,
    /// Ask the peer for a credit update.
    CreditRequest,
}

impl Op {
    /// Returns the operation of a wire number, or `None` for one the standard does not name.
    pub fn from_wire(op: u16) -> Option<Op> {
        Some(match op {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Reset,
            4 => Op::Shutdown,
            5 => Op::Data,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            _ => return None,
        })
    }

    /// Returns the wire number.
    pub fn to_wire(self) -> u16 {
        match self {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Data => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
        }
    }
}

/// A decoded header. `op` and `kind` stay numbers because a guest may send any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Payload bytes that follow the header.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// Operation number, see [`Op`].
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Receive buffer of the sender, in bytes.
    pub buf_alloc: u32,
    /// Bytes the sender has taken out of its receive buffer since the start, wrapping.
    pub fwd_cnt: u32,
}

impl Header {
    /// Decodes a header. Every bit pattern is a header; meaning is checked by the muxer.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Header {
        let mut rest = &bytes[..];
        Header {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Encodes the header for the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0u8; HEADER_LEN];
        out[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        out[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        out[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        out[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        out[24..28].copy_from_slice(&self.len.to_le_bytes());
        out[28..30].copy_from_slice(&self.kind.to_le_bytes());
        out[30..32].copy_from_slice(&self.op.to_le_bytes());
        out[32..36].copy_from_slice(&self.flags.to_le_bytes());
        out[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        out[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        out
    }
}

/// Takes the next `N` bytes. The field sizes above add up to [`HEADER_LEN`]; a short slice would give zeroes.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_survive_a_round_trip(bytes in prop::array::uniform32(any::<u8>()), tail in prop::array::uniform12(any::<u8>())) {
            let mut wire = [0u8; HEADER_LEN];
            wire[..32].copy_from_slice(&bytes);
            wire[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::decode(&wire).encode(), wire);
        }
    }

    #[test]
    fn fields_are_where_the_standard_puts_them() {
        let header = Header {
            src_cid: 2,
            dst_cid: 3,
            src_port: 0x0403_0201,
            dst_port: 1024,
            len: 7,
            kind: TYPE_STREAM,
            op: 5,
            flags: 3,
            buf_alloc: 0x1_0000,
            fwd_cnt: 9,
        };
        let wire = header.encode();
        assert_eq!(&wire[16..20], &[1, 2, 3, 4]);
        assert_eq!(wire[24], 7);
        assert_eq!(wire[30], 5);
        assert_eq!(&wire[36..44], &[0, 0, 1, 0, 9, 0, 0, 0]);
    }

    #[test]
    fn operations_keep_their_numbers() {
        for number in 0..=u16::MAX {
            if let Some(op) = Op::from_wire(number) {
                assert_eq!(op.to_wire(), number);
            } else {
                assert!(!(1..=7).contains(&number));
            }
        }
    }
}
