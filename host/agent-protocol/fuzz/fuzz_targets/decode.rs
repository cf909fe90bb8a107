//! Decodes arbitrary bytes as frames of both directions, in pieces whose size the input's first byte gives.
//! Every frame that decodes must encode again, and decode to the same frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyro_agent_protocol::{FrameDecoder, GuestFrame, HostFrame};

fuzz_target!(|data: &[u8]| {
    let Some((&size, bytes)) = data.split_first() else { return };
    let mut host = FrameDecoder::new();
    let mut guest = FrameDecoder::new();
    for piece in bytes.chunks(usize::from(size).max(1)) {
        host.push(piece);
        while let Ok(Some(frame)) = host.next_host() {
            check_host(&frame);
        }
        guest.push(piece);
        while let Ok(Some(frame)) = guest.next_guest() {
            check_guest(&frame);
        }
    }
});

fn check_host(frame: &HostFrame) {
    let mut bytes = Vec::new();
    // Escapes can make the second form longer than a frame may be; that is an error, not a wrong frame.
    if frame.encode(&mut bytes).is_ok() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next_host().unwrap().as_ref(), Some(frame));
    }
}

fn check_guest(frame: &GuestFrame) {
    let mut bytes = Vec::new();
    if frame.encode(&mut bytes).is_ok() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next_guest().unwrap().as_ref(), Some(frame));
    }
}
