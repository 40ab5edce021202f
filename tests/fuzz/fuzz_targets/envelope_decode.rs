//! Envelopes off the wire: never a panic, and only one encoding for each.
//!
//! That what decodes encodes to the same bytes is asserted by `decode` itself in such builds.
#![no_main]

use fieldpost_envelope::{SignedEnvelope, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match SignedEnvelope::decode(bytes) {
        Ok(envelope) => {
            assert_eq!(envelope.as_bytes(), bytes);
            assert!(bytes.len() <= limits::SIGNED);
            let (signer, digest) = (envelope.signer(), envelope.digest());
            if let Ok(verified) = envelope.verify() {
                assert_eq!((verified.signer, verified.digest), (signer, digest));
            }
        }
        Err(error) => assert!(error.to_string().len() < 256),
    }
});
