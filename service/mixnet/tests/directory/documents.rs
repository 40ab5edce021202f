use ed25519_dalek::SigningKey;
use fieldpost_mixnet::directory::{
    Authority, BeaconSource, DecodeError, DescriptorError, Document, DocumentError, SignedDocument,
    WeightedRelay, document_limits,
};
use proptest::prelude::*;

use crate::fixtures::{
    EPOCH, authority, clock, descriptor, genesis, id, key, next, relays, signed, signed_document,
    signers, time, weighted,
};

#[test]
fn a_genesis_document_is_active_at_once() {
    let document = genesis(relays(1..=3, EPOCH));
    let decoded = SignedDocument::decode(&document.to_bytes()).unwrap();
    assert_eq!(decoded, document);
    let document = decoded.verify(&authority()).unwrap();
    assert_eq!((document.number, document.epoch), (0, EPOCH));
    assert!(document.has_weak_beacon() && document.hides_senders());
    assert_eq!(document.relays().len(), 3);
    assert_eq!(document.relay(&id(2)), Some(&descriptor(2, EPOCH)));
    assert_eq!(document.relay(&id(4)), None);
}

#[test]
fn a_chain_of_documents_is_accepted_link_by_link() {
    let mut last = genesis(relays(1..=3, EPOCH));
    for number in 1..6 {
        let document = next(&last);
        assert_eq!(document.verify_after(&last, &authority()).unwrap().number, number);
        last = document;
    }
}

#[test]
fn k_signatures_of_signers_are_needed() {
    let document = Document::genesis(&authority(), time(0), relays(1..=3, EPOCH)).unwrap();
    let mut signed = document.unsigned();
    let few = |count| Err(DocumentError::TooFewSignatures { count, needed: 2 });
    assert_eq!(signed.verify(&authority()).map(drop), few(0));
    signed.sign(&signers()[0]);
    signed.sign(&signers()[0]);
    assert_eq!(signed.verify(&authority()).map(drop), few(1));
    let mut copy = signed.clone();
    copy.sign(&signers()[2]);
    signed.merge(&copy).unwrap();
    assert!(signed.verify(&authority()).is_ok());
    signed.sign(&signers()[1]);
    assert!(signed.verify(&authority()).is_ok());
    let digest = signed.digest();
    assert_eq!(digest, copy.digest(), "signatures do not name a document");
    signed.sign(&key(1));
    let signer = key(1).verifying_key().to_bytes();
    let unknown = DocumentError::UnknownSigner { signer };
    assert_eq!(signed.verify(&authority()), Err(unknown));
    let other = genesis(relays(1..=2, EPOCH));
    assert_eq!(signed.merge(&other), Err(DocumentError::Another { number: 0 }));
}

#[test]
fn a_forged_signature_is_named() {
    let bytes = genesis(relays(1..=3, EPOCH)).to_bytes();
    let mut forged = bytes.clone();
    *forged.last_mut().unwrap() ^= 1;
    let decoded = SignedDocument::decode(&forged).unwrap();
    assert!(matches!(decoded.verify(&authority()), Err(DocumentError::Signature { .. })));
}

#[test]
fn another_networks_document_is_refused() {
    let everybody = || signers().map(|signer| signer.verifying_key());
    let other = Authority::new(1, everybody(), clock()).unwrap();
    assert_ne!(other.id(), authority().id());
    let document = genesis(relays(1..=3, EPOCH));
    assert_eq!(document.verify(&other), Err(DocumentError::Network));
    for (threshold, keys) in [(0, 3), (4, 3), (1, 0)] {
        let keys = everybody().into_iter().take(keys);
        assert!(Authority::new(threshold, keys, clock()).is_err());
    }
    let twice = [key(1), key(1)].map(|key: SigningKey| key.verifying_key());
    assert!(Authority::new(1, twice, clock()).is_err());
}

#[test]
fn a_document_that_does_not_follow_is_refused_for_the_reason() {
    let first = genesis(relays(1..=3, EPOCH));
    let other = genesis(relays(1..=2, EPOCH));
    let second = next(&first);
    let third = next(&second);
    let check = |document: &SignedDocument, last: &SignedDocument| {
        document.verify_after(last, &authority()).map(drop)
    };
    assert_eq!(check(&third, &first), Err(DocumentError::Number { number: 2, expected: 1 }));
    assert_eq!(check(&first, &first), Err(DocumentError::Number { number: 0, expected: 1 }));
    assert_eq!(check(&second, &other), Err(DocumentError::Predecessor { number: 1 }));
    let same_epoch =
        Document::successor(&authority(), &first, EPOCH, time(0), Vec::new(), relays(1..=3, EPOCH));
    assert_eq!(same_epoch, Err(DocumentError::Epoch { epoch: EPOCH, last: EPOCH }));
}

#[test]
fn a_freeze_comes_before_the_beacon() {
    let mut last = genesis(relays(1..=3, EPOCH));
    for _ in 0..2 {
        last = next(&last);
    }
    let attempt = |frozen_at| {
        let sources = vec![BeaconSource { name: "drand 7".into(), value: vec![7; 32] }];
        let relays = relays(1..=3, EPOCH + 1);
        Document::successor(&authority(), &last, EPOCH + 3, frozen_at, sources, relays)
    };
    assert!(!attempt(time(20)).unwrap().has_weak_beacon());
    let error = DocumentError::Frozen { frozen_at: time(21), latest: time(20) };
    assert_eq!(attempt(time(21)), Err(error));
}

#[test]
fn a_beacon_comes_from_its_sources_and_no_two_lists_give_the_same() {
    let first = genesis(relays(1..=3, EPOCH));
    let with = |parts: &[(&str, &[u8])]| {
        let sources = parts
            .iter()
            .map(|(name, value)| BeaconSource { name: (*name).into(), value: value.to_vec() })
            .collect();
        let relays = relays(1..=3, EPOCH);
        Document::successor(&authority(), &first, EPOCH + 1, time(0), sources, relays).unwrap()
    };
    let lists: [&[(&str, &[u8])]; 5] = [
        &[],
        &[("ab", b"c")],
        &[("a", b"bc")],
        &[("a", b"b"), ("c", b"")],
        &[("c", b""), ("a", b"b")],
    ];
    let beacons: std::collections::BTreeSet<_> =
        lists.iter().map(|list| with(list).beacon).collect();
    assert_eq!(beacons.len(), lists.len());
    let mut lie = with(lists[1]);
    lie.beacon[0] ^= 1;
    assert_eq!(signed_document(lie).verify(&authority()), Err(DocumentError::Beacon));
}

#[test]
fn every_relay_is_believed_and_has_keys() {
    let assemble = |relays| Document::genesis(&authority(), time(0), relays).map(drop);
    let old = weighted(&[descriptor(1, EPOCH - 3)]);
    let no_keys = DocumentError::NoKeys { relay: id(1), epoch: EPOCH };
    assert_eq!(assemble(old), Err(no_keys));
    assert_eq!(assemble(weighted(&[descriptor(1, EPOCH - 2)])), Ok(()));
    let mut bytes = signed(&descriptor(1, EPOCH)).as_bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let forged = fieldpost_mixnet::directory::SignedDescriptor::decode(&bytes).unwrap();
    let error = DocumentError::Descriptor { relay: id(1), source: DescriptorError::Signature };
    assert_eq!(assemble(vec![WeightedRelay::new(forged, 1)]), Err(error));
    let twice = weighted(&[descriptor(1, EPOCH), descriptor(1, EPOCH)]);
    assert_eq!(assemble(twice), Err(DecodeError::Order { field: "relays" }.into()));
    for weight in [0, document_limits::WEIGHT + 1] {
        let relay = WeightedRelay::new(signed(&descriptor(1, EPOCH)), weight);
        assert_eq!(assemble(vec![relay]), Err(DocumentError::Weight { relay: id(1), weight }));
    }
}

#[test]
fn two_relays_or_one_operator_hide_nobody() {
    let hides = |relays| genesis(relays).document().hides_senders();
    assert!(!hides(relays(1..=2, EPOCH)));
    let mut one_operator: Vec<_> = (1..=5).map(|number| descriptor(number, EPOCH)).collect();
    one_operator.iter_mut().for_each(|relay| relay.operator = "the same".into());
    assert!(!hides(weighted(&one_operator)));
    one_operator[0].operator = "another".into();
    assert!(hides(weighted(&one_operator)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_altered_document_is_never_believed(at: prop::sample::Index, flip in 1..=255_u8) {
        let mut bytes = genesis(relays(1..=2, EPOCH)).to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let believed =
            SignedDocument::decode(&bytes).is_ok_and(|it| it.verify(&authority()).is_ok());
        prop_assert!(!believed);
    }

    #[test]
    fn a_piece_of_a_document_is_none(end: prop::sample::Index) {
        let bytes = genesis(relays(1..=2, EPOCH)).to_bytes();
        prop_assert!(SignedDocument::decode(&bytes[..end.index(bytes.len())]).is_err());
    }

    #[test]
    fn any_document_arrives_as_it_was_signed(
        count in 0..12_u8,
        weights in prop::collection::vec(1..=1_000_000_u32, 12),
        names in prop::collection::vec(("[a-z 0-9]{1,64}", any::<[u8; 32]>()), 0..=8),
    ) {
        let relays: Vec<_> = (1..=count)
            .zip(weights)
            .map(|(number, weight)| {
                WeightedRelay::new(signed(&descriptor(number, EPOCH)), weight)
            })
            .collect();
        let sources = names
            .into_iter()
            .map(|(name, value)| BeaconSource { name, value: value.to_vec() })
            .collect();
        let first = genesis(Vec::new());
        let document =
            Document::successor(&authority(), &first, EPOCH + 1, time(3), sources, relays).unwrap();
        let bytes = signed_document(document.clone()).to_bytes();
        let decoded = SignedDocument::decode(&bytes).unwrap();
        prop_assert_eq!(decoded.verify_after(&first, &authority()), Ok(&document));
        prop_assert_eq!(decoded.to_bytes(), bytes);
    }
}
