//! BitChat packets off the air: never a panic, never more than the largest payload, and one form.
#![no_main]

use fieldpost_bitchat::{Packet, packet::MAX_PAYLOAD};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Packet::decode(bytes) {
        Ok(packet) => {
            assert!(packet.payload().len() <= MAX_PAYLOAD);
            let written = packet.encode();
            assert!(written.len() <= bytes.len());
            assert_eq!(Packet::decode(&written).as_ref(), Ok(&packet));
            assert_eq!(Packet::decode(&packet.encode_for_wire()), Ok(packet));
        }
        Err(error) => assert!(error.to_string().len() < 256),
    }
});
