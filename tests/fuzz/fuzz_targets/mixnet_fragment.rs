//! Fragments of a hostile sender: never a panic, one encoding for each, memory within its bound.
#![no_main]

use std::time::{Duration, Instant};

use fieldpost_mixnet::{
    fragment::{Fragment, Gathered, Limits, Reassembly},
    sphinx::Class,
};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    bytes: 2 * 1024 * 1024,
    transfers: 8,
    idle: Duration::from_secs(60),
    lifetime: Duration::from_secs(600),
};

fuzz_target!(|bytes: &[u8]| {
    let start = Instant::now();
    let mut reassembly = Reassembly::new(LIMITS);
    // A body as it stands, then many short ones: header, and a few bytes that fill the rest.
    let mut bodies = vec![(bytes.to_vec(), Class::Small)];
    for short in bytes.chunks(32).take(200) {
        let class = Class::ALL[usize::from(short[0] & 1)];
        bodies.push((short.to_vec(), class));
    }
    for (number, (mut body, class)) in (0..).zip(bodies) {
        assert!(Fragment::decode(class, &body).is_err() || body.len() == class.body_len());
        body.resize(class.body_len(), 0);
        let Ok(fragment) = Fragment::decode(class, &body) else { continue };
        let encoded = fragment.encode();
        assert_eq!(encoded, body[..encoded.len()]);
        let now = start + Duration::from_secs(number);
        if let Ok(Gathered::Whole(sealed)) = reassembly.insert(now, &fragment) {
            assert_eq!(sealed.len(), fragment.layout.sealed_len);
        }
        reassembly.expire(now);
        assert!(reassembly.bytes() <= LIMITS.bytes && reassembly.len() <= LIMITS.transfers);
    }
    while let Some(deadline) = reassembly.next_deadline() {
        assert!(!reassembly.expire(deadline).is_empty());
    }
    assert_eq!(reassembly.bytes(), 0);
});
