//! Descriptors: never a panic, and only one encoding for each.
//!
//! That what decodes encodes to the same bytes is asserted by `decode` itself in such builds.
#![no_main]

use fieldpost_mixnet::directory::{SignedDescriptor, descriptor_limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match SignedDescriptor::decode(bytes) {
        Ok(descriptor) => {
            assert_eq!(descriptor.as_bytes(), bytes);
            assert!(bytes.len() <= descriptor_limits::SIGNED);
            if let Ok(verified) = descriptor.verify() {
                assert_eq!(verified.id(), descriptor.id());
            }
        }
        Err(error) => assert!(error.to_string().len() < 512),
    }
});
