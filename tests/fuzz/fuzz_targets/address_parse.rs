//! Addresses: never a panic, one text for each, errors that repeat nothing.
#![no_main]

use std::{fmt::Display, str::FromStr};

use fieldpost_envelope::{GatewayId, GroupId, PeerAddress, PeerId, Recipient};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    check::<PeerId>(text, PeerId::MAX_LEN);
    check::<GroupId>(text, GroupId::MAX_LEN);
    check::<GatewayId>(text, GatewayId::TEXT_LEN);
    check::<PeerAddress>(text, PeerAddress::MAX_LEN);
    check::<Recipient>(text, Recipient::MAX_LEN);
    if let Ok(peer) = PeerId::parse(text) {
        assert!(!peer.is_phone() && peer.as_str() == text);
    }
});

fn check<T: FromStr<Err: Display> + Display + PartialEq>(text: &str, most: usize) {
    match text.parse::<T>() {
        Ok(address) => {
            let written = address.to_string();
            assert!(written.len() <= most);
            assert!(written.eq_ignore_ascii_case(text));
            assert!(written.parse().is_ok_and(|read: T| read == address));
        }
        Err(error) => assert!(error.to_string().len() < 256),
    }
}
