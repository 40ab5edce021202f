//! Documents: never a panic, only one encoding for each, and none is believed without signatures.
//!
//! That what decodes encodes to the same payload is asserted by `decode` itself in such builds.
#![no_main]

use ed25519_dalek::SigningKey;
use fieldpost_mixnet::directory::{Authority, EpochClock, SignedDocument};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Nobody of the seeds' signers.
    let signer = SigningKey::from_bytes(&[0x99; 32]).verifying_key();
    let authority = Authority::new(1, [signer], EpochClock::HOUR).expect("an authority");
    match SignedDocument::decode(bytes) {
        Ok(document) => {
            assert_eq!(document.to_bytes(), bytes);
            assert!(document.verify(&authority).is_err());
        }
        Err(error) => assert!(error.to_string().len() < 512),
    }
});
