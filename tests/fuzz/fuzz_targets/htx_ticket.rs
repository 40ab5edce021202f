//! Tickets: never a panic, and nobody comes in without one.
#![no_main]

use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::htx::{BucketLimits, CarrierPolicy, Gate, Presented, SecretKey, TicketParts};
use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng, rngs::StdRng};

fuzz_target!(|text: &str| {
    let decoded = TicketParts::decode(text);
    match decoded {
        Ok(_) => assert!(TicketParts::TEXT_LEN.contains(&text.len())),
        Err(error) => assert!(error.to_string().len() < 256),
    }
    let mut gate = Gate::new(&mut StdRng::seed_from_u64(1), BucketLimits::default());
    // None of the seeds is for this key.
    gate.add_key([7; 8], SecretKey::from_bytes(&[0x77; 32]));
    let now = Timestamp::try_from(1_800_000_000_000).expect("a time");
    assert!(gate.check(now, [192, 0, 2, 1].into(), Some(text)).is_err());
    let policy = CarrierPolicy::new(["__Host-sid", "v", "token"], [1; 3], (24, 64));
    let policy = policy.expect("a policy");
    let presented = Presented { cookie: Some(text), query: Some(text), form: Some(text) };
    let found = policy.find(presented).ticket().unwrap_or_default();
    assert!(text.contains(found));
});
