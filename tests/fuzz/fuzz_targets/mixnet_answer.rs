//! Answers of a hostile receiver: never a panic, one encoding for each up to unused bits.
#![no_main]

use fieldpost_mixnet::acknowledge::Acknowledgement;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(answer) = Acknowledgement::decode(bytes) {
        let encoded = answer.encode();
        assert!(encoded.len() <= bytes.len());
        assert_eq!(Acknowledgement::decode(&encoded), Ok(answer));
    }
});
