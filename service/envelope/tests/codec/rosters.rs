//! Rosters, whole and by deltas, and their vectors: `tests/vectors/roster.json`.

use std::{collections::BTreeMap, env, fs};

use data_encoding::HEXLOWER;
use fieldpost_envelope::{
    DecodeError, FieldName, Listing, PeerId, Roster, SignError, SignedRoster, VerifyError,
    Violation, limits,
};
use minicbor::Encoder;
use proptest::{collection, option, prelude::*, sample};
use serde_json::{Value, json};

use crate::{
    fixtures::{ALPHA, BRAVO},
    raw::cbor,
    vectors::{hex, read_vectors, seeds, vectors_path},
};

#[test]
fn the_order_in_which_peers_are_given_does_not_matter() {
    let mut roster = whole(5, &["zoe", "alice", "mallory"]);
    let signed = roster.sign(&ALPHA.key()).unwrap();
    roster.peers.reverse();
    assert_eq!(roster.sign(&ALPHA.key()).unwrap(), signed);
    let names: Vec<_> = signed.verify().unwrap().peers.into_iter().map(|l| l.peer).collect();
    assert_eq!(names, ["alice", "mallory", "zoe"].map(|name| name.parse::<PeerId>().unwrap()));
}

#[test]
fn rosters_that_break_a_rule_are_not_signed() {
    let peer: PeerId = "alice".parse().unwrap();
    let signed = |roster: &Roster| roster.sign(&ALPHA.key()).unwrap_err();
    let good = whole(5, &["alice"]);
    assert_eq!(good.sign(&BRAVO.key()), Err(SignError::SignerOfAnother { signer: BRAVO.id() }));
    for (violation, roster) in [
        (Violation::ListedTwice, whole(5, &["alice", "alice"])),
        (
            Violation::ListedTwice,
            Roster { base: Some(4), removed: vec![peer.clone()], ..good.clone() },
        ),
        (Violation::RemovedWithoutBase, Roster { removed: vec![peer], ..whole(5, &[]) }),
        (
            Violation::BaseNotEarlier { number: 5, base: 5 },
            Roster { base: Some(5), ..good.clone() },
        ),
        (
            Violation::RosterNumber { number: 0, most: i64::MAX as u64 },
            Roster { number: 0, ..good },
        ),
    ] {
        assert_eq!(signed(&roster), violation.into());
    }
    let many = (0..=10_000).map(|number| format!("p{number}")).collect::<Vec<_>>();
    let many = whole(1, &many.iter().map(String::as_str).collect::<Vec<_>>());
    let field = FieldName::Listings;
    let violation = Violation::TooLong { field, length: 10_001, most: limits::ROSTER_PEERS };
    assert_eq!(signed(&many), violation.into());
}

#[test]
fn bytes_that_are_not_canonical_are_refused() {
    let decode = |write: &dyn Fn(&mut Encoder<Vec<u8>>)| {
        let mut bytes = cbor(|encoder| {
            encoder.map(4).unwrap().u64(0).unwrap().u64(1).unwrap();
            encoder.u64(1).unwrap().bytes(ALPHA.id().as_bytes()).unwrap();
            encoder.u64(2).unwrap().u64(7).unwrap().u64(4).unwrap();
            write(encoder);
        });
        bytes.extend([0; 64]);
        SignedRoster::decode(&bytes).unwrap_err()
    };
    let names = |encoder: &mut Encoder<Vec<u8>>, names: &[&str]| {
        encoder.array(names.len() as u64).unwrap();
        for name in names {
            encoder.array(1).unwrap().str(name).unwrap();
        }
    };
    let field = FieldName::Listings;
    assert_eq!(decode(&|e| names(e, &["bob", "alice"])), DecodeError::NameOrder { field });
    assert_eq!(decode(&|e| names(e, &["bob", "bob"])), DecodeError::NameOrder { field });
    assert!(matches!(decode(&|e| names(e, &["b b"])), DecodeError::Address { .. }));
    let claims_many = |encoder: &mut Encoder<Vec<u8>>| {
        encoder.array(1 << 40).unwrap();
    };
    assert!(matches!(decode(&claims_many), DecodeError::Violation(Violation::TooLong { .. })));
    let three = |encoder: &mut Encoder<Vec<u8>>| {
        encoder.array(1).unwrap().array(3).unwrap().str("a").unwrap();
    };
    assert!(matches!(decode(&three), DecodeError::Violation(Violation::TooLong { .. })));
    let most = limits::ROSTER;
    let oversize = SignedRoster::decode(&vec![0; most + 1]).unwrap_err();
    assert_eq!(oversize, DecodeError::Oversize { length: most + 1, most });
}

#[test]
fn a_roster_of_another_is_not_believed() {
    let signed = whole(5, &["alice"]).sign(&ALPHA.key()).unwrap();
    let mut bytes = signed.into_bytes();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let error = SignedRoster::decode(&bytes).unwrap().verify().unwrap_err();
    assert_eq!(error, VerifyError::Signature { signer: ALPHA.id() });
}

#[test]
fn the_vectors_are_what_the_cases_give() {
    let earlier = whole(1_790_000_000_000, &["alice", "bob", "carol"]);
    let mut later = whole(1_790_000_000_001, &["alice", "bob", "dave"]);
    later.peers[0].display_name = Some("Älice".into());
    let cases = [
        ("nobody", whole(1, &[])),
        ("three peers", earlier.clone()),
        ("the same, changed: whole", later.clone()),
        ("the same, changed: what leads there", later.delta_from(&earlier)),
    ];
    let cases = cases.map(|(name, roster)| {
        let signed = roster.sign(&ALPHA.key()).unwrap();
        json!({
            "name": name,
            "gateway": ALPHA.id(),
            "number": roster.number,
            "base": roster.base,
            "peers": roster.peers.iter().map(|l| json!([l.peer, l.display_name])).collect::<Vec<_>>(),
            "removed": roster.removed,
            "signed": HEXLOWER.encode(signed.as_bytes()),
        })
    });
    let vectors = json!({
        "about": "Fieldpost's rosters, version 1. The gateway's secret key is 01 32 times.",
        "accepted": cases,
    });
    let path = vectors_path("roster.json");
    if env::var_os("FIELDPOST_WRITE_VECTORS").is_some() {
        fs::write(&path, serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
        seeds("roster_decode", vectors["accepted"].as_array().unwrap());
    }
    let published: Value = read_vectors("roster.json");
    assert!(published == vectors, "roster.json is stale");
    for case in published["accepted"].as_array().unwrap() {
        let roster = SignedRoster::decode(&hex(&case["signed"])).unwrap().verify().unwrap();
        assert_eq!(roster.number, case["number"]);
        assert_eq!(json!(roster.removed), case["removed"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_roster_arrives_as_it_was_signed(roster in roster()) {
        let signed = roster.sign(&ALPHA.key()).unwrap();
        let decoded = SignedRoster::decode(signed.as_bytes()).unwrap();
        prop_assert_eq!(decoded.number(), roster.number);
        prop_assert_eq!(decoded.verify(), Ok(roster));
    }

    #[test]
    fn a_delta_leads_from_one_roster_to_the_other(one in peers(), other in peers()) {
        let [one, other] = [(1, one), (2, other)].map(|(number, peers)| Roster {
            gateway: ALPHA.id(), number, base: None, peers, removed: vec![],
        });
        let delta = other.delta_from(&one).sign(&ALPHA.key()).unwrap();
        let delta = SignedRoster::decode(delta.as_bytes()).unwrap().verify().unwrap();
        prop_assert_eq!(delta.base, Some(1));
        let mut peers: BTreeMap<_, _> =
            one.peers.into_iter().map(|l| (l.peer, l.display_name)).collect();
        for peer in &delta.removed {
            prop_assert!(peers.remove(peer).is_some());
        }
        peers.extend(delta.peers.into_iter().map(|l| (l.peer, l.display_name)));
        let expected: BTreeMap<_, _> =
            other.peers.into_iter().map(|l| (l.peer, l.display_name)).collect();
        prop_assert_eq!(peers, expected);
    }

    #[test]
    fn an_altered_roster_is_never_believed(
        roster in roster(),
        at in any::<sample::Index>(),
        flip in 1_u8..,
    ) {
        let mut bytes = roster.sign(&ALPHA.key()).unwrap().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(!SignedRoster::decode(&bytes).is_ok_and(|decoded| decoded.verify().is_ok()));
    }

    #[test]
    fn any_bytes_are_no_roster_and_no_panic(bytes in collection::vec(any::<u8>(), 0..512)) {
        if let Ok(decoded) = SignedRoster::decode(&bytes) {
            prop_assert!(decoded.verify().is_err());
        }
    }
}

fn roster() -> impl Strategy<Value = Roster> {
    let fields =
        (1..=limits::ROSTER_NUMBER, peers(), collection::btree_set(name(), 0..5), any::<bool>());
    fields.prop_map(|(number, peers, removed, is_delta)| {
        let base = (is_delta && number > 1).then(|| number - 1);
        let is_listed = |peer: &PeerId| peers.iter().any(|listing| listing.peer == *peer);
        let removed: Vec<_> = removed.into_iter().filter(|peer| !is_listed(peer)).collect();
        let removed = if base.is_some() { removed } else { vec![] };
        Roster { gateway: ALPHA.id(), number, base, peers, removed }
    })
}

fn peers() -> impl Strategy<Value = Vec<Listing>> {
    collection::btree_map(name(), option::of("[^\0]{0,40}"), 0..12).prop_map(|peers| {
        peers.into_iter().map(|(peer, display_name)| Listing { peer, display_name }).collect()
    })
}

/// Few of them, so that two rosters have some in common.
fn name() -> impl Strategy<Value = PeerId> {
    "[a-c][a-c0-3]{0,2}".prop_map(|name| name.parse().unwrap())
}

fn whole(number: u64, names: &[&str]) -> Roster {
    let listing = |name: &&str| Listing { peer: name.parse().unwrap(), display_name: None };
    let peers = names.iter().map(listing).collect();
    Roster { gateway: ALPHA.id(), number, base: None, peers, removed: vec![] }
}
