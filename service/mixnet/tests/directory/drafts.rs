use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::directory::{Admission, Drafter, HearError, SignedDocument};

use crate::fixtures::{
    EPOCH, authority, clock, descriptor, genesis, id, relays, signed, signed_document, time,
};

#[test]
fn a_network_goes_on_from_epoch_to_epoch() {
    let mut drafter = Drafter::new(authority(), Admission::Named);
    let mut documents = vec![genesis(relays(1..=3, EPOCH))];
    let mut made_at = Vec::new();
    // Half a second at a time; each relay renews its descriptor at the start of each epoch.
    for tick in 0..140 {
        let now = half_seconds(tick);
        let newest = documents.last().unwrap().clone();
        let epoch = clock().epoch_at(now);
        for number in 1..=3 {
            let fresh = signed(&descriptor(number, epoch));
            drafter.hear(now, Some(newest.document()), &fresh).unwrap();
        }
        let mut newest = newest;
        while drafter.due(now, newest.document()) <= now {
            let document = drafter.draft(now, Some(&newest)).unwrap().unwrap();
            let next = signed_document(document);
            next.verify_after(&newest, &authority()).unwrap();
            made_at.push((tick, next.document().epoch - EPOCH));
            documents.push(next.clone());
            newest = next;
        }
        let active = documents.iter().rev().find(|it| it.document().epoch <= epoch).unwrap();
        assert_eq!(active.document().epoch, epoch, "at every moment there is one for the epoch");
    }
    assert_eq!(made_at[..5], [(14, 1), (14, 2), (34, 3), (54, 4), (74, 5)]);
    assert_eq!(documents.len(), 9);
}

#[test]
fn a_relay_that_is_gone_leaves_the_documents() {
    let (drafter, newest) = with_relays(&[1, 2, 3]);
    let mut drafter = drafter;
    let now = half_seconds(34);
    for number in 1..=2 {
        let fresh = signed(&descriptor(number, EPOCH + 1));
        drafter.hear(now, Some(newest.document()), &fresh).unwrap();
    }
    let document = drafter.draft(now, Some(&newest)).unwrap().unwrap();
    assert_eq!(document.epoch, EPOCH + 3);
    let there: Vec<_> = document.relays().iter().map(|it| it.signed().id()).collect();
    assert!(there.len() == 2 && !there.contains(&id(3)), "its keys end with epoch 2");
}

#[test]
fn after_a_long_stop_the_next_document_is_for_the_epoch_after_the_next() {
    let (mut drafter, newest) = with_relays(&[1, 2, 3]);
    let now = half_seconds(20 * 20);
    assert_eq!(drafter.due(now, newest.document()), now);
    assert_eq!(drafter.draft(now, Some(&newest)).unwrap(), None, "no descriptor has keys for it");
    let fresh = signed(&descriptor(1, EPOCH + 20));
    drafter.hear(now, Some(newest.document()), &fresh).unwrap();
    let document = drafter.draft(now, Some(&newest)).unwrap().unwrap();
    assert_eq!(document.epoch, EPOCH + 22);
    signed_document(document).verify_after(&newest, &authority()).unwrap();
}

#[test]
fn a_stranger_comes_in_by_the_operators_word_alone() {
    let newest = genesis(relays(1..=3, EPOCH));
    let newest = Some(newest.document());
    let stranger = signed(&descriptor(7, EPOCH));
    let mut drafter = Drafter::new(authority(), Admission::Named);
    let refused = Err(HearError::NotAdmitted { relay: id(7) });
    assert_eq!(drafter.hear(time(1), newest, &stranger), refused);
    drafter.name(id(7));
    assert_eq!(drafter.hear(time(1), newest, &stranger), Ok(true));
    assert_eq!(drafter.hear(time(1), newest, &stranger), Ok(false), "nothing new");
    let mut open = Drafter::new(authority(), Admission::Anybody);
    assert_eq!(open.hear(time(1), newest, &stranger), Ok(true));
    assert_eq!(open.candidates(EPOCH + 2).count(), 1);
    assert_eq!(open.candidates(EPOCH + 3).count(), 0);
}

#[test]
fn descriptors_of_another_time_are_refused_and_old_ones_displace_none() {
    let mut drafter = Drafter::new(authority(), Admission::Anybody);
    let hear = |drafter: &mut Drafter, epoch| {
        drafter.hear(time(1), None, &signed(&descriptor(1, epoch))).map_err(|error| match error {
            HearError::Epoch { epoch, now, .. } => (epoch, now),
            other => panic!("{other}"),
        })
    };
    assert_eq!(hear(&mut drafter, EPOCH - 3), Err((EPOCH - 3, EPOCH)));
    assert_eq!(hear(&mut drafter, EPOCH + 2), Err((EPOCH + 2, EPOCH)));
    assert_eq!(hear(&mut drafter, EPOCH), Ok(true));
    assert_eq!(hear(&mut drafter, EPOCH - 1), Ok(false));
    assert_eq!(drafter.candidates(EPOCH + 2).count(), 1, "the newer one stays");
}

/// A drafter that has heard of these relays, and a chain of three documents with them.
fn with_relays(numbers: &[u8]) -> (Drafter, SignedDocument) {
    let mut drafter = Drafter::new(authority(), Admission::Named);
    let first = genesis(relays(1..=3, EPOCH));
    for number in numbers {
        let fresh = signed(&descriptor(*number, EPOCH));
        drafter.hear(time(0), Some(first.document()), &fresh).unwrap();
    }
    let mut newest = first;
    for _ in 0..2 {
        let document = drafter.draft(time(7), Some(&newest)).unwrap().unwrap();
        newest = signed_document(document);
    }
    assert_eq!((newest.document().number, newest.document().epoch), (2, EPOCH + 2));
    (drafter, newest)
}

fn half_seconds(count: u64) -> Timestamp {
    Timestamp::try_from(time(0).as_millis() + count * 500).unwrap()
}
