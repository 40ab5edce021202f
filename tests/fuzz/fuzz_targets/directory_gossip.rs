//! What gateways tell each other about documents: never a panic, one encoding, bounded answers.
#![no_main]

use ed25519_dalek::SigningKey;
use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::directory::{
    Authority, Chain, ChainEvent, EpochClock, GossipMessage, Neighbour,
};
use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng, rngs::StdRng};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = GossipMessage::decode(bytes) {
        assert_eq!(message.encode(), bytes);
    }
    let signer = SigningKey::from_bytes(&[0x99; 32]).verifying_key();
    let authority = Authority::new(1, [signer], EpochClock::HOUR).expect("an authority");
    let mut chain = Chain::new(StdRng::seed_from_u64(1), authority);
    let now = Timestamp::try_from(1_800_000_000_000).expect("a time");
    let from = Neighbour(1);
    chain.handle(now, ChainEvent::Joined(from)).for_each(drop);
    assert!(chain.handle(now, ChainEvent::Received { from, bytes }).count() <= 2);
    assert!(chain.handle(now, ChainEvent::Offered(bytes)).count() <= 2);
    assert!(chain.newest().is_none());
});
