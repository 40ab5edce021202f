//! Certificates off the wire: never a panic, and only one encoding for each.
#![no_main]

use fieldpost_envelope::{SignedCertificate, Timestamp, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match SignedCertificate::decode(bytes) {
        Ok(certificate) => {
            assert_eq!(certificate.as_bytes(), bytes);
            assert!(bytes.len() <= limits::CERTIFICATE);
            let now = Timestamp::try_from(1_790_000_000_000).expect("a time of this century");
            if let Ok(said) = certificate.verify(now) {
                assert!(said.not_before <= said.not_after);
            }
        }
        Err(error) => assert!(error.to_string().len() < 256),
    }
});
