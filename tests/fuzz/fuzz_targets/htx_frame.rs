//! Frames: never a panic, one form for each header, and nothing opens that was not sealed.
#![no_main]

use fieldpost_mixnet::htx::{FrameHeader, OpeningHalf, Ping, SessionKeys};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = Ping::decode(bytes) {
        assert!(error.to_string().len() < 256);
    }
    // The seeds are sealed under other keys.
    let keys = SessionKeys::derive(&[0; 32], (&[0; 32], &[0; 32]), &[0; 32]);
    let mut opening = OpeningHalf::new(keys.client);
    let mut rest = bytes.to_vec();
    loop {
        match FrameHeader::decode(&rest) {
            Ok(Some((header, length))) => {
                let mut written = Vec::new();
                header.encode(&mut written);
                assert_eq!(written, rest[..length]);
                let Some(frame) = rest.get_mut(..length + header.rest()) else { return };
                assert!(opening.open(header.kind, frame, length).is_err());
                rest.drain(..length + header.rest());
            }
            Ok(None) => return assert!(rest.len() < FrameHeader::MAX_LEN),
            Err(error) => return assert!(error.to_string().len() < 256),
        }
    }
});
