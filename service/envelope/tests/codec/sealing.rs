//! Sealing to the receiving gateway.

use fieldpost_envelope::{
    DecodeError, MAX_SEALED_LEN, OpenError, OpeningKey, SealingKey, SignedEnvelope,
};
use rand::{SeedableRng, rngs::StdRng};

use crate::fixtures::{ALPHA, BRAVO, greeting, signed};

#[test]
fn only_the_gateway_it_was_sealed_to_opens_it() {
    let mut rng = StdRng::seed_from_u64(1);
    let (bravos, another) = (OpeningKey::generate(&mut rng), OpeningKey::generate(&mut rng));
    let envelope = signed(&greeting());
    let sealed = envelope.seal_to(BRAVO.id(), &bravos.sealing_key(), &mut rng).unwrap();

    assert_eq!(SignedEnvelope::open(&sealed, BRAVO.id(), &bravos), Ok(envelope));
    assert_eq!(SignedEnvelope::open(&sealed, BRAVO.id(), &another), Err(OpenError::NotForUs));
    assert_eq!(SignedEnvelope::open(&sealed, ALPHA.id(), &bravos), Err(OpenError::NotForUs));
}

#[test]
fn each_bit_of_a_sealed_envelope_counts() {
    let mut rng = StdRng::seed_from_u64(2);
    let key = OpeningKey::generate(&mut rng);
    let sealed = signed(&greeting()).seal_to(BRAVO.id(), &key.sealing_key(), &mut rng).unwrap();
    for at in 0..sealed.len() {
        let mut bent = sealed.clone();
        bent[at] ^= 0x01;
        let expected = match at {
            0 => OpenError::UnsupportedVersion(0),
            _ => OpenError::NotForUs,
        };
        assert_eq!(SignedEnvelope::open(&bent, BRAVO.id(), &key), Err(expected), "byte {at}");
    }
    for length in 0..sealed.len() {
        let expected = if length < 49 { OpenError::Truncated } else { OpenError::NotForUs };
        let opened = SignedEnvelope::open(&sealed[..length], BRAVO.id(), &key);
        assert_eq!(opened, Err(expected), "length {length}");
    }
}

#[test]
fn sealing_twice_gives_different_bytes() {
    let mut rng = StdRng::seed_from_u64(3);
    let key = OpeningKey::generate(&mut rng).sealing_key();
    let envelope = signed(&greeting());
    let once = envelope.seal_to(BRAVO.id(), &key, &mut rng).unwrap();
    assert_ne!(envelope.seal_to(BRAVO.id(), &key, &mut rng).unwrap(), once);
}

#[test]
fn a_key_of_small_order_is_not_sealed_to() {
    let envelope = signed(&greeting());
    let mut rng = StdRng::seed_from_u64(4);
    let refused = envelope.seal_to(BRAVO.id(), &SealingKey::from_bytes([0; 32]), &mut rng);
    assert!(refused.is_err());
}

#[test]
fn what_opens_must_still_be_an_envelope_of_bearable_size() {
    let mut rng = StdRng::seed_from_u64(5);
    let key = OpeningKey::generate(&mut rng);
    let too_long = vec![1; MAX_SEALED_LEN + 1];
    let refused = SignedEnvelope::open(&too_long, BRAVO.id(), &key).unwrap_err();
    assert_eq!(refused, OpenError::Oversize { length: too_long.len(), most: MAX_SEALED_LEN });
    assert_eq!(
        OpenError::from(DecodeError::NotAMap).to_string(),
        "the sealed bytes are not an envelope"
    );
}

#[test]
fn an_opening_key_shows_nothing_of_itself() {
    let key = OpeningKey::from_bytes([0xab; 32]);
    assert_eq!(format!("{key:?}"), "OpeningKey(..)");
    assert_eq!(OpeningKey::from_bytes(*key.as_bytes()).sealing_key(), key.sealing_key());
}
