//! Sealed envelopes: nothing but what was sealed to us opens, whatever the bytes.
#![no_main]

use fieldpost_envelope::{GatewayId, OpeningKey, SignedEnvelope};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let us = GatewayId::from_bytes([7; 32]);
    let key = OpeningKey::from_bytes([0x42; 32]);
    assert!(SignedEnvelope::open(bytes, us, &key).is_err());
});
